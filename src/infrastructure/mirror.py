"""A run kept in an object store too: what is on the disk is copied there in the background, and pruned there as here.

A checkpoint's manifest.json goes last, so that a checkpoint in the store without one is none. Before a checkpoint come
config.toml and metrics.jsonl, which a run that goes on from it needs.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from smallgpt.domain.errors import CheckpointError, NumericsError, SmallGPTError
from smallgpt.infrastructure.checkpoints import MANIFEST, expected_files
from smallgpt.infrastructure.copies import BEST, CONFIG, DAMAGED, METRICS
from smallgpt.infrastructure.object_store import Store
from smallgpt.infrastructure.retrying import reason_of
from smallgpt.infrastructure.run_folder import RunFolder

STAGED = ".upload"
"""Links to the checkpoint that is being copied, so that pruning does not take its files away meanwhile."""


class Mirror:
    """Copies a run folder to a store, again and again: what is new there, and away with what was pruned here."""

    def __init__(self, run: RunFolder, url: str, warn: Callable[[str], None]) -> None:
        """`warn` hears, in another thread, of a copy that failed; the next one tries again.

        Raises CheckpointError when the store cannot be reached, holds another run, or more of this one than the folder;
        ConfigError for a wrong URL.
        """
        self.run, self.warn, self.store = run, warn, Store(url, CheckpointError)
        self.sent: dict[str, bytes] = {}
        """Small files, and the manifests of checkpoints, as they are in the store."""
        self._lock, self._again = Lock(), False
        self._thread: Thread | None = None
        self._check_same_run()
        self._check_not_ahead()
        shutil.rmtree(self.run.checkpoints_folder / STAGED, ignore_errors=True)

    def _check_same_run(self) -> None:
        theirs = self.store.read(METRICS)
        ours = self.run.metrics_file.read_bytes() if self.run.metrics_file.is_file() else b""
        if theirs is not None and _first_event(theirs) != _first_event(ours):
            raise CheckpointError(
                f"{self.store.url} holds another run; go on with that by `smallgpt train --resume {self.store.url}`, "
                "or give another --checkpoint.mirror"
            )

    def _check_not_ahead(self) -> None:
        """A run that went on elsewhere would be overwritten from here. What was fetched and found damaged is no progress."""
        newest = max((path.name for path in self.run.checkpoints()), default="")
        for name in reversed(self._checkpoints_there()):
            manifest = self.store.read(f"checkpoints/{name}/{MANIFEST}") if name > newest else None
            if manifest not in (None, self._content(f"checkpoints/{DAMAGED.format(name)}")):
                raise CheckpointError(
                    f"{self.store.url} has {name}, and {self.run.path} nothing after {newest or 'its start'}: the run went on "
                    f"elsewhere.\nGo on from the store by `smallgpt train --resume {self.store.url}`, or give another "
                    "--checkpoint.mirror"
                )

    @contextmanager
    def complete_after(self) -> Iterator[None]:
        """What is done within it ends with all of the run in the store. Raises CheckpointError that names what is not.

        Of a run whose numbers went bad, what was good before is copied if that can be; the numbers are what to hear of.
        """
        try:
            yield
        except NumericsError:
            with suppress(CheckpointError):
                self.finish()
            raise
        self.finish()

    def start(self) -> None:
        """Copy in the background; a copy that is going on then looks again when it is done."""
        with self._lock:
            self._again = True
            if self._thread is None:
                self._thread = Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._again:
                    self._thread = None
                    return
                self._again = False
            try:
                self._copy()
            except Exception as error:  # whatever a store's library raises: the thread goes on
                self.warn(f"not mirrored yet: {_words(error)}; the next checkpoint tries again")

    def finish(self) -> None:
        """Copy what is not in the store yet. Raises CheckpointError that names it where that fails."""
        thread = self._thread
        if thread is not None:
            thread.join()
        try:
            self._copy()
        except Exception as error:
            missing = self._missing()
            what = f"{', '.join(missing)} of {self.run.path} could not be copied"
            if not missing:
                what = "what was pruned could not be removed there"
            raise CheckpointError(
                f"{what}: {_words(error)}.\n"
                f"The run is whole in its folder; `smallgpt train --resume {self.run.path}` copies it when the store answers."
            ) from error
        for name in self._missing():
            if name.startswith("step-"):
                self.warn(f"not mirrored: {name} of {self.run.path}, which lacks files, or has some that are cut")

    def _missing(self) -> list[str]:
        """What is here, and not known to be in the store as it is here."""
        names = {_manifest(path): path.name for path in self.run.checkpoints()}
        names |= {name: name for name in (CONFIG, METRICS, BEST)}
        return [words for name, words in names.items() if self.sent.get(name) != self._content(name)]

    def _copy(self) -> None:
        """One look at the run folder, the newest checkpoint first. What is saved, or pruned, meanwhile is the next one's."""
        here = self.run.checkpoints()  # before the events are sent, which then go as far as each of them
        self._send(CONFIG)
        self._send(METRICS)
        added = False
        for path in reversed(here):
            if not self._has(path):
                added |= self._send_checkpoint(path)
        if self._best_is_there():
            self._send(BEST)
        if added and _manifest(here[-1]) in self.sent:
            self._prune({path.name for path in here}, here[-1].name)

    def _has(self, path: Path) -> bool:
        """Is this checkpoint in the store, as it is here? Looked up there once."""
        name = _manifest(path)
        if name not in self.sent:
            there = self.store.read(name)
            if there is None:
                return False
            self.sent[name] = there
        return self.sent[name] == self._content(name)

    def _send_checkpoint(self, path: Path) -> bool:
        """Copy a checkpoint, manifest last; False when it is not whole here, as one that is being pruned."""
        staged = self.run.checkpoints_folder / STAGED
        inside, name = self.store.inside(f"checkpoints/{path.name}"), _manifest(path)
        try:
            if not _stage(path, staged):
                return False
            # of an upload that was cut off, or of steps that were trained otherwise
            self.store.remove_folder(f"checkpoints/{path.name}", MANIFEST)
            self.sent.pop(name, None)
            for file in sorted(staged.iterdir()):
                if file.name != MANIFEST:
                    inside.put(file, file.name)
            manifest = (staged / MANIFEST).read_bytes()
            inside.write(MANIFEST, manifest)
            self.sent[name] = manifest
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return True

    def _prune(self, here: set[str], newest: str) -> None:
        """Remove earlier checkpoints than the newest that are not here any more, manifest first."""
        for name in self._checkpoints_there():
            if name < newest and name not in here:
                self.store.remove_folder(f"checkpoints/{name}", MANIFEST)
                self.sent.pop(f"checkpoints/{name}/{MANIFEST}", None)

    def _checkpoints_there(self) -> list[str]:
        """Their names in the store, oldest first; also of those that have no manifest."""
        return [name for name in self.store.folders("checkpoints") if name.startswith("step-")]

    def _best_is_there(self) -> bool:
        """Is the checkpoint in the store that is marked as the best here?"""
        try:
            name = json.loads(self._content(BEST) or b"")["checkpoint"]
        except (ValueError, KeyError, TypeError):
            return False
        return f"checkpoints/{name}/{MANIFEST}" in self.sent

    def _send(self, name: str) -> None:
        content = self._content(name)
        if content is not None and self.sent.get(name) != content:
            self.store.write(name, content)
            self.sent[name] = content

    def _content(self, name: str) -> bytes | None:
        try:
            return (self.run.path / name).read_bytes()
        except FileNotFoundError:
            return None


def _manifest(checkpoint: Path) -> str:
    """The name in the store of a checkpoint's manifest."""
    return f"checkpoints/{checkpoint.name}/{MANIFEST}"


def _words(error: Exception) -> str:
    """What to say of an error, which may be of any library."""
    if isinstance(error, SmallGPTError):
        return str(error)
    return f"{type(error).__name__}: {reason_of(error)}"


def _stage(checkpoint: Path, staged: Path) -> bool:
    """Link a checkpoint's files into an empty folder. Are they all there, and none cut?"""
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir()
        for file in checkpoint.iterdir():
            _link(file, staged / file.name)
        files = expected_files(staged)
        return all((staged / name).stat().st_size == facts["bytes"] for name, facts in files.items())
    except (FileNotFoundError, CheckpointError):
        return False


def _link(file: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the disk has no such thing."""
    try:
        os.link(file, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(file, target)


def _first_event(lines: bytes) -> Any:
    """What a metrics.jsonl begins with, which two runs never share: times are in it."""
    try:
        return json.loads(lines.split(b"\n", 1)[0])
    except ValueError:
        return None
