"""LPIPS against torchmetrics' own, which is given a network in place of torchvision's; and bad weight files."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchmetrics.functional.image import lpips as reference

from fedfields.config import Data, preset
from fedfields.errors import UserError
from fedfields.perceptual import NETWORKS, load_lpips
from fedfields.runtime.run import run
from tests.runtime.test_places import experiment
from tests.scenes.ball import write_capture

ALEX = [
    nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
    nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
    nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
]  # fmt: skip
"""``torchvision.models.alexnet().features``, as its source has it."""

VGG = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
"""Configuration D of ``torchvision.models.vgg16``."""


def features(name):
    """The network with weights drawn by hand; no two layers alike, so that a mix-up would show."""
    layers, before = [], 3
    for width in VGG if name == "vgg" else []:
        layers += [nn.MaxPool2d(2, 2)] if width == "M" else [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = before if width == "M" else width
    network = nn.Sequential(*(layers or ALEX))
    random = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        fan = max(1, parameter[0].numel())
        parameter.data = torch.randn(parameter.shape, generator=random) * (2 / fan) ** 0.5 * (0.1 if fan == 1 else 1)
    return network


def file_of(folder, network, form="pth"):
    values = {f"features.{key}": value for key, value in network.state_dict().items()}
    path = folder / f"weights.{form}"
    torch.save(values, path) if form == "pth" else save_file(values, path)
    return path


@pytest.mark.parametrize("name", ["alex", "vgg"])
@pytest.mark.parametrize("size", [(64, 64), (31, 47)])
def test_the_distance_is_that_of_torchmetrics(tmp_path, monkeypatch, name, size):
    network = features(name)
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_: network)
    random = torch.Generator().manual_seed(0)
    one, other = (torch.rand(*size, 3, generator=random) for _ in range(2))
    theirs = reference._LPIPS(net=name)(*(x.movedim(-1, 0)[None] for x in (one, other)), normalize=True)
    ours = load_lpips(file_of(tmp_path, network))
    assert ours(one, other) == pytest.approx(float(theirs), rel=1e-5) and float(theirs) > 0.01
    assert ours(one, one) == 0 and ours(one, other) == pytest.approx(ours(other, one), rel=1e-5)
    assert ours(one, (one + other) / 2) < ours(one, other)


def test_safetensors_and_pictures_that_are_too_small(tmp_path):
    network = features("alex")
    one, other = load_lpips(file_of(tmp_path, network)), load_lpips(file_of(tmp_path, network, "safetensors"))
    grey, white = torch.full((40, 40, 3), 0.5), torch.ones(40, 40, 3)
    assert one(grey, white) == other(grey, white) > 0
    assert one(grey[:30], white[:30]) != one(grey[:30], white[:30])  # NaN.


def test_wrong_files_are_one_line(tmp_path):
    values = {"features.0.weight": torch.zeros(64, 3, 11, 11)}
    torch.save(values, tmp_path / "half.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(features("alex"), tmp_path / "module.pth")  # A pickled class.
    (tmp_path / "text.pth").write_text("dear diary")
    (tmp_path / "text.safetensors").write_text("dear diary")
    for name, words in (
        ("half.pth", "holds the weights of neither AlexNet nor VGG-16"),
        ("list.pth", "holds the weights of neither AlexNet nor VGG-16"),
        ("module.pth", "is no file of weights that can be read safely"),
        ("text.pth", "is no file of weights that can be read safely"),
        ("text.safetensors", "is no file of weights that can be read safely"),
        ("none.pth", "does not exist"),
        ("none.safetensors", "does not exist"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            load_lpips(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_layers_are_those_of_the_networks():
    for name in NETWORKS:
        shapes = {i: tuple(m.weight.shape) for i, m in enumerate(features(name)) if isinstance(m, nn.Conv2d)}
        assert {layer.number: layer.shape for layer in NETWORKS[name]} == shapes


def test_a_run_measures_it_only_if_asked(tmp_path):
    write_capture(tmp_path / "ball", size=32)
    plain = experiment(tmp_path / "ball", rounds=0)
    assert "lpips" not in json.dumps(run(plain, tmp_path / "plain"))
    asked = experiment(tmp_path / "ball", rounds=0, lpips=file_of(tmp_path, features("alex")))
    summary = run(asked, tmp_path / "asked")
    assert all(0 < one["lpips"] < 10 for one in summary["views"].values())
    with pytest.raises(UserError, match="does not exist"):
        run(experiment(tmp_path / "ball", lpips=tmp_path / "none.pth"), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    with pytest.raises(ValueError, match="leave out --lpips"):
        preset("maml").__class__(data=Data(), lpips=tmp_path / "x.pth")
