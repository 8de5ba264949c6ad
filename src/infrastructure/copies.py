"""Copies of what an object store holds, whole or absent: data folders, checkpoints and runs, checked by their manifests.

A copy grows in a folder beside its place, one whole file after the other, so that what a killed process fetched counts.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from smallgpt.domain.errors import CheckpointError, DataError
from smallgpt.domain.places import name_of
from smallgpt.infrastructure import checkpoints
from smallgpt.infrastructure.files import sha256 as sha256_of
from smallgpt.infrastructure.files import take_place
from smallgpt.infrastructure.hardware import caches
from smallgpt.infrastructure.manifest import FILE_NAME, Manifest, read_manifest
from smallgpt.infrastructure.object_store import Store
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.run_lock import holder_of, leave_to
from smallgpt.infrastructure.token_store import DataFolder, open_store

CONTENT_ATTEMPTS = 3
"""How often a file is fetched whose content is not what the manifest says."""
CONFIG, METRICS, BEST = "config.toml", "metrics.jsonl", "checkpoints/best.json"
DAMAGED = ".{}.damaged"
"""Beside checkpoints: has the manifest of the one of that name in the store, which was damaged and passed over."""
Check = Callable[[Path], str | None]
Warn = Callable[[str], None]


class DamagedError(CheckpointError):
    """A checkpoint in the store is not what its manifest says; an earlier one may be."""


def data_copy(url: str, progress: Progress | None = None) -> Path:
    """The folder of the cache with the data folder at a URL; fetched unless it is there with the same dataset.json.

    Raises DataError, ConfigError.
    """
    store = Store(url, DataError, progress)
    content = store.read(FILE_NAME)
    if content is None:
        raise DataError(
            f"{store.url}: no {FILE_NAME} there; check the bucket and the folder, or copy a data folder there "
            "that `smallgpt prepare` made"
        )
    target = caches()["SMALLGPT_CACHE"] / "data" / f"{name_of(url)}-{_digest(content)}"
    if target.is_dir():
        return target
    with _drafted(target, target.is_dir, store) as draft:
        if draft is not None:
            (draft / FILE_NAME).write_bytes(content)
            try:
                _fetch_data(store, draft, read_manifest(draft))
            except DataError as error:
                raise DataError(str(error).replace(str(draft), store.url)) from None
    return target


def model_copy(url: str, progress: Progress | None = None) -> Path:
    """A checkpoint in the cache: the one at a URL or, of a run, its best, else its newest good one.

    It lies in a copy of its run, as far as the run is there too. Raises CheckpointError, ConfigError.
    """
    store = Store(url, CheckpointError, progress)
    name = None
    if store.read(checkpoints.MANIFEST) is not None:
        base, _, name = store.url.rpartition("/")
        run_url = url.rstrip("/").rsplit("/", 2)[0] if base.endswith("/checkpoints") else None
        if run_url is None:
            raise CheckpointError(f"{store.url}: a checkpoint, but in no run; it is RUN/checkpoints/{name}")
        store = Store(run_url, CheckpointError, progress)
    elif store.read(CONFIG) is None:
        raise CheckpointError(
            f"{store.url}: neither a run (config.toml) nor a checkpoint (manifest.json) is there; "
            "check the bucket and the folder"
        )
    folder = _record(store)
    name = name or _best(store)
    if name is not None:
        return _fetch_checkpoint(store, name, folder / "checkpoints")
    return _fetch_newest(store, folder / "checkpoints", lambda words: None)


def record_copy(url: str) -> Path:
    """The folder of the cache with settings and events of the run at a URL, as they are now. Raises CheckpointError."""
    store = Store(url, CheckpointError)
    if store.read(CONFIG) is None:
        raise CheckpointError(f"{store.url}: no run there: it has no config.toml; check the bucket and the folder")
    return _record(store)


def _record(store: Store) -> Path:
    folder = caches()["SMALLGPT_CACHE"] / "runs" / _digest(store.url.encode()) / name_of(store.url)
    _refresh(store, folder, CONFIG, METRICS)
    return folder


def fetch_run(url: str, out: Path, progress: Progress | None, warn: Warn, launch: str | None = None) -> None:
    """Make the run folder `out` of the run at a URL, to go on with: settings, events, newest good and best checkpoint.

    `warn` hears of damaged ones. A later round of the same `launch` finds the folder by that name, and leaves it as it is.
    Raises CheckpointError, also for a folder that has become a run's; ConfigError.
    """
    store = Store(url, CheckpointError, progress)
    marks = [out / CONFIG, out / "checkpoints"]
    with _drafted(out, lambda: any(map(Path.exists, marks)), store, _digest(store.url.encode())) as draft:
        if draft is not None:
            folder = draft / "checkpoints"
            newest, best = _fetch_newest(store, folder, warn), _best(store)
            if best is not None and best != newest.name:
                try:
                    _fetch_checkpoint(store, best, folder)
                except DamagedError as error:
                    warn(f"passed over the best checkpoint, which is damaged: {error}")
            _refresh(store, draft, CONFIG, METRICS, BEST)
            leave_to(draft, launch)
    if draft is None and not (launch and holder_of(out)[2] == launch):
        raise CheckpointError(
            f"{out} is a run's by now: another process was faster.\n"
            f"When that has ended, `smallgpt train --resume {out}` goes on with it; or choose another folder with --out."
        )


@contextmanager
def _drafted(target: Path, is_there: Callable[[], bool], store: Store, source: str = "copy") -> Iterator[Path | None]:
    """A folder beside `target` to fill, which takes its place at the end; None once the target is there.

    One process at a time; `source` tells apart what different ones make for the same place. What was fetched stays there
    when the process fails, or is killed. Raises the store's error where the place cannot be locked.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock_file = target.with_name(f".{target.name}.lock")
    with lock_file.open("a") as lock:
        _lock(lock, target, store)
        if is_there():
            yield None
        else:
            draft = target.with_name(f".{target.name}.{source}.draft")
            draft.mkdir(exist_ok=True)
            yield draft
            take_place(draft, target, target.with_name(f".{target.name}.old.tmp"))
        lock_file.unlink(missing_ok=True)  # whoever waits for it finds the copy in its place


