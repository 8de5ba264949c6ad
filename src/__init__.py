"""smallgpt: a small GPT from scratch, every part readable and every hot operation swappable.

The public names load on first use, so that `import smallgpt` costs nothing and `smallgpt --help` needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallgpt.domain.config import GPTConfig
    from smallgpt.domain.errors import SmallGPTError
    from smallgpt.domain.gpt import GPT
    from smallgpt.domain.hooks import HookPoint, hook_names, logit_lens, run_with_cache, run_with_hooks
    from smallgpt.interfaces.library import LanguageModel, TextScore, load

__all__ = [
    "GPT",
    "GPTConfig",
    "HookPoint",
    "LanguageModel",
    "SmallGPTError",
    "TextScore",
    "__version__",
    "hook_names",
    "load",
    "logit_lens",
    "run_with_cache",
    "run_with_hooks",
]

__version__ = "0.1.0"

_HOMES = {
    "GPT": "smallgpt.domain.gpt",
    "GPTConfig": "smallgpt.domain.config",
    "HookPoint": "smallgpt.domain.hooks",
    "LanguageModel": "smallgpt.interfaces.library",
    "SmallGPTError": "smallgpt.domain.errors",
    "TextScore": "smallgpt.interfaces.library",
    "hook_names": "smallgpt.domain.hooks",
    "load": "smallgpt.interfaces.library",
    "logit_lens": "smallgpt.domain.hooks",
    "run_with_cache": "smallgpt.domain.hooks",
    "run_with_hooks": "smallgpt.domain.hooks",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smallgpt' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
