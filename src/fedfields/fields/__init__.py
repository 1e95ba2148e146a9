"""Fields: coordinates to values, as pure functions of named weights."""

from fedfields.fields.fourier import FourierMlp as FourierMlp
from fedfields.fields.siren import Siren as Siren
