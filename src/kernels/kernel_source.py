"""What a kernel means, as text: equal texts compile to equal code, whatever the comments and the place in the file."""

import ast
import textwrap
from functools import cache
from inspect import getsource
from types import FunctionType, ModuleType
from typing import Any

from smallgpt.kernels.language import tl


@cache
def source_of(kernel: Any) -> str:
    """A kernel's meaning as text: without its comments and layout, with that of every kernel it calls."""
    texts: dict[str, str] = {}
    _collect(kernel.fn, texts)
    return repr(sorted(texts.items()))


def _collect(function: FunctionType, texts: dict[str, str]) -> None:
    name = f"{function.__module__}.{function.__qualname__}"
    if name in texts or function.__module__.startswith("triton."):
        return
    tree = ast.parse(textwrap.dedent(getsource(function)))
    texts[name] = ast.unparse(tree)
    for node in ast.walk(tree):
        used = _global(node, function)
        if isinstance(called := getattr(used, "fn", None), FunctionType):
            _collect(called, texts)
        elif isinstance(used, tl.constexpr | int | float | str):
            texts[f"{name}: {ast.unparse(node)}"] = repr(used)


def _global(node: ast.AST, function: FunctionType) -> object:
    """What a name, or a name of a module's, means inside a kernel; None for locals and the rest."""
    if isinstance(node, ast.Name):
        return function.__globals__.get(node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        module = function.__globals__.get(node.value.id)
        return getattr(module, node.attr, None) if isinstance(module, ModuleType) else None
    return None