def _lock(file: IO[str], target: Path, store: Store) -> None:
    """Hold a file alone, as soon as no other process does."""
    for patience in (fcntl.LOCK_NB, 0):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | patience)
        except BlockingIOError:
            if store.progress:
                store.progress(0, None, f"waiting for another process that fetches {target}")
        except OSError as error:
            words = f"{file.name} cannot be locked: {error.strerror}"
            raise store.error(f"{words}; mount its storage with flock, or use another: --out, SMALLGPT_CACHE") from None


def _fetch_data(store: Store, draft: Path, manifest: Manifest) -> None:
    """All files that the manifest names, checked as far as it tells."""
    files: dict[str, Check] = {}
    total = 0
    for facts in manifest.splits.values():
        for file in facts.files:
            size = file.tokens * manifest.item_size
            expected = {"bytes": size, "sha256": file.sha256}
            files[file.name] = _check(expected, FILE_NAME)
            total += size
        if facts.starts is not None:
            files[facts.starts] = lambda path: None
    if manifest.tokenizer is not None:
        files["tokenizer.json"] = lambda path: None
    done = 0
    for name, check in files.items():
        problem = _fetch_checked(store, name, draft, check, _teller(store, done, total))
        if problem is not None:
            raise DataError(f"{store.url}/{name}: {problem}; copy the data folder there again")
        done += (draft / name).stat().st_size
    try:
        opened = open_store(draft)
        _ = opened.tokenizer
        for split, facts in manifest.splits.items():
            if facts.starts is not None:
                DataFolder(draft, manifest).starts(split)
    except DataError:
        shutil.rmtree(draft)
        raise


