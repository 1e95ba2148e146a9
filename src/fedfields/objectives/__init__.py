"""Objectives: estimators of the gradient that a client follows. A method is a combination of these parts."""

from fedfields.objectives.base import Estimate as Estimate
from fedfields.objectives.base import Inner as Inner
from fedfields.objectives.base import Objective as Objective
from fedfields.objectives.meta import Fit as Fit
from fedfields.objectives.meta import HessianFree as HessianFree
from fedfields.objectives.meta import Maml as Maml
from fedfields.objectives.meta import Reptile as Reptile
from fedfields.objectives.wrappers import Antithetic as Antithetic
from fedfields.objectives.wrappers import MeNF as MeNF
from fedfields.objectives.wrappers import Projected as Projected
from fedfields.objectives.wrappers import Proximal as Proximal
