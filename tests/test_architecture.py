"""The house stays as it was built: rooms, packages, names, sizes, and nothing happening at import."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = sorted(SRC.rglob("*.py"))


def run(code: str) -> str:
    """The output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_folder_with_code_is_a_listed_package() -> None:
    found = {".".join(("smallgpt", *path.parent.relative_to(SRC).parts)) for path in SRC.rglob("__init__.py")}
    assert sorted(found) == sorted(PYPROJECT["tool"]["setuptools"]["packages"])
    bare = {str(p.parent.relative_to(SRC)) for p in SOURCES if not (p.parent / "__init__.py").exists()}
    assert not bare, "folders with code and no __init__.py are missing from an installation"


def test_every_data_file_belongs_to_a_package_that_ships_it() -> None:
    shipped = PYPROJECT["tool"]["setuptools"]["package-data"]
    for path in SRC.rglob("*"):
        if not path.is_file() or path.suffix in (".py", ".pyc"):
            continue
        home = next(folder for folder in path.parents if (folder / "__init__.py").exists())
        package = ".".join(("smallgpt", *home.relative_to(SRC).parts))
        patterns = [str(home / pattern) for pattern in shipped.get(package, [])]
        assert any(path.match(pattern) for pattern in patterns), f"{path} is not in the wheel"


def test_rooms_know_only_the_rooms_below_them() -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_the_typing_link_leads_to_the_sources() -> None:
    link = ROOT / "typings" / "smallgpt"
    assert link.is_symlink()
    assert str(link.readlink()) == "../src"


def test_importing_the_package_costs_nothing() -> None:
    heavy = "{'torch', 'numpy', 'pydantic', 'datasets', 'tiktoken', 'rich'}"
    assert run(f"import sys, smallgpt; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_the_settings_need_no_torch() -> None:
    assert run("import sys, smallgpt.domain.config; print('torch' in sys.modules)") == "False"


def test_the_public_names_are_there_and_no_others() -> None:
    names = "GPT GPTConfig HookPoint LanguageModel SmallGPTError TextScore __version__ hook_names load logit_lens"
    assert run("import smallgpt; print(*smallgpt.__all__)") == f"{names} run_with_cache run_with_hooks"
    assert "None" not in run("import smallgpt; print(*(getattr(smallgpt, name) for name in smallgpt.__all__))")
    assert run("import smallgpt; print(hasattr(smallgpt, 'no_such_name'))") == "False"


IMPORT_ALL = """
import sys
for absent in ("triton", "transformers", "tensorboard", "trackio", "wandb", "rensa"):
    sys.modules[absent] = None  # `import triton` now raises ImportError
import logging, os, pkgutil, signal, importlib
import torch, numpy, datasets, tiktoken  # what these do at import is theirs
def world():
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    return (dict(os.environ), list(logging.root.handlers), logging.root.level, torch.get_num_threads(),
            torch.get_default_dtype(), torch.initial_seed(), handlers, sorted(os.listdir()))
before = world()
import smallgpt
names = [m.name for m in pkgutil.walk_packages(smallgpt.__path__, "smallgpt.") if m.name != "smallgpt.__main__"]
for name in names:
    importlib.import_module(name)
assert world() == before, "importing changed something"
assert not torch.cuda.is_initialized()
print(len(names))
"""


def test_every_module_imports_without_triton_and_changes_nothing() -> None:
    modules = [path for path in SOURCES if path != SRC / "__init__.py" and path.name != "__main__.py"]
    assert int(run(IMPORT_ALL)) == len(modules)


# The design names this one itself; absolute imports keep it from shadowing the library.
NAMED_AFTER_ITS_LIBRARY = {"infrastructure/tokenizers.py"}


def test_no_file_is_named_after_a_package_it_imports() -> None:
    offenders = {str(path.relative_to(SRC)) for path in SOURCES if path.stem in _imported(path)}
    assert offenders <= NAMED_AFTER_ITS_LIBRARY


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("folder", [SRC, ROOT / "tests"], ids=["src", "tests"])
def test_files_stay_readable(folder: Path) -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in folder.rglob("*.py")}
    limit = 310 if folder == SRC else 400
    assert {name: n for name, n in lengths.items() if n > limit} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [p for p in SOURCES if p.name != "__main__.py" and not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert silent == []
