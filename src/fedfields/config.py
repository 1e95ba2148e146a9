"""An experiment as one value, the table of all members, and the presets: named combinations of parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fedfields.adaptation import Adaptation
from fedfields.datasets import Samples, Sinusoids
from fedfields.errors import UserError
from fedfields.federation import Local, Method
from fedfields.fields import CoarseFine, FourierMlp, HashGrid, LowRank, Nerf, Personal, SimpleNerf, Siren
from fedfields.models import ConvNet, Mlp, Recurrent
from fedfields.objectives import (
    Antithetic,
    Fit,
    HessianFree,
    Inner,
    Maml,
    MeNF,
    Objective,
    Projected,
    Proximal,
    Reptile,
)
from fedfields.optim import Adam, Sgd
from fedfields.privacy import AdaptiveNoise, CentralNoise, DistributedNoise, Noise, SecAgg, Surrogate, Transform
from fedfields.rendering.marching import Marching
from fedfields.rendering.rays import RenderSettings
from fedfields.scenes.data import Data
from fedfields.scenes.monument import Monument, PlaceData
from fedfields.scenes.objects import Objects
from fedfields.scenes.scene import Scene
from fedfields.scenes.town import Town
from fedfields.strategies import (
    FedAcg,
    FedAvg,
    FedExp,
    FedNova,
    FedOpt,
    Learned,
    LossWeighted,
    Robust,
    Scaffold,
    Strategy,
)


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the result of a run."""

    data: Data | Scene | Objects | Monument | Town | Samples | Sinusoids = dataclasses.field(default_factory=Data)
    """Whose pictures, of which place, or of which objects, and who owns which; or samples of any kind."""

    field: Siren | FourierMlp | HashGrid | CoarseFine | Nerf | SimpleNerf | Mlp | ConvNet | Recurrent = (
        dataclasses.field(default_factory=lambda: Siren(width=64, depth=3))
    )
    """The network that stands for a picture or a place, or the model of samples."""

    rays: Marching | RenderSettings = dataclasses.field(default_factory=Marching)
    """How the field of a place or object is rendered; pictures have no use for it."""

    objective: Objective = dataclasses.field(default_factory=Maml)
    """What a client follows."""

    local: Local = dataclasses.field(default_factory=lambda: Local(steps=2, lr=0.03))
    """Local training in one visit."""

    strategy: Strategy = dataclasses.field(default_factory=FedAvg)
    """What the server does with the sum."""

    privacy: tuple[Transform, ...] = ()
    """What protects a client, in this order."""

    adaptation: Adaptation = dataclasses.field(default_factory=Adaptation)
    """How owners fit the field to a signal afterwards, and how the result is judged."""

    rounds: int = 200
    """Number of rounds R; 0 judges the random initialisation."""

    cohort: int = 5
    """Clients in a round, M; all of them if there are fewer."""

    weighting: Literal["uniform", "size", "loss"] = "uniform"
    """A client's weight in the sum: one, its number of training signals (the official FedMeNF code), or the inverse of
    its query loss, between a fifth and five times that of a client of mean loss."""

    evaluate_every: int = 50
    """Rounds between evaluations of quality and privacy; the first and the last round are always evaluated."""

    checkpoint_every: int = 1
    """Rounds between checkpoints, and so the most that a crash can cost; the last round always leaves one."""

    seconds: float | None = None
    """Budget of training in seconds of wall-clock time; instead of rounds, it ends with the round that spends it. A
    warm-up is not counted."""

    seed: int = 0
    """Seed of everything random."""

    workers: int = 0
    """Worker processes; 0 decides after timing the first visit. The result does not depend on it."""

    runtime: Literal["inprocess", "flower"] = "inprocess"
    """Who calls the clients of a simulation: fedfields itself, or Flower's engine with Ray, which spreads them over the
    machines of a cluster (RAY_ADDRESS) and costs more for each message. The result does not depend on it."""

    warm_up: int = 0
    """Outer steps of local.lr that the server takes on the public photographs of a place (--data.public) before the
    first round."""

    compression: LowRank | None = None
    """How the weights of a field of a place are made smaller for the way; none sends them as they are."""

    personal: Personal | None = None
    """A field of each owner's own beside the shared one of a place, for what only that owner's photographs show; it
    never leaves the owner."""

    max_norm: float = 0.0
    """Largest norm of a client's update; a larger one is dropped, counted and named; 0 for no bound. Under sec-agg,
    where nobody could look, an honest client drops out by itself."""

    lpips: Path | None = None
    """Weights of AlexNet or VGG-16, as torchvision publishes them: judge test photographs by LPIPS, too."""

    sampling: Literal["fixed", "poisson"] = "fixed"
    """A round's clients: exactly cohort of them, or each by itself with the probability that gives cohort on average,
    which differential privacy accounts for more tightly."""

    noise: Literal["seed", "secure"] = "seed"
    """Where noise comes from: the seed, so that the run can be repeated, and whoever knows the seed can take the noise
    away; or the operating system's entropy, for weights that are given away: cohorts are drawn from it, too."""

    patience: int = 0
    """Runs on samples: training ends when so many evaluations in a row are no better for the validation clients after
    adaptation, and the best weights so far are the result; 0 trains to the end."""

    delta: float | None = None
    """Delta of the differential privacy that noise gives; by default N^-1.1 for N training clients, at most 0.1."""

    def __post_init__(self) -> None:
        for name, least in (
            ("rounds", 0),
            ("cohort", 1),
            ("evaluate_every", 1),
            ("checkpoint_every", 1),
            ("workers", 0),
            ("warm_up", 0),
            ("max_norm", 0),
            ("patience", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if self.warm_up and not getattr(self.data, "public", 0):
            raise ValueError(
                f"warm-up is {self.warm_up}, but there are no public photographs to train on; give a place some with "
                "--data.public, or say --warm-up 0"
            )
        if self.lpips is not None and not isinstance(self.data, PlaceData):
            raise ValueError("LPIPS judges photographs of places; leave out --lpips for pictures, clips and objects")
        self._check_noise()
        sums = self.method.sums
        if sums is not None and self.cohort < sums.minimum:
            raise ValueError(
                f"sec-agg sums at least {sums.minimum} reports, but cohort is {self.cohort}; raise --cohort"
            )
        least = getattr(self.strategy, "least", 1)
        if self.cohort < least:
            raise ValueError(f"{self.strategy.rule} needs at least {least} clients in a round, cohort is {self.cohort}")  # pyright: ignore

    def _check_noise(self) -> None:
        """What its guarantee rests on, but for what `Method` checks itself."""
        if self.weighting != "uniform" and any(t.uniform_weights for t in self.privacy):
            raise ValueError("noise hides a client only among equals: use --weighting uniform with privacy:noise")
        if self.delta is not None and not 0 < self.delta < 1:
            raise ValueError(f"delta is {self.delta}; it must lie between 0 and 1")
        if self.sampling == "poisson" and not (self.strategy.sums_only and self.method.sums is None):
            who = "sec-agg" if self.strategy.sums_only else type(self.strategy).__name__
            raise ValueError(f"{who} needs a known number of clients in each round; use --sampling fixed")
        for noise in (part for part in self.privacy if isinstance(part, DistributedNoise)):
            if self.cohort < noise.honest or self.sampling == "poisson":
                raise ValueError(
                    f"distributed noise counts on {noise.honest} honest clients in each round; use --sampling fixed "
                    f"and a cohort of at least {noise.honest}, or fewer honest ones"
                )
        _ = self.method  # It refuses parts that do not go together.

    @property
    def method(self) -> Method:
        """The parts that make the federated method."""
        strategy = LossWeighted(self.strategy) if self.weighting == "loss" else self.strategy  # pyright: ignore
        return Method(self.objective, self.local, strategy, self.privacy)


_INNER = Inner(steps=8, lr=0.1, batch=512)
_MAML = Maml(_INNER, outer_batch=1024)
_FOMAML = dataclasses.replace(_MAML, first_order=True)

OBJECTIVES: dict[str, Objective] = {
    "fit": Fit(batch=1024),
    "maml": _MAML,
    "fomaml": _FOMAML,
    "meta-sgd": Maml(dataclasses.replace(_INNER, learn_rates=True), outer_batch=1024),
    "hessian-free": HessianFree(_INNER, outer_batch=1024),
    "reptile": Reptile(_INNER),
    "menf": MeNF(_MAML),
    "meta-nsgd": Reptile(dataclasses.replace(_INNER, steps=20, proximal=0.4), scale=0.4),
    "projected": Projected(_MAML),
    "antithetic": Antithetic(_MAML),
    "proximal": Proximal(_MAML),
}

STRATEGIES: dict[str, Strategy] = {
    "fedavg": FedAvg(),
    "fedavgm": FedAvg(momentum=0.9),
    "fedprox": FedAvg(),
    "fednova": FedNova(),
    "fedexp": FedExp(),
    "fedacg": FedAcg(),
    "fedadam": FedOpt("adam"),
    "fedyogi": FedOpt("yogi"),
    "fedadagrad": FedOpt("adagrad"),
    "scaffold": Scaffold(),
    "learned": Learned(),
    "median": Robust("median"),
    "trimmed-mean": Robust("trimmed-mean"),
    "krum": Robust("krum"),
    "multi-krum": Robust("multi-krum"),
    "geometric-median": Robust("geometric-median"),
    "clipped-mean": Robust("clipped-mean"),
}

PULLS = {"fedprox": 0.1, "fedacg": 1e-3}
"""Strategies whose clients also add ``mu (w - anchor)``: the objective is wrapped in ``Proximal``."""

PRIVACY: dict[str, Transform] = {
    "noise": Noise(),
    "central-noise": CentralNoise(),
    "adaptive-noise": AdaptiveNoise(),
    "distributed-noise": DistributedNoise(),
    "surrogate": Surrogate("own"),
    "public-surrogate": Surrogate("public"),
    "sec-agg": SecAgg(),
}

FIELDS: dict[str, Siren | FourierMlp] = {
    "siren": Siren(width=64, depth=3),
    "fourier-mlp": FourierMlp(width=64),
}

RADIANCE_FIELDS: dict[str, HashGrid | CoarseFine | Nerf | SimpleNerf] = {
    "hash-grid": HashGrid(),
    "coarse-fine": CoarseFine(),
    "nerf": Nerf(),
    "simple-nerf": SimpleNerf(),
}

MODELS: dict[str, Mlp | ConvNet | Recurrent] = {"mlp": Mlp(), "conv-net": ConvNet(), "recurrent": Recurrent()}

RAYS: dict[str, Marching | RenderSettings] = {"marched": Marching(), "dense": RenderSettings()}

OPTIMIZERS: dict[str, Sgd | Adam] = {"sgd": Sgd(), "momentum": Sgd(momentum=0.9), "adam": Adam()}

COMPRESSION: dict[str, LowRank] = {"low-rank": LowRank()}

PERSONAL: dict[str, Personal] = {"own-field": Personal()}

PLACES: dict[str, PlaceData] = {
    "monument": Monument(),
    "town": Town(),
    "capture": Scene(clients=20, partition="separate"),
}

DATA: dict[str, PlaceData | Samples | Sinusoids] = {**PLACES, "samples": Samples(), "sinusoids": Sinusoids()}

AXES: dict[str, Mapping[str, Any]] = {
    "objective": OBJECTIVES,
    "strategy": STRATEGIES,
    "privacy": PRIVACY,
    "field": FIELDS | RADIANCE_FIELDS | MODELS,
    "rays": RAYS,
    "local-optimizer": OPTIMIZERS,
    "adapt-optimizer": OPTIMIZERS,
    "compression": COMPRESSION,
    "personal": PERSONAL,
    "data": DATA,
}
"""Every choice that has a name, by axis: ``strategy:fednova`` on the command line."""

PRESETS: dict[str, tuple[Experiment, str]] = {}
"""Experiments by name, each with a line that says what it is."""


def _preset(name: str, about: str, **changes: Any) -> None:
    PRESETS[name] = (Experiment(**changes), about)


_preset("local", "no federation: every owner starts from the random initialisation", rounds=0)
_preset(
    "maml",
    "MAML with FedAvg: best quality of the classical methods, uploads give pictures away",
    objective=_MAML,
)
_preset("fomaml", "MAML without second derivatives: three times cheaper", objective=_FOMAML)
_preset(
    "reptile",
    "Reptile with FedAvg: cheap, and the uploads give pictures away most of all",
    objective=OBJECTIVES["reptile"],
    local=Local(steps=2, lr=0.5),
)
_preset(
    "meta-nsgd",
    "meta-NSGD (Zhou and Bassily 2022): proximal task gradients, clipped and noised by the client",
    objective=OBJECTIVES["meta-nsgd"],
    local=Local(steps=2, lr=0.7, clip=1.0),
    privacy=(Noise(clip=0.1, ratio=1.0),),
)
_preset(
    "fedmenf",
    "FedMeNF (ICCV 2025), the faithful loss L(phi_K) - gamma L(w); see README for what it does not hide",
    objective=MeNF(_MAML, gamma=0.75),
    local=Local(steps=2, lr=1e-3),
)
_preset(
    "surrogate",
    "MAML on textures with ten statistics of each picture: the picture itself is not in the uploads",
    objective=_MAML,
    privacy=(Surrogate("own"),),
)
_preset(
    "public",
    "MAML on textures from public ranges: nothing about any picture is in the uploads",
    objective=_MAML,
    privacy=(Surrogate("public"),),
)
_preset(
    "noised",
    "MAML, each update clipped and hidden in Gaussian noise by its owner",
    objective=_MAML,
    privacy=(Noise(clip=0.02, ratio=3.0),),
)
_preset(
    "dp-fedavg",
    "MAML with DP-FedAvg (McMahan et al. 2018): the server noises the sum before it publishes the weights",
    objective=_MAML,
    privacy=(CentralNoise(clip=0.05, multiplier=1.0),),
    sampling="poisson",
)
_preset("projected", "experimental: MAML without its component along grad L(w)", objective=Projected(_MAML))
_preset(
    "antithetic",
    "experimental: MAML averaged over the picture and its mirror image",
    objective=Antithetic(_MAML),
)

_NGP: dict[str, Any] = {
    "data": Scene(),
    "field": HashGrid(),
    "objective": Fit(batch=2048),
    "local": Local(steps=50, lr=1e-2, clip=0.0, optimizer=Adam(0.9, 0.99, 1e-15), keep_state=True, final=0.03),
    "rounds": 100,
    "cohort": 1,
    "evaluate_every": 20,
}
_preset("nerf", "one place in posed photographs, trained in one place: a hash grid", **_NGP)
_preset(
    "fedavg-ngp",
    "the same place, photographs shared out among owners: hash grids, averaged",
    **_NGP | {"data": Scene(clients=4), "cohort": 4},
)
# The size of the paper's code: --width 128 --samples 64 --fine 128 --objective.batch 1024 --local.lr 5e-3
# --local.steps 1000 --warm-up 20000, on pictures of 400 pixels; this one keeps the proportions on two cores.
_preset(
    "fednerf",
    "FedNeRF (Holden et al. 2023): coarse and fine NeRF, warmed up on public photographs; Adam stays with the owners",
    data=Scene(clients=4, public=20),
    field=CoarseFine(Nerf(width=64)),
    rays=RenderSettings(samples=32, fine=32),
    objective=Fit(batch=256),
    local=Local(steps=50, lr=2e-3, clip=0.0, optimizer=Adam(), keep_state=True, final=0.1),
    rounds=20,
    cohort=4,
    weighting="size",
    evaluate_every=5,
    warm_up=1000,
)

# Measured on lego with three people before each of 20 owners, 720 steps each: 36 rounds of 20 steps 22.6 dB, 12 of 60
# 21.5; momentum 0 instead of 0.5 21.5; an occupancy grid that is looked at every 60 steps instead of 20 20.1. The own
# part joins after 100 steps: 23.3 dB; 22.6 after 180, 22.7 after 40; after 1,000 of 4,000 the people are there to stay.
# A density that costs 1e-3 was best there (23.3 dB; 0.003 23.0, 0.01 21.3). The monument needs more of both, or own
# parts swallow it: 60 rounds with 1e-3 after 100 steps 20.6 dB, with 0.003 22.6, with 0.003 after 180 steps 23.4.
_DECENT: dict[str, Any] = _NGP | {
    "data": Monument(),
    "field": HashGrid(levels=8, log2_rows=14, coarsest=12, finest=160),
    "rays": Marching(steps=200, samples=2048, cells=48, refresh=20),
    "objective": Fit(batch=256),
    "local": Local(steps=20, lr=1e-2, clip=0.0, optimizer=Adam(0.9, 0.99, 1e-15), keep_state=True, final=0.1),
    "strategy": Learned(base=FedAvg(momentum=0.5)),
    "privacy": (SecAgg(),),
    "personal": Personal(after=0.15, weight=0.003),
    "rounds": 60,
    "cohort": 20,
    "evaluate_every": 20,
}
_preset(
    "decentnerf",
    "DecentNeRF (2024): the place is shared, people stay in a field of each owner's own; learned weights, secure sums",
    **_DECENT,
)
# What it is compared with, on the same photographs and with the same number of steps in all.
_AVERAGED: dict[str, Any] = _DECENT | {"strategy": _DECENT["strategy"].base}
_ONE_CLIENT: dict[str, Any] = _DECENT | {"strategy": FedAvg(), "privacy": (), "cohort": 1}
_POOLED: dict[str, Any] = _ONE_CLIENT | {
    "data": Monument(sharing="pooled"),
    "local": dataclasses.replace(_DECENT["local"], steps=_DECENT["cohort"] * _DECENT["local"].steps),
    "rays": dataclasses.replace(_DECENT["rays"], refresh=100),  # Nobody else moves its weights.
}
_preset("decentnerf-l", "DecentNeRF without learned weights, DecentNeRF(-L): averages by FedAvg", **_AVERAGED)
_preset(
    "fednerf-ngp",
    "FedNeRF with the field, data and steps of decentnerf: one field for everything, uploads in the open",
    **_AVERAGED | {"privacy": (), "personal": None},
)
# Its own part: on the lego scene (32 pixels, 3,000 steps in all, one seed) 13.3 dB without one, 12.5 with codes alone,
# 13.7 with uncertainty alone, 15.7 with both, and 16.7 with both from the start, as NeRF-W has it.
_preset(
    "nerf-w",
    "NeRF-W (2021): one client has the photographs of all owners of decentnerf, and takes the steps of all",
    **_POOLED | {"personal": dataclasses.replace(_DECENT["personal"], after=0.0, codes=8, beta=0.03, weight=0.01)},
)
_preset(
    "nerf-owners",
    "one client has the photographs of all owners of decentnerf, knows whose each is, and has an own part for each",
    **_POOLED | {"data": Monument(sharing="grouped"), "personal": dataclasses.replace(_DECENT["personal"], after=0.0)},
)
_preset(
    "nerf-pooled",
    "one client has the photographs of all owners of decentnerf, and one field for everything",
    **_POOLED | {"personal": None},
)
_preset(
    "nerf-alone",
    "no federation: what the first owner of decentnerf gets from its own photographs, in its own steps",
    **_ONE_CLIENT | {"data": Monument(sharing="alone"), "personal": None},
)

# Samples: all of these take inner steps and steps of adaptation of the same size: they differ in the method alone.
_STEP = Inner(steps=1, lr=0.1, batch=0, clip=0.0)
_STEPS = dataclasses.replace(_STEP, steps=3)
_SAMPLES: dict[str, Any] = {
    "data": Samples(),
    "field": Mlp(width=64, depth=2),
    "rounds": 300,
    "cohort": 8,
    "evaluate_every": 10,
    "patience": 10,
    "adaptation": Adaptation(steps=8, lr=0.1, batch=0, clip=0.0),
}
_MODELS: dict[str, Any] = _SAMPLES | {"objective": Fit(batch=16), "local": Local(steps=8, lr=0.05, clip=0.0)}
_GRADIENTS: dict[str, Any] = _SAMPLES | {"local": Local(steps=1, lr=1.0, clip=0.0), "strategy": FedOpt("adam", lr=3e-3)}
_preset(
    "fedavg-tuned",
    "samples: FedAvg, then fine-tuning at each client",
    **_MODELS,
)
_preset(
    "fedreptile",
    "samples: FedAvg with many local steps is Reptile (Jiang et al. 2019); the server's step falls from 1 to 0",
    **_MODELS | {"local": Local(steps=16, lr=0.05, clip=0.0), "strategy": FedAvg(final=0.01)},
)
_preset(
    "per-fedavg",
    "samples: Per-FedAvg (Fallah et al. 2020), first order: models travel, each step looks one step ahead",
    **_MODELS | {"objective": Maml(_STEP, outer_batch=16, first_order=True)},
)
_preset(
    "per-fedavg-hf",
    "samples: Per-FedAvg, Hessian-free: second derivatives by differences of gradients",
    **_MODELS | {"objective": HessianFree(_STEP, outer_batch=16)},
)
_preset(
    "fedmeta-fomaml",
    "samples: FedMeta (Chen et al. 2018) with FOMAML: meta-gradients travel, the server takes an Adam step",
    **_GRADIENTS | {"objective": Maml(_STEPS, first_order=True)},
)
_preset("fedmeta-maml", "samples: FedMeta with MAML", **_GRADIENTS | {"objective": Maml(_STEPS)})
_preset(
    "fedmeta-sgd",
    "samples: FedMeta with Meta-SGD: a learned step size for each weight travels, too",
    **_GRADIENTS | {"objective": Maml(dataclasses.replace(_STEPS, learn_rates=True))},
)

_ADAM = Local(steps=2, lr=3e-3, optimizer=Adam())
_OBJECTS: dict[str, Any] = {
    "data": Objects(),
    "field": SimpleNerf(width=64, depth=4),
    "rays": RenderSettings(samples=32),
    "adaptation": Adaptation(lr=2.0, batch=128),
}


def _with_rays(objective: Any) -> Any:
    """The objective for radiance fields: batches of 128 rays (the official FedMeNF code), longer inner steps."""
    changes: dict[str, Any] = {}
    for part in dataclasses.fields(objective):
        value = getattr(objective, part.name)
        if part.name in ("batch", "outer_batch"):
            changes[part.name] = 128
        elif isinstance(value, Inner | Objective):
            changes[part.name] = _with_rays(value)
    if isinstance(objective, Inner):
        changes["lr"] = 2.0
    return dataclasses.replace(objective, **changes)


for _name, _local in {
    "local": {},
    "maml": {"local": _ADAM},
    "fomaml": {"local": _ADAM},
    "reptile": {},
    "meta-nsgd": {},
    "fedmenf": {"local": dataclasses.replace(_ADAM, lr=1e-4)},
    "noised": {"local": _ADAM},
    "public": {"local": _ADAM},
    "projected": {"local": _ADAM},
    "antithetic": {"local": _ADAM},
}.items():
    _of_pictures, _ = PRESETS[_name]
    _changes = _OBJECTS | _local | {"objective": _with_rays(_of_pictures.objective)}
    PRESETS[f"{_name}-3d"] = (
        dataclasses.replace(_of_pictures, **_changes),
        f"{_name} on a set of objects in posed photographs",
    )


def choose(experiment: Experiment, axis: str, name: str) -> Experiment:
    """The experiment with the named member on one axis; members of "privacy" are added to those chosen before.

    Raises:
        UserError: no such axis or member, and the line names the nearest ones; or it does not go with the other parts.
    """
    try:
        return _chosen(experiment, axis, name)
    except ValueError as error:
        raise UserError(str(error)) from error


def _chosen(experiment: Experiment, axis: str, name: str) -> Experiment:
    if axis not in AXES:
        raise UserError(f"there is no axis '{axis}'; {nearest(axis, AXES)}")
    key = name.lower().replace("_", "-")
    squeezed = {member.replace("-", ""): member for member in AXES[axis]}
    key = squeezed.get(key.replace("-", ""), key)
    if key not in AXES[axis]:
        raise UserError(f"there is no {axis} '{name}'; {nearest(key, AXES[axis])}")
    member = AXES[axis][key]
    if axis == "privacy":
        privacy = sorted((*experiment.privacy, member), key=lambda part: isinstance(part, SecAgg))  # It comes last.
        return dataclasses.replace(experiment, privacy=tuple(privacy))
    if axis == "data" and isinstance(member, PlaceData) and isinstance(experiment.data, PlaceData):
        member = dataclasses.replace(member, sharing=experiment.data.sharing)  # That is the method's, wherever it is.
    if axis == "local-optimizer":
        return dataclasses.replace(experiment, local=dataclasses.replace(experiment.local, optimizer=member))
    if axis == "adapt-optimizer":
        adaptation = dataclasses.replace(experiment.adaptation, optimizer=member)
        return dataclasses.replace(experiment, adaptation=adaptation)
    experiment = dataclasses.replace(experiment, **{axis: member})
    if axis == "strategy" and key in PULLS:
        return dataclasses.replace(experiment, objective=Proximal(experiment.objective, PULLS[key]))
    return experiment


def preset(name: str) -> Experiment:
    """The preset of this name; a typo is one clear line."""
    if name not in PRESETS:
        raise UserError(f"there is no preset '{name}'; {nearest(name, PRESETS)}")
    return PRESETS[name][0]


def nearest(word: str, choices: Mapping[str, Any]) -> str:
    """ "did you mean X? (choices: ...)" for a word that is not among the choices."""
    import difflib

    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    listed = "choose from " + ", ".join(choices)
    return f"did you mean '{close[0]}'? ({listed})" if close else listed


CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        *(
            Experiment,
            Data,
            Scene,
            Monument,
            Town,
            Objects,
            Samples,
            Sinusoids,
            Mlp,
            ConvNet,
            Recurrent,
            Local,
            Adaptation,
            Inner,
            Sgd,
            Adam,
        ),
        *(Siren, FourierMlp, HashGrid, CoarseFine, Nerf, SimpleNerf, LowRank, Personal, Marching, RenderSettings),
        *(Fit, Maml, HessianFree, Reptile, MeNF, Proximal, Projected, Antithetic),
        *(FedAvg, FedNova, FedExp, FedAcg, FedOpt, Scaffold, Learned, Robust),
        *(Noise, CentralNoise, AdaptiveNoise, DistributedNoise, SecAgg, Surrogate),
    )
}


def to_json(value: Any) -> Any:
    """A configuration as plain JSON values; dataclasses carry their name under "type"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(value: Any, where: str = "experiment") -> Any:
    """The inverse of :func:`to_json`; only the classes of this library are ever built.

    Raises:
        UserError: an unknown type or field, or a value that its class refuses.
    """
    if isinstance(value, list):
        return tuple(from_json(item, where) for item in value)
    if not isinstance(value, dict):
        return value
    kind = CLASSES.get(str(value.get("type")))
    if kind is None:
        raise UserError(f"{where} has a part of unknown type {value.get('type')!r}; was it made by a newer version?")
    hints = get_type_hints(kind)
    given = {key: from_json(item, f"{where}.{key}") for key, item in value.items() if key != "type"}
    try:
        for key in given.keys() & hints.keys():
            if Path in (hints[key], *get_args(hints[key])) and given[key] is not None:
                given[key] = Path(given[key])
            if not _fits(given[key], hints[key]):
                raise ValueError(f"{key} is {given[key]!r:.80}")
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} cannot be read: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value read from JSON is of the type that a field of a dataclass has."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1:] == (...,) and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    return isinstance(value, hint)
