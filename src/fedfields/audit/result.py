"""Figures and recovered pictures of an audit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedfields.audit.readouts import Readout
from fedfields.gallery import Cell
from fedfields.metrics import psnr

SHOWN_FIRST = (
    "public",
    "direct",
    "scaled",
    "picture",
    "picture_best",
    "difference",
    "jacobian",
    "ntk",
    "learned",
    "matching_unknown",
    "newton_unknown",
    "newton_known",
    "polished_unknown",
    "polished_known",
)
"""Columns of the contact sheet, as far as there are pictures: "public" is a floor, the others were tried."""

QUICK = ("direct", "affine", "difference", "two_regressors", "jacobian", "extrapolation", "extrapolation_affine")
"""The render family."""


@dataclass
class AuditResult:
    """PSNR in dB by attack (or floor) and client, and the pictures ``[*shape, C]`` that the attacks recovered."""

    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    oracles: set[str] = field(default_factory=set)
    pictures: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def enter(self, attack: str, client: str, readout: Readout, truth: Tensor) -> None:
        """Adds what one attack recovered of one client; values that are not finite count as grey."""
        values = torch.nan_to_num(readout.values.detach(), nan=0.5, posinf=1.0, neginf=0.0).reshape(truth.shape)
        self.figures.setdefault(attack, {})[client] = psnr(values, truth)
        self.pictures.setdefault(attack, {})[client] = values
        self.pictures.setdefault("truth", {})[client] = truth
        if readout.oracle:
            self.oracles.add(attack)

    def enter_floor(self, name: str, client: str, values: Tensor, truth: Tensor) -> None:
        """Adds what could be had of one client without its upload."""
        self.floors.setdefault(name, {})[client] = psnr(values.reshape(truth.shape), truth)
        self.pictures.setdefault(name, {})[client] = values.reshape(truth.shape)

    @property
    def worst(self) -> dict[str, float]:
        """For each client the best that any attack recovered of it: an attacker chooses per client."""
        clients = {client for figures in self.figures.values() for client in figures}
        return {
            client: max(figures[client] for figures in self.figures.values() if client in figures)
            for client in sorted(clients)
        }

    @property
    def leak(self) -> dict[str, float]:
        """Mean over clients of each attack, and of the worst one per client under "worst"."""
        means = {attack: _mean(figures) for attack, figures in self.figures.items()}
        return means | {"worst": _mean(self.worst)} if means else {}

    @property
    def floor(self) -> dict[str, float]:
        """Mean over clients of each floor."""
        return {name: _mean(figures) for name, figures in self.floors.items()}

    def helped(self, attack: str) -> bool:
        """Whether an attack used what a server does not have: the truth, or the client's pixel draws."""
        return attack in self.oracles or attack.endswith("_known")

    def leak_of(self, attacks: list[str]) -> float | None:
        """Mean over clients of the best that some of the attacks recovered; None without any."""
        return AuditResult({name: self.figures[name] for name in attacks}).leak.get("worst")

    def only(self, clients: list[str]) -> AuditResult:
        """The same for some of the clients, so that all attacks are compared on the same pictures."""

        def pick(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
            kept = {name: {c: row[c] for c in clients if c in row} for name, row in table.items()}
            return {name: row for name, row in kept.items() if row}

        return AuditResult(pick(self.figures), pick(self.floors), self.oracles, pick(self.pictures))

    def sheet(self, rows: int) -> tuple[list[str], dict[str, list[Cell | None]]]:
        """Columns and rows of a contact sheet: the truth and what each attack recovered."""
        known = self.floors | self.figures
        attacks = [name for name in SHOWN_FIRST if name in known]
        table: dict[str, list[Cell | None]] = {}
        for client, truth in list(self.pictures.get("truth", {}).items())[:rows]:
            cells: list[Cell | None] = [Cell(truth)]
            for name in attacks:
                recovered = self.pictures[name].get(client)
                label = f"{known[name].get(client, math.nan):.1f} dB"
                cells.append(None if recovered is None else Cell(recovered, label))
            table[client] = cells
        return ["truth", *(name.replace("_", " ") for name in attacks)], table

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``audit.json``."""
        attacks = {
            name: {
                "psnr": _mean(figures),
                "per_client": figures,
                "oracle": name in self.oracles,
                "helped": self.helped(name),
                "level": "cheap" if name in QUICK else "full",
            }
            for name, figures in self.figures.items()
        }
        best = max(attacks, key=lambda name: attacks[name]["psnr"])
        return {
            "attacks": attacks,
            "worst": {"attack": best, "psnr": self.leak["worst"], "per_client": self.worst},
            "worst_real": self.leak_of([name for name in attacks if not self.helped(name)]),
            "floor": self.floor,
        }


def _mean(figures: dict[str, float]) -> float:
    return math.fsum(figures.values()) / len(figures)
