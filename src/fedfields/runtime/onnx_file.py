"""Fields and models as ONNX files, which other programs and other languages run without us.

The graphs are written with ONNX's own operators instead of being traced by torch's exporter. That one needs two more
packages and some 20 s to unroll a recurrent network for one batch size and one length, and stops at our sine kernel and
at generators. Here the batch and the length of a text are free, and a file takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedfields import tree
from fedfields.errors import UserError
from fedfields.fields import FourierMlp, Siren
from fedfields.models import ConvNet, Mlp, Recurrent
from fedfields.store import writing
from fedfields.types import Params

OPSET, IR = 17, 8
"""Versions of operators and format, of 2022: old enough for the runtimes that are in use."""

EPSILON = 1e-5
"""Of normalisations, as torch has it by default."""


def write_onnx(path: Path, model: Any, params: Params, shape: Sequence[int], about: str = "") -> None:
    """Writes ``model`` with the weights ``params``; meta leaves are no part of it.

    Input "x" is ``[batch, *shape]``, float32, or ``[batch, length]``, int64 tokens, of a recurrent network. Output "y"
    is what the model gives: colours, numbers or logits.

    Args:
        path: of the file.
        model: a field of pictures and clips, or a model of samples.
        params: its weights.
        shape: of one input, without the batch.
        about: a line that goes with it.

    Raises:
        UserError: the package onnx is not there, or the model has no ONNX form here.
    """
    build = GRAPHS.get(type(model))
    if build is None:
        known = ", ".join(kind.__name__ for kind in GRAPHS)
        raise UserError(f"there is no ONNX file of {type(model).__name__}, only of {known}")
    try:
        import onnx
    except ImportError as error:
        raise UserError('an ONNX file needs the package onnx: pip install "fedfields[onnx]"') from error
    graph = _Graph(tree.parted(params)[0])
    build(graph, model, shape)
    content = _assembled(graph, model, shape, about)
    onnx.checker.check_model(content, full_check=True)
    with writing(path) as temporary:
        temporary.write_bytes(content)


def _assembled(graph: _Graph, model: Any, shape: Sequence[int], about: str) -> bytes:
    """The file of a graph whose last node is the output."""
    from onnx import TensorProto, helper, numpy_helper

    kind, free, fixed = TensorProto.FLOAT, ["batch"], shape
    if isinstance(model, Recurrent):
        kind, free, fixed = TensorProto.INT64, ["batch", "length"], ()
    inputs = helper.make_tensor_value_info("x", kind, [*free, *fixed])
    outputs = helper.make_tensor_value_info("y", TensorProto.FLOAT, [*free, graph.outputs])
    nodes = [helper.make_node(kind, names, [name], **more) for kind, names, name, more in graph.nodes]
    nodes[-1].output[0] = "y"
    tensors = [numpy_helper.from_array(values, name) for name, values in graph.constants.items()]
    whole = helper.make_model(
        helper.make_graph(nodes, type(model).__name__, [inputs], [outputs], tensors),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="fedfields",
        doc_string=about,
    )
    return whole.SerializeToString()


class _Graph:
    """Nodes one after another, each on the output of the one before; and what is constant."""

    def __init__(self, weights: Params) -> None:
        self.weights = weights
        self.nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
        self.constants: dict[str, np.ndarray] = {}
        self.last, self.outputs = "x", 0

    def then(self, kind: str, *others: str, on: str = "", **settings: Any) -> str:
        """An operator on the last output (or ``on``) and on constants; the name of its output."""
        name = f"{kind.lower()}.{len(self.nodes)}"
        self.nodes.append((kind, [on or self.last, *others], name, settings))
        self.last = name
        return name

    def constant(self, name: str, values: Tensor | Sequence[int] | float) -> str:
        """A constant under this name: float32, or int64 of whole numbers."""
        whole = not isinstance(values, Tensor | float)
        self.constants[name] = np.asarray(values, np.int64 if whole else np.float32)
        return name

    def weight(self, name: str) -> str:
        """A weight under its own name."""
        return self.constant(name, self.weights[name])

    def linear(self, name: str, bias: str = "") -> None:
        """``W x + b`` over the last axis of ``[batch, in]``."""
        self.then("Gemm", self.weight(f"{name}.weight"), bias or self.weight(f"{name}.bias"), transB=1)
        self.outputs = len(self.weights[f"{name}.bias"])


def _siren(graph: _Graph, field: Siren, shape: Sequence[int]) -> None:
    for i in range(field.depth):
        graph.linear(f"layers.{i}")
        graph.then("Mul", graph.constant("w0", float(field.w0)))
        graph.then("Sin")
    graph.linear("last_layer", graph.constant("last_layer.bias", graph.weights["last_layer.bias"] + 0.5))


def _fourier(graph: _Graph, field: FourierMlp, shape: Sequence[int]) -> None:
    graph.then("Mul", graph.constant("two_pi", 2 * math.pi))
    angles = graph.then("MatMul", graph.constant("frequencies", field.frequencies(shape[0]).T))
    waves = [graph.then(kind, on=angles) for kind in ("Cos", "Sin")]
    graph.then("Concat", waves[1], on=waves[0], axis=1)
    for i in range(field.depth):
        graph.linear(f"layers.{i}")
        graph.then("Relu")
    graph.linear(f"layers.{field.depth}")
    graph.then("Sigmoid")


def _mlp(graph: _Graph, model: Mlp, shape: Sequence[int]) -> None:
    graph.then("Flatten", axis=1)
    for name in model.widths:
        graph.linear(name)
        graph.then("Relu")
    graph.linear("last_layer")


def _conv_net(graph: _Graph, model: ConvNet, shape: Sequence[int]) -> None:
    height, width = shape[1:]
    for i, name in enumerate(model.widths):
        kernel, bias = graph.weight(f"{name}.conv.weight"), graph.weight(f"{name}.conv.bias")
        graph.then("Conv", kernel, bias, pads=[1, 1, 1, 1])
        norm = _batch_norm if model.norm == "batch" else _group_norm
        norm(graph, model, f"{name}.norm", (height >> i, width >> i))
        graph.then("Relu")
        graph.then("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    graph.then("Flatten", axis=1)
    graph.linear("last_layer")


def _group_norm(graph: _Graph, model: ConvNet, name: str, size: tuple[int, int]) -> None:
    """That of instances whose channels are the groups, as ONNX itself defines it."""
    ones, zeros = graph.constant("ones", torch.ones(model.groups)), graph.constant("zeros", torch.zeros(model.groups))
    graph.then("Reshape", graph.constant("grouped", [0, model.groups, -1]))
    graph.then("InstanceNormalization", ones, zeros, epsilon=EPSILON)
    graph.then("Reshape", graph.constant(f"{name}.size", [0, model.filters, *size]))
    for kind, part in (("Mul", "weight"), ("Add", "bias")):
        by_channel = graph.weights[f"{name}.{part}"].view(-1, 1, 1)
        graph.then(kind, graph.constant(f"{name}.{part}", by_channel))


def _batch_norm(graph: _Graph, model: ConvNet, name: str, size: tuple[int, int]) -> None:
    """By the statistics of the batch that is asked about: that of one instance with all samples side by side."""
    graph.then("Transpose", perm=[1, 0, 2, 3])
    graph.then("Reshape", graph.constant("side_by_side", [1, model.filters, -1]))
    graph.then("InstanceNormalization", graph.weight(f"{name}.weight"), graph.weight(f"{name}.bias"), epsilon=EPSILON)
    graph.then("Reshape", graph.constant(f"{name}.size", [model.filters, -1, *size]))
    graph.then("Transpose", perm=[1, 0, 2, 3])


def _recurrent(graph: _Graph, model: Recurrent, shape: Sequence[int]) -> None:
    """ONNX's unit is torch's (``linear_before_reset``) with the update gate before the reset gate."""

    def gates(name: str) -> Tensor:
        reset, update, new = graph.weights[name].chunk(3)
        return torch.cat([update, reset, new])[None]

    biases = torch.cat([gates("input.bias"), gates("recurrent.bias")], 1)
    graph.then("Gather", "x", on=graph.weight("embedding.weight"))
    graph.then("Transpose", perm=[1, 0, 2])
    graph.then(
        "GRU",
        *(graph.constant(f"{name}.weight", gates(f"{name}.weight")) for name in ("input", "recurrent")),
        graph.constant("biases", biases),
        hidden_size=model.hidden,
        linear_before_reset=1,
    )
    graph.then("Squeeze", graph.constant("directions", [1]))
    graph.then("Transpose", perm=[1, 0, 2])
    graph.then("MatMul", graph.constant("last_layer.weight", graph.weights["last_layer.weight"].T))
    graph.then("Add", graph.weight("last_layer.bias"))
    graph.outputs = len(graph.weights["last_layer.bias"])


GRAPHS: dict[type, Callable[[_Graph, Any, Sequence[int]], None]] = {
    Siren: _siren,
    FourierMlp: _fourier,
    Mlp: _mlp,
    ConvNet: _conv_net,
    Recurrent: _recurrent,
}
"""What can be written, and how."""
