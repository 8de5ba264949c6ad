"""An object store in memory that misbehaves as it is told to: fsspec's own, under faulty://."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from smallgpt.infrastructure import retrying

Rule = Callable[[str, str], object]
"""Asked before each operation: (put, write, get, cat, ls or rm; path). May raise, wait, or answer CUT."""
CUT = "cut"
"""Of a file that is fetched, its last byte does not arrive."""


class FaultyStore(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """What is in it is the class's, as is the rule."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    rule: ClassVar[list[Rule]] = []
    asked: ClassVar[list[tuple[str, str]]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.removeprefix("faulty://") if isinstance(path, str) else path)

    def _ask(self, operation: str, path: str) -> object:
        self.asked.append((operation, path))
        answers = [rule(operation, path) for rule in self.rule]
        return answers[0] if answers else None

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        self._ask("put", rpath)
        super().put_file(lpath, rpath, *args, **options)

    def pipe_file(self, path: str, value: bytes, *args: Any, **options: Any) -> None:
        self._ask("write", path)
        super().pipe_file(path, value, *args, **options)

    def get_file(self, rpath: str, lpath: str, *args: Any, **options: Any) -> None:
        answer = self._ask("get", rpath)
        super().get_file(rpath, lpath, *args, **options)
        if answer is CUT:
            Path(lpath).write_bytes(Path(lpath).read_bytes()[:-1])

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        self._ask("cat", path)
        content: bytes = super().cat_file(path, *args, **options)
        return content

    def ls(self, path: str, *args: Any, **options: Any) -> Any:
        self._ask("ls", path)
        return super().ls(path, *args, **options)

    def rm_file(self, path: str) -> None:
        self._ask("rm", path)
        super().rm_file(path)


@contextmanager
def faulty_store() -> Iterator[type[FaultyStore]]:
    """An empty store, registered; nobody waits long between attempts."""
    fsspec.register_implementation("faulty", FaultyStore, clobber=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrying, "FIRST_WAIT", 0.001)
        _empty()
        yield FaultyStore
        _empty()


def _empty() -> None:
    for content in (FaultyStore.store, FaultyStore.rule, FaultyStore.asked):
        content.clear()
    FaultyStore.pseudo_dirs[:] = [""]


def fail_on(operation: str, part: str, error: BaseException, times: int = 10**9) -> Rule:
    """Raise the error for operations on paths with `part` in them, so many times."""
    left = [times]

    def rule(what: str, path: str) -> None:
        if what == operation and part in path and left[0]:
            left[0] -= 1
            raise error

    return rule


def uploaded(folder: Path, root: str) -> None:
    """Put a folder of this machine into the store, with all that is in it."""
    for path in folder.rglob("*"):
        if path.is_file():
            name = f"/{root}/{path.relative_to(folder)}"
            FaultyStore().pipe_file(name, path.read_bytes())
    FaultyStore.asked.clear()


def stored(root: str) -> dict[str, bytes]:
    """What is in a folder of the store, by name."""
    start = f"/{root}/"
    return {
        path.removeprefix(start): bytes(file.getbuffer())
        for path, file in sorted(FaultyStore.store.items())
        if path.startswith(start)
    }


def files_of(folder: Path) -> dict[str, bytes]:
    """What is in a folder of this machine, by name, without drafts and locks."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: content for name, content in found.items() if not Path(name).name.startswith((".", "lock"))}
