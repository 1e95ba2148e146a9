"""Two neighbouring floats in one register: half as many loads and stores as numba, which never joins them, would emit.

A pair that is read is a complex number here, because numba knows that type.
numba's cache looks only at the file of a loop: after a change here, touch ``compiled.py`` too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import types

_PAIR = ir.VectorType(ir.FloatType(), 2)
_CONTRACT = ("contract",)

intrinsic: Any = extending.intrinsic  # Callers leave out the first parameter, which no type checker knows.


@intrinsic
def plus_pair(typing: Any, pair: Any, weight: Any, values: Any, at: Any) -> Any:
    """``pair + weight * (values[at], values[at + 1])`` as complex64; ``values`` are contiguous floats."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pair, weight, values, at = args
        before = _joined(builder, *(builder.extract_value(pair, i) for i in range(2)))
        found = builder.load(_place(context, builder, signature.args[2], values, at))
        found.align = 4
        total = _plus(builder, before, weight, found)
        for i in range(2):
            pair = builder.insert_value(pair, builder.extract_element(total, ir.IntType(32)(i)), i)
        return pair

    return types.complex64(types.complex64, types.float32, values, types.uint64), build


@intrinsic
def add_to_pair(typing: Any, to: Any, at: Any, weight: Any, x: Any, y: Any) -> Any:
    """``to[at] += weight * x`` and ``to[at + 1] += weight * y``; ``to`` are contiguous floats."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, at, weight, x, y = args
        place = _place(context, builder, signature.args[0], to, at)
        before = builder.load(place)
        before.align = 4
        builder.store(_plus(builder, before, weight, _joined(builder, x, y)), place).align = 4
        return context.get_dummy_value()

    return types.void(to, types.uint64, types.float32, types.float32, types.float32), build


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """Pointer to the pair that begins at an index of an array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _PAIR.as_pointer())


def _joined(builder: Any, x: Any, y: Any) -> Any:
    pair = builder.insert_element(ir.Constant(_PAIR, ir.Undefined), x, ir.IntType(32)(0))
    return builder.insert_element(pair, y, ir.IntType(32)(1))


def _plus(builder: Any, before: Any, weight: Any, pair: Any) -> Any:
    """``before + weight * pair``, in one instruction where the processor has one."""
    product = builder.fmul(_joined(builder, weight, weight), pair, flags=_CONTRACT)
    return builder.fadd(before, product, flags=_CONTRACT)
