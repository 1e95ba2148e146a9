"""LPIPS: how different two pictures look to a network (Zhang et al., CVPR 2018), with a weight file of the user's.

The distance needs a network trained on ImageNet, which nobody may be made to download: whoever wants it names the file,
``alexnet-owt-7be5be79.pth`` or ``vgg16-397923af.pth`` as torchvision publishes them. The learned weights of the
channels come with torchmetrics; its own LPIPS cannot be used, because it builds the network with torchvision.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, max_pool2d, relu

from fedfields.errors import UserError
from fedfields.scenes.images import printable
from fedfields.store import read_pt, read_tensors


class _Conv(NamedTuple):
    """A convolution and its ReLU: its number in torchvision's ``features``, its shape, and what follows the steps.

    Attributes:
        number: in ``features``.
        shape: of the weights.
        stride: of the convolution; it is padded by half its kernel, AlexNet's first by 2.
        pool: edge of the maximum (with stride 2) before it; 0 for none.
        compared: whether the features after it are compared.
    """

    number: int
    shape: tuple[int, int, int, int]
    stride: int = 1
    pool: int = 0
    compared: bool = True


NETWORKS: dict[str, tuple[_Conv, ...]] = {
    "alex": (
        _Conv(0, (64, 3, 11, 11), stride=4),
        _Conv(3, (192, 64, 5, 5), pool=3),
        _Conv(6, (384, 192, 3, 3), pool=3),
        _Conv(8, (256, 384, 3, 3)),
        _Conv(10, (256, 256, 3, 3)),
    ),
    "vgg": tuple(
        _Conv(number, (width, before, 3, 3), pool=pool, compared=last)
        for number, before, width, pool, last in (
            (0, 3, 64, 0, False), (2, 64, 64, 0, True),
            (5, 64, 128, 2, False), (7, 128, 128, 0, True),
            (10, 128, 256, 2, False), (12, 256, 256, 0, False), (14, 256, 256, 0, True),
            (17, 256, 512, 2, False), (19, 512, 512, 0, False), (21, 512, 512, 0, True),
            (24, 512, 512, 2, False), (26, 512, 512, 0, False), (28, 512, 512, 0, True),
        )
    ),
}  # fmt: skip
"""AlexNet (the usual one for LPIPS) and VGG-16, up to the last features that are compared."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the colours in [-1, 1], as in the authors' code: ImageNet's means and deviations."""

_SMALLEST = 31
"""Pixels along an edge that AlexNet's and VGG's pooling needs."""


@dataclass(frozen=True, eq=False)
class Lpips:
    """The distance with the weights of one network."""

    layers: tuple[_Conv, ...]
    weights: tuple[tuple[Tensor, Tensor], ...]
    """Weights and biases of the layers."""
    heads: tuple[Tensor, ...]
    """For the channels of each layer that is compared: ``[1, C, 1, 1]``, not negative."""

    def __call__(self, prediction: Tensor, truth: Tensor) -> float:
        """The distance of two pictures ``[H, W, 3]`` in [0, 1], 0 for the same; NaN under 31 pixels along an edge."""
        if min(truth.shape[:2]) < _SMALLEST:
            return float("nan")
        both = torch.stack([prediction.clamp(0, 1), truth]).movedim(-1, 1).float()
        shift, scale = (both.new_tensor(values)[None, :, None, None] for values in (_SHIFT, _SCALE))
        total = 0.0
        with torch.no_grad():
            for head, features in zip(self.heads, self._features((2 * both - 1 - shift) / scale), strict=True):
                unit = features / (features.square().sum(1, keepdim=True) + 1e-8).sqrt()
                total += float((head * (unit[:1] - unit[1:]).square()).sum(1).mean())
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer, (weight, bias) in zip(self.layers, self.weights, strict=True):
            x = max_pool2d(x, layer.pool, 2) if layer.pool else x
            x = relu(conv2d(x, weight, bias, layer.stride, 2 if layer.stride > 1 else layer.shape[-1] // 2))
            found += [x] if layer.compared else []
        return found


def load_lpips(path: Path) -> Lpips:
    """Reads the network's weights, as ``.safetensors`` or as torch writes them (tensors only, nothing is unpickled).

    Raises:
        UserError: the file is missing or damaged, or holds neither AlexNet nor VGG-16.
    """
    values = _read(path)
    for name, layers in NETWORKS.items():
        keys = [(f"features.{layer.number}.weight", f"features.{layer.number}.bias") for layer in layers]
        shapes = [((layer.shape), layer.shape[:1]) for layer in layers]
        if all(
            isinstance(values.get(key), Tensor) and values[key].shape == shape
            for pair, sizes in zip(keys, shapes, strict=True)
            for key, shape in zip(pair, sizes, strict=True)
        ):
            weights = tuple((values[weight].float(), values[bias].float()) for weight, bias in keys)
            return Lpips(layers, weights, _heads(name, sum(layer.compared for layer in layers)))
    found = "holds the weights of neither AlexNet nor VGG-16 (features.0.weight and so on)"
    raise UserError(printable(f"{path}: {found}; give torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth"))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        values = read_tensors(path)[0] if path.suffix == ".safetensors" else read_pt(path)
    except ValueError as error:
        if not path.exists():
            raise UserError(printable(f"{path} does not exist; --lpips names a file with weights")) from error
        found = f"is no file of weights that can be read safely ({error})"
        raise UserError(printable(f"{path}: {found}; download it again")) from error
    return values if isinstance(values, dict) else {}


def _heads(name: str, count: int) -> tuple[Tensor, ...]:
    """The authors' learned weights of the channels, version 0.1, which torchmetrics carries."""
    package = importlib.util.find_spec("torchmetrics")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "functional" / "image" / "lpips_models" / f"{name}.pth"
    if not path.is_file():
        raise UserError(f"{path} does not exist; LPIPS needs a version of torchmetrics that carries it")
    values = read_pt(path)
    return tuple(values[f"lin{i}.model.1.weight"] for i in range(count))
