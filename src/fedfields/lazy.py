"""Torch, imported on first use, so that the command line can describe every setting without loading it.

The dataclasses that configure a run are also the objects that do the work. Their modules say
``from fedfields.lazy import torch`` and use only attributes of ``torch`` inside functions.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _LazyModule:
        """A module that is imported when its first attribute is read."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            if attribute.startswith("__"):  # Introspection (inspect, copy, pickle) must not load the module.
                raise AttributeError(attribute)
            value = getattr(importlib.import_module(self._name), attribute)
            setattr(self, attribute, value)  # The next access is an ordinary attribute.
            return value

    torch = _LazyModule("torch")
