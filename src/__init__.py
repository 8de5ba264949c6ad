"""smallgpt: a small GPT from scratch, every part readable and every hot operation swappable.

The public names load on first use, so that `import smallgpt` costs nothing and `smallgpt --help` needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallgpt.domain.config import GPTConfig
    from smallgpt.domain.gpt import GPT
    from smallgpt.interfaces.opening import load

__all__ = ["GPT", "GPTConfig", "__version__", "load"]

__version__ = "0.1.0"

_HOMES = {
    "GPT": "smallgpt.domain.gpt",
    "GPTConfig": "smallgpt.domain.config",
    "load": "smallgpt.interfaces.opening",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smallgpt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
