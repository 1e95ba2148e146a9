"""Data that is no field: rows of inputs and targets of many clients, for classifiers and regressors."""

from fedfields.datasets.samples import SampleData, SampleFederation, Samples
from fedfields.datasets.sinusoids import Sinusoids

__all__ = ["SampleData", "SampleFederation", "Samples", "Sinusoids"]
