"""ONNX files: another runtime computes what the model does, for any batch."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fedfields.errors import UserError
from fedfields.fields import FourierMlp, SimpleNerf, Siren
from fedfields.models import ConvNet, Mlp, Recurrent
from fedfields.runtime.onnx_file import GRAPHS, write_onnx
from fedfields.types import META

CASES = {
    "picture, siren": (Siren(width=24, depth=3), (2,)),
    "clip, siren": (Siren(width=16, depth=2, w0=12.0), (3,)),
    "picture, fourier": (FourierMlp(width=16, depth=2, features=20, seed=3), (2,)),
    "curve, mlp": (Mlp(), (1,)),
    "picture, mlp": (Mlp(width=12, depth=1), (1, 8, 8)),
    "linear": (Mlp(depth=0), (5,)),
    "picture, conv": (ConvNet(filters=8, blocks=3, groups=2), (3, 20, 13)),
    "picture, conv with batch norm": (ConvNet(filters=8, blocks=2, norm="batch"), (1, 9, 14)),
    "text, recurrent": (Recurrent(embedding=4, hidden=12), (9,)),
}


def weights_of(model, shape):
    """Weights far from the first ones, so that no bias or norm is 0 or 1."""
    random = torch.Generator().manual_seed(1)
    field, scale = isinstance(model, Siren | FourierMlp), 0.1 / getattr(model, "w0", 1.0)
    params = model.init(shape[0] if field else shape, 7, random)
    return {key: leaf + scale * torch.randn(leaf.shape, generator=random) for key, leaf in params.items()}


def inputs_of(model, shape, batch, seed=2):
    random = torch.Generator().manual_seed(seed)
    if isinstance(model, Recurrent):
        return torch.randint(7, (batch, *shape), generator=random)
    return 2 * torch.rand(batch, *shape, generator=random) - 1


def test_every_kind_is_among_the_cases():
    assert {type(model) for model, _ in CASES.values()} == set(GRAPHS)


@pytest.mark.parametrize("name", list(CASES))
def test_another_runtime_computes_the_same_for_any_batch(tmp_path, name):
    model, shape = CASES[name]
    params = weights_of(model, shape)
    write_onnx(tmp_path / "m.onnx", model, params, shape)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch in (1, 5):
        x = inputs_of(model, shape, batch)
        (found,) = session.run(None, {"x": x.numpy()})
        wanted = model(params, x).numpy()
        assert found.shape == wanted.shape and np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_text_may_have_any_length(tmp_path):
    model = Recurrent(embedding=3, hidden=8)
    params = weights_of(model, (9,))
    write_onnx(tmp_path / "m.onnx", model, params, (9,))
    x = inputs_of(model, (23,), 2)
    (found,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    np.testing.assert_allclose(found, model(params, x).numpy(), atol=1e-5)


def test_meta_leaves_stay_out(tmp_path):
    params = weights_of(Mlp(), (1,))
    learned = {f"{META}rate.{key}": torch.ones_like(leaf) for key, leaf in params.items()}
    for name, leaves in (("plain", params), ("learned", params | learned)):
        write_onnx(tmp_path / name, Mlp(), leaves, (1,), "adapted in 3 steps")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "learned").read_bytes()
    assert onnx.load(tmp_path / "plain").doc_string == "adapted in 3 steps"


def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no ONNX file of SimpleNerf, only of Siren"):
        write_onnx(tmp_path / "m.onnx", SimpleNerf(), {}, (3,))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r'pip install "fedfields\[onnx\]"'):
        write_onnx(tmp_path / "m.onnx", Mlp(), weights_of(Mlp(), (1,)), (1,))
    assert not list(tmp_path.iterdir())
