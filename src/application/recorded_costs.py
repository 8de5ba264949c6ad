"""The least work of an operation as a profiler recorded it: by name, shapes of its arguments, and their types.

FLOPs are torch's own formulas (torch.utils.flop_counter): matrix products and attention. Bytes are operands read and results
written once each. Results are not recorded: they are taken to be like the largest operand, which holds for everything that a
training step spends time in but the operations named here.
"""

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

SIZES = {
    "double": 8,
    "long int": 8,
    "float": 4,
    "int": 4,
    "c10::BFloat16": 2,
    "c10::Half": 2,
    "short": 2,
    "bool": 1,
    "unsigned char": 1,
    "signed char": 1,
}
LIST_SIZE = 4
"""Bytes of an element in a list of tensors, whose type is not recorded: optimizers and clipping work on fp32."""

_VIEWS = """
alias as_strided chunk detach empty empty_like empty_strided expand expand_as flatten item lift_fresh linear
_local_scalar_dense matmul narrow new_empty numpy_T permute reshape _reshape_alias resize_ resolve_conj resolve_neg
result_type select slice split squeeze t to transpose unbind _unsafe_view unsqueeze view
"""
VIEWS = frozenset(_VIEWS.split())
"""Move nothing themselves."""
REDUCTIONS = frozenset(["all", "any", "linalg_vector_norm", "max", "mean", "min", "norm", "sum", "_foreach_norm"])
OVERWRITING = frozenset(["bernoulli_", "copy_", "fill_", "normal_", "uniform_", "zero_"])
"""Write their first argument without reading it."""


def recorded_flops(name: str, shapes: list[Any]) -> float:
    """Of a call of "aten::NAME" with arguments of these shapes; 0 for what is not a product. In-place forms count too."""
    packet = getattr(torch.ops.aten, _bare(name).rstrip("_"), None) if name.startswith("aten::") else None
    formula = flop_registry.get(packet)
    if formula is None:
        return 0.0
    try:
        return float(formula(*filter(None, shapes), out_val=None))  # numbers have no shape
    except (AssertionError, ValueError, IndexError, TypeError):  # shapes that were not recorded, or not all of them
        return 0.0


def recorded_bytes(name: str, shapes: list[Any], types: list[str]) -> float:
    """Bytes that a call moves at least; 0 for a view, and where nothing was recorded."""
    bare = _bare(name)
    operands = [_bytes(shape, kind) for shape, kind in zip(shapes, types, strict=False)]
    if bare in VIEWS or not any(operands):
        return 0.0
    if bare in ("embedding", "index_select", "gather", "scatter_add_"):
        return _picked(bare, shapes, types)
    read = 0.0 if bare in OVERWRITING and bare != "copy_" else sum(operands)
    if recorded_flops(name, shapes):
        return read + _product(bare, shapes) * SIZES.get(types[0], LIST_SIZE)
    if bare in REDUCTIONS or bare == "copy_":
        return read
    return read + (operands[0] if bare.endswith("_") else max(operands))


def _bare(name: str) -> str:
    return name.removeprefix("aten::")


def _bytes(shape: Any, kind: str) -> float:
    if kind == "TensorList":
        return float(sum(prod(one) for one in shape if isinstance(one, list)) * LIST_SIZE)
    return float(prod(shape) * SIZES[kind]) if kind in SIZES and isinstance(shape, list) and shape else 0.0


def _product(bare: str, shapes: list[Any]) -> int:
    """Elements of a product's result; of attention's, which is like the query."""
    if bare.rstrip("_") in ("mm", "bmm"):
        return int(prod(shapes[0][:-1]) * shapes[1][-1])
    if bare.rstrip("_") in ("addmm", "baddbmm"):
        return int(prod(shapes[1][:-1]) * shapes[2][-1])
    return int(prod(shapes[0]))


def _picked(bare: str, shapes: list[Any], types: list[str]) -> float:
    """Rows or elements taken from, or added to, a table: each read and written once, beside the indices."""
    table, index = (
        shapes[0],
        next(s for s, kind in zip(shapes[1:], types[1:], strict=False) if s and kind == "long int"),
    )
    width = table[-1] if bare in ("embedding", "index_select") else 1
    touched = prod(index) * width * SIZES.get(types[0], LIST_SIZE)
    return float((3 if bare.endswith("_") else 2) * touched + prod(index) * SIZES["long int"])
