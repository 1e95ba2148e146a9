"""Strategies: what a server does with the sum of its clients' reports, and what clients must report for it."""

from fedfields.strategies.adaptive import FedOpt as FedOpt
from fedfields.strategies.averaging import FedAcg as FedAcg
from fedfields.strategies.averaging import FedAvg as FedAvg
from fedfields.strategies.averaging import FedExp as FedExp
from fedfields.strategies.averaging import FedNova as FedNova
from fedfields.strategies.base import Outcome as Outcome
from fedfields.strategies.base import Strategy as Strategy
from fedfields.strategies.learned import Learned as Learned
from fedfields.strategies.quality import LossWeighted as LossWeighted
from fedfields.strategies.robust import Robust as Robust
from fedfields.strategies.variates import Scaffold as Scaffold
