"""A model adapted to data of one's own: a picture, clip or object, or rows of samples; from a run's initialisation and,
for comparison, from a random one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fedfields.adaptation import Adaptation, adapting
from fedfields.config import Experiment, to_json
from fedfields.datasets import SampleData, Samples
from fedfields.datasets.shares import Kind
from fedfields.errors import UserError
from fedfields.fields import FourierMlp, Siren
from fedfields.gallery import save_picture
from fedfields.losses import FieldLoss, render
from fedfields.metrics import psnr
from fedfields.models import Recurrent
from fedfields.runtime.checkpoint import load_weights, save_weights
from fedfields.runtime.evaluation import seen
from fedfields.runtime.onnx_file import write_onnx
from fedfields.runtime.pool import one_thread
from fedfields.runtime.run import clean, load_experiment
from fedfields.runtime.samples import figures, sample_loss, start_params
from fedfields.runtime.start import with_leaves
from fedfields.runtime.tasks import radiance_loss
from fedfields.scenes.clips import CLIP_SUFFIXES, load_clip
from fedfields.scenes.data import Data
from fedfields.scenes.grid import GridSignal
from fedfields.scenes.images import load_image
from fedfields.scenes.monument import PlaceData
from fedfields.scenes.objects import Objects
from fedfields.seeds import generator
from fedfields.store import read_json, write_json
from fedfields.types import Loss, Params, Task


class Personalised(NamedTuple):
    """What came of an adaptation.

    Attributes:
        name: of the data.
        figure: what is measured: "psnr" in dB, "accuracy" or "error".
        curve: the figure by adaptation step, from the run's initialisation.
        local: the same from a random one.
        files: that were written.
        notes: what the user should know.
    """

    name: str
    figure: str
    curve: dict[str, float]
    local: dict[str, float]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()


class _Opened(NamedTuple):
    """Data of one's own, ready to be adapted to.

    Attributes:
        task: support and query.
        loss: of the run.
        fresh: random weights.
        stem: of the files of weights.
        figure: what is measured.
        measure: the figure of weights, on the query.
        shape: of one input of an ONNX file; None if there is none of such a model.
    """

    task: Task
    loss: Loss
    fresh: Params
    stem: str
    figure: str
    measure: Callable[[Params], float]
    shape: tuple[int, ...] | None = None


def personalise(
    run: Path, path: Path, settings: Adaptation, out: Path | None = None, *, onnx: bool = True
) -> Personalised:
    """Adapts the weights of ``run`` to the data at ``path`` and writes weights, figures and, of fields, pictures.

    Args:
        run: a finished run.
        path: a picture, a clip or a folder of frames, the folder of an object, or a file of rows or text; read as the
            run's own data were.
        settings: steps, step size, optimiser, share of samples.
        out: folder; ``run/adapted/NAME`` by default.
        onnx: write a field of pictures or clips, or a model of samples, as ONNX, too.

    Raises:
        UserError: no such run, no such data, or data of another kind than the run's.
    """
    experiment = load_experiment(run)
    if isinstance(experiment.data, PlaceData):
        raise UserError(f"{run} is a run on a place; adapt is for runs on pictures, clips, objects or samples")
    start = load_weights(run / "model.safetensors")
    if isinstance(experiment.data, SampleData):
        opened = _rows(run, path, experiment, start)
    else:
        opened = _visible(path, experiment)
    if {key: leaf.shape for key, leaf in opened.fresh.items()} != {key: leaf.shape for key, leaf in start.items()}:
        raise UserError(f"{path} is not of the kind or shape that {run} was trained on; take another")
    folder = out or run / "adapted" / path.stem
    with one_thread():
        try:
            curve, adapted = _curve(start, opened, settings, experiment.seed)
            local, plain = _curve(opened.fresh, opened, settings, experiment.seed)
        except ValueError as error:
            raise UserError(str(error)) from error
        files = [folder / f"{opened.stem}.safetensors"]
        save_weights(files[0], adapted)
        files += _pictures(folder, opened, adapted, plain)
    notes = []
    if onnx and opened.shape is not None:
        about = f"fedfields: adapted to {path.stem} in {settings.steps} steps, {opened.figure} {_last(curve):.4g}"
        try:
            write_onnx(folder / f"{opened.stem}.onnx", experiment.field, adapted, opened.shape, about)
            files.append(folder / f"{opened.stem}.onnx")
        except UserError as error:
            notes.append(f"{error}; everything else is written (--no-onnx asks for no more)")
    result = Personalised(path.stem, opened.figure, curve, local, (*files, folder / "adapted.json"), tuple(notes))
    write_json(folder / "adapted.json", clean(_record(result, opened.task, settings)))
    return result


def _record(result: Personalised, task: Task, settings: Adaptation) -> dict[str, Any]:
    """Figures before and after, and what they depend on."""
    return {
        "name": result.name,
        "figure": result.figure,
        "before": next(iter(result.curve.values())),
        "after": _last(result.curve),
        "by_step": result.curve,
        "from_random_start": result.local,
        "samples": {"support": len(task.support), "query": len(task.query)},
        "adaptation": to_json(settings),
        "version": version("fedfields"),
    }


def _last(curve: dict[str, float]) -> float:
    return list(curve.values())[-1]


def _curve(start: Params, opened: _Opened, settings: Adaptation, seed: int) -> tuple[dict[str, float], Params]:
    """The figure by step, and the last weights."""
    found, adapted = {}, start
    steps = adapting(start, opened.task.support, opened.loss, settings, generator(seed, "personal"))
    for step, adapted in steps:
        found[str(step)] = opened.measure(adapted)
    return found, adapted


# Pictures, clips and objects.


def _visible(path: Path, experiment: Experiment) -> _Opened:
    """The signal at ``path`` as a task of the run's kind, the loss for it, and random weights."""
    random = generator(experiment.seed, "init")
    if isinstance(experiment.data, Objects):
        loss, shape = radiance_loss(experiment), None
        task = experiment.data.open(path, loss.settings.jitters)
        fresh = experiment.field.init(random)  # pyright: ignore[reportCallIssue]
    else:
        assert isinstance(experiment.data, Data) and isinstance(experiment.field, Siren | FourierMlp)
        signal = read_signal(path, experiment.data)
        shape = (len(signal.shape),)
        fresh = experiment.field.init(shape[0], signal.values.shape[-1], random)
        task, loss = Task(signal, signal, path.stem), FieldLoss(experiment.field)
    truth, fresh = seen(task.query), with_leaves(experiment, fresh, loss)

    def measure(params: Params) -> float:
        return psnr(render(loss, params, truth), truth.values)

    return _Opened(task, loss, fresh, "field", "psnr", measure, shape)


