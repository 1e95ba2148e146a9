"""What stands between a client's data and the sum: transforms, applied in order and undone in reverse."""

from fedfields.privacy.base import Transform as Transform
from fedfields.privacy.base import clip_report as clip_report
from fedfields.privacy.dp import AdaptiveNoise as AdaptiveNoise
from fedfields.privacy.dp import CentralNoise as CentralNoise
from fedfields.privacy.dp import Clipped as Clipped
from fedfields.privacy.dp import DistributedNoise as DistributedNoise
from fedfields.privacy.dp import Noise as Noise
from fedfields.privacy.sums import SecAgg as SecAgg
from fedfields.privacy.surrogate import Surrogate as Surrogate
