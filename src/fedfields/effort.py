"""How hard an audit tries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AuditSettings:
    """Effort of a full audit. Every method gets the same."""

    rounds: int = 2
    """How many of the observed rounds are attacked: the first, the last, and others evenly between."""

    clients: int = 2
    """Clients of a round under the expensive attacks (gradient matching); read-outs see all of them. Of a place, the
    owners that are attacked."""

    matching_steps: int = 300
    """Adam steps of gradient matching; a quarter of them to choose among four starts."""

    newton_products: int = 1200
    """Jacobian products of the Gauss-Newton inversion: the effort of the strongest attack."""

    polish_steps: int = 300
    """Adam steps that polish the Gauss-Newton inversion under total variation."""

    known_draws: bool = True
    """Also attack as if the server knew which pixels the client drew: an upper bound."""

    seed: int = 0
    """Seed of the attacks' own randomness."""

    summed: int = 16
    """Most clients of a secure sum whose pictures are inverted together; into larger sums one only looks."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.clients) < 1:
            raise ValueError(f"{self.rounds} rounds and {self.clients} clients; an audit needs at least one of each")