def read_signal(path: Path, data: Data) -> GridSignal:
    """One picture or clip, read at the size that ``data`` says."""
    if path.is_dir() or path.suffix.lower() in CLIP_SUFFIXES:
        return GridSignal(load_clip(path, data.size, data.frames, data.crop))
    return GridSignal(load_image(path, data.size, data.crop))


def _pictures(folder: Path, opened: _Opened, adapted: Params, plain: Params) -> list[Path]:
    """What the adapted field shows, one from a random start, and the truth; of samples there is nothing to see."""
    if opened.figure != "psnr":
        return []
    truth, loss = seen(opened.task.query), opened.loss
    shown = {
        "adapted.png": render(loss, adapted, truth),  # pyright: ignore[reportArgumentType]
        "random-start.png": render(loss, plain, truth),  # pyright: ignore[reportArgumentType]
        "truth.png": truth.values,
    }
    for name, values in shown.items():
        save_picture(folder / name, values)
    return [folder / name for name in shown]


# Samples.


def _rows(run: Path, path: Path, experiment: Experiment, start: Params) -> _Opened:
    """The rows at ``path``, of which the run's share is adapted to and the others judge."""
    assert isinstance(experiment.data, SampleData)
    kind, outputs = _kind(run, experiment.data), len(start["last_layer.bias"])
    loss = sample_loss(experiment, kind)
    client = _reader(experiment.data, kind, outputs, path).own(path, path.stem, experiment.seed)
    task = client.train[0]
    query = task.query.everything()
    if query.inputs.is_floating_point() == isinstance(experiment.field, Recurrent):
        wants = "texts (.txt)" if isinstance(experiment.field, Recurrent) else "rows of numbers (.npz or .csv)"
        raise UserError(f"{path}: the model of {run} reads {wants}")
    if kind == "numbers" and query.targets.shape[1:] != (outputs,):
        raise UserError(f"{path} has {query.targets.shape[1]} numbers in a target, the model of {run} gives {outputs}")
    shape = tuple(query.inputs.shape[1:])
    fresh = start_params(experiment, loss, shape, outputs)
    figure = "accuracy" if kind == "classes" else "error"
    return _Opened(task, loss, fresh, "model", figure, lambda params: figures(loss, params, query)[figure], shape)


def _kind(run: Path, data: SampleData) -> Kind:
    """What the run's targets are, by its settings or else by what it was judged by."""
    told = data.kind if isinstance(data, Samples) else "numbers"
    if told != "auto":
        return "numbers" if told == "numbers" else "classes"
    scores = read_json(run / "summary.json").get("scores") or {}
    return "classes" if "accuracy" in scores else "numbers"


def _reader(data: SampleData, kind: Kind, outputs: int, path: Path) -> Samples:
    """How a file of one client is read: all its classes are one task, also where the run made episodes of them."""
    if not isinstance(data, Samples):
        return Samples(kind="numbers", support=data.shots / (data.shots + data.queries))
    texts = data.kind == "text" or path.suffix.lower() == ".txt"
    support = data.shots / (data.shots + data.queries) if data.ways else data.support
    return dataclasses.replace(data, kind="text" if texts else kind, outputs=outputs, ways=0, support=support)
