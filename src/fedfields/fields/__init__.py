"""Fields: coordinates to values, as pure functions of named weights."""

from fedfields.fields.combine import CoarseFine as CoarseFine
from fedfields.fields.fourier import FourierMlp as FourierMlp
from fedfields.fields.hashgrid import HashGrid as HashGrid
from fedfields.fields.lowrank import Factored as Factored
from fedfields.fields.lowrank import LowRank as LowRank
from fedfields.fields.lowrank import expanded as expanded
from fedfields.fields.nerf import Nerf as Nerf
from fedfields.fields.nerf import SimpleNerf as SimpleNerf
from fedfields.fields.personal import Joint as Joint
from fedfields.fields.personal import Personal as Personal
from fedfields.fields.siren import Siren as Siren