def _fetch_newest(store: Store, folder: Path, warn: Warn) -> Path:
    """The newest checkpoint that is whole. What has no manifest is none: its upload did not end."""
    problems = []
    for name in reversed(store.folders("checkpoints")):
        try:
            if name.startswith("step-") and store.read(f"checkpoints/{name}/{checkpoints.MANIFEST}") is not None:
                return _fetch_checkpoint(store, name, folder)
        except DamagedError as error:
            warn(f"passed over a damaged checkpoint: {error}")
            problems.append(str(error))
    found = "; ".join(problems) or "it holds none that is whole"
    raise CheckpointError(f"{store.url} has no usable checkpoint: {found}.\nCheck the URL, or name another run.")


def _fetch_checkpoint(store: Store, name: str, folder: Path) -> Path:
    """folder/name as it is in the store; fetched unless it is there already. Raises DamagedError, CheckpointError."""
    inside, target = store.inside(f"checkpoints/{name}"), folder / name
    manifest = inside.read(checkpoints.MANIFEST)
    if manifest is None:
        raise DamagedError(f"{inside.url} has no {checkpoints.MANIFEST}: its upload did not end")

    def is_there() -> bool:
        return _content(target / checkpoints.MANIFEST) == manifest

    if not is_there():
        with _drafted(target, is_there, store, _digest(manifest)) as draft:
            if draft is not None:
                (draft / checkpoints.MANIFEST).write_bytes(manifest)
                try:
                    _fetch_described(inside, draft)
                except DamagedError:
                    shutil.rmtree(draft)
                    (folder / DAMAGED.format(name)).write_bytes(manifest)
                    raise
    return target


def _fetch_described(store: Store, draft: Path) -> None:
    """All files that the manifest in the draft of a checkpoint describes."""
    try:
        expected = checkpoints.expected_files(draft)
    except CheckpointError as error:
        raise DamagedError(str(error).replace(str(draft), store.url)) from None
    done, total = 0, sum(int(facts["bytes"]) for facts in expected.values())
    for name, facts in expected.items():
        problem = _fetch_checked(store, name, draft, _check(facts, checkpoints.MANIFEST), _teller(store, done, total))
        if problem is not None:
            raise DamagedError(f"{store.url}/{name}: {problem}")
        done += int(facts["bytes"])


def _fetch_checked(store: Store, name: str, draft: Path, check: Check, tell: Callable[[int], None]) -> str | None:
    """Fetch draft/name, which appears when nothing is wrong with it; what is wrong with it, again and again."""
    target, part = draft / name, draft / f".{name}.part"
    problem = None
    for _ in range(CONTENT_ATTEMPTS):
        if target.exists():
            return None
        if not store.fetch(name, part, tell):
            return "is not there"
        problem = check(part)
        if problem is None:
            part.replace(target)
    part.unlink(missing_ok=True)
    return problem


def _check(expected: dict[str, Any], manifest: str) -> Check:
    """Compares a file with the bytes and sha256 of a manifest."""

    def complaint(path: Path) -> str | None:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{size} bytes came instead of {expected['bytes']}"
        digest = sha256_of(path)
        if digest != expected["sha256"]:
            return f"SHA-256 {digest[:12]}, but {manifest} has {str(expected['sha256'])[:12]}"
        return None

    return complaint


def _best(store: Store) -> str | None:
    """The checkpoint that is marked as the best, where it is there."""
    try:
        name = json.loads(store.read(BEST) or b"")["checkpoint"]
    except (ValueError, KeyError, TypeError):
        return None
    there = isinstance(name, str) and "/" not in name and store.read(f"checkpoints/{name}/{checkpoints.MANIFEST}")
    return name if there else None


def _refresh(store: Store, folder: Path, *names: str) -> None:
    """Small files as they are in the store now; those that are not there are not in the folder either."""
    for name in names:
        content, path = store.read(name), folder / name
        if content is None:
            path.unlink(missing_ok=True)
        elif content != _content(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.part")
            beside.write_bytes(content)
            beside.replace(path)


def _teller(store: Store, done: int, total: int) -> Callable[[int], None]:
    tell, what = store.progress, f"bytes of {store.url} fetched"
    return lambda size: tell(done + size, total, what) if tell else None


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:12]
