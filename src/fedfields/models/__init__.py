"""Models that are no fields: classifiers, regressors and sequences, as pure functions of their weights."""

from fedfields.models.convolutional import ConvNet as ConvNet
from fedfields.models.dense import Mlp as Mlp
from fedfields.models.layers import keep as keep
from fedfields.models.recurrent import Recurrent as Recurrent
