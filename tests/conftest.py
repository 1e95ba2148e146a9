"""Torch on one thread: the tests' tensors are tiny, and waiting for other threads costs more than they help."""

import torch

torch.set_num_threads(1)
