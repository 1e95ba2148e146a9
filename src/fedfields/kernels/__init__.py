"""Compiled inner loops for the CPU, each beside its plain-torch twin, which serves every other device and dtype.

A kernel is numba code over arrays and a :class:`torch.autograd.Function` around it; nobody outside this package sees
more than a function of tensors.
"""

from fedfields.kernels.sine import sine as sine
