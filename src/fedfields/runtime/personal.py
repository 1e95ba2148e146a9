"""A picture, clip or object of one's own, fitted from a run's initialisation and, for comparison, from a random one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fedfields.adaptation import Adaptation, adapting
from fedfields.config import Experiment
from fedfields.errors import UserError
from fedfields.fields import FourierMlp, Siren
from fedfields.gallery import save_picture
from fedfields.losses import FieldLoss, render
from fedfields.metrics import psnr
from fedfields.runtime.checkpoint import load_weights, save_weights
from fedfields.runtime.evaluation import seen
from fedfields.runtime.pool import one_thread
from fedfields.runtime.run import load_experiment
from fedfields.runtime.tasks import radiance_loss
from fedfields.scenes.clips import CLIP_SUFFIXES, load_clip
from fedfields.scenes.data import Data
from fedfields.scenes.grid import GridSignal
from fedfields.scenes.images import load_image
from fedfields.scenes.monument import PlaceData
from fedfields.scenes.objects import Objects
from fedfields.seeds import generator
from fedfields.types import Params, Task, VisibleLoss


class Personalised(NamedTuple):
    """PSNR in dB by step from the run's initialisation and from a random one, and the files written."""

    name: str
    psnr: dict[str, float]
    local: dict[str, float]
    files: tuple[Path, ...]


def personalise(run: Path, path: Path, settings: Adaptation, out: Path | None = None) -> Personalised:
    """Adapts the weights of ``run`` to the signal at ``path`` and writes weights and pictures.

    Args:
        run: a finished run.
        path: a picture, a clip or a folder of frames, or the folder of an object; read as the run's own data were.
        settings: steps, step size, optimiser, share of samples.
        out: folder; ``run/adapted/NAME`` by default.

    Raises:
        UserError: no such run, no such signal, or one of another kind than the run's.
    """
    experiment = load_experiment(run)
    if isinstance(experiment.data, PlaceData):
        raise UserError(f"{run} is a run on a place; adapt is for runs on pictures, clips or objects")
    start = load_weights(run / "model.safetensors")
    task, loss, fresh = _opened(path, experiment)
    if {key: leaf.shape for key, leaf in fresh.items()} != {key: leaf.shape for key, leaf in start.items()}:
        raise UserError(f"{path} is not of the kind that {run} was trained on (pictures or clips); take another")
    folder = out or run / "adapted" / path.stem
    with one_thread():
        curve, adapted, shown = _curve(start, task, loss, settings, experiment.seed)
        local, _, plain = _curve(fresh, task, loss, settings, experiment.seed)
    files = tuple(folder / name for name in ("field.safetensors", "adapted.png", "random-start.png", "truth.png"))
    save_weights(files[0], adapted)
    for file, values in zip(files[1:], (shown, plain, seen(task.query).values), strict=True):
        save_picture(file, values)
    return Personalised(path.stem, curve, local, files)


def _opened(path: Path, experiment: Experiment) -> tuple[Task, VisibleLoss, Params]:
    """The signal at ``path`` as a task of the run's kind, the loss for it, and random weights."""
    random = generator(experiment.seed, "init")
    if isinstance(experiment.data, Objects):
        loss = radiance_loss(experiment)
        task = experiment.data.open(path, loss.settings.jitters)
        return task, loss, experiment.field.init(random)  # pyright: ignore[reportCallIssue]
    assert isinstance(experiment.data, Data) and isinstance(experiment.field, Siren | FourierMlp)
    signal = read_signal(path, experiment.data)
    fresh = experiment.field.init(len(signal.shape), signal.values.shape[-1], random)
    return Task(signal, signal, path.stem), FieldLoss(experiment.field), fresh


def read_signal(path: Path, data: Data) -> GridSignal:
    """One picture or clip, read at the size that ``data`` says."""
    if path.is_dir() or path.suffix.lower() in CLIP_SUFFIXES:
        return GridSignal(load_clip(path, data.size, data.frames, data.crop))
    return GridSignal(load_image(path, data.size, data.crop))


def _curve(start: Params, task: Task, loss: VisibleLoss, settings: Adaptation, seed: int):
    """PSNR by step, the last weights, and what they show."""
    truth = seen(task.query)
    figures, adapted, shown = {}, start, truth.values
    for step, adapted in adapting(start, task.support, loss, settings, generator(seed, "personal")):
        shown = render(loss, adapted, truth)
        figures[str(step)] = psnr(shown, truth.values)
    return figures, adapted, shown
