"""A hub repository's files: which there are at a commit, and each of them fetched into the cache and checked."""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from smallgpt.infrastructure.corpora.hub_client import strict_client
from smallgpt.infrastructure.corpora.hub_errors import WrongContentError, clear_errors, disk_errors
from smallgpt.infrastructure.corpora.hub_kinds import DATASET, Kind
from smallgpt.infrastructure.files import sha256
from smallgpt.infrastructure.retrying import TransientError, is_html, retried

if TYPE_CHECKING:
    from smallgpt.infrastructure.progress import Progress

CARDS = DATASET.asked_first
"""What tells which data files belong to which split."""
AT_ONCE = 4
"""Files that are fetched at the same time."""


class UnreachableError(Exception):
    """The hub gives no usable answer; the cache may have one."""


@dataclass(frozen=True)
class HubFile:
    """A file of a repository at a commit."""

    path: str
    size: int


@dataclass(frozen=True)
class Listing:
    """All files of a repository at a commit."""

    name: str
    commit: str
    files: tuple[HubFile, ...]
    kind: Kind = DATASET


def hub_answers(seconds: float = 5.0) -> bool:
    """Does the hub say anything at all within some seconds?"""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except Exception:  # of the HTTP library, which is not the same in every version
        return False
    return True


def fetch_listing(name: str, revision: str | None, progress: "Progress | None", kind: Kind = DATASET) -> Listing:
    """What the hub lists for a revision (None: main), with what is asked first in the cache.

    Raises UnreachableError, or kind.error.
    """

    def ask() -> Listing:
        with clear_errors(name, revision, kind), disk_errors(name, kind):
            return _listing(name, revision, kind)

    with strict_client():
        try:
            return retried(ask, "the hub", progress)
        except TransientError as error:
            raise _given_up(error) from error


def cached_listing(name: str, revision: str | None, kind: Kind = DATASET) -> Listing | None:
    """What the hub listed the last time that it was asked for this revision."""
    from huggingface_hub import errors

    try:
        return _listing(name, revision, kind, local_files_only=True)
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, errors.CachedRepoTreeNotFoundError):
        return None


def _listing(name: str, revision: str | None, kind: Kind, local_files_only: bool = False) -> Listing:
    """By the hub's client, which keeps what a commit has beside the files."""
    from huggingface_hub import constants, get_cached_repo_tree, snapshot_download

    folder = snapshot_download(
        name,
        repo_type=kind.word,
        revision=revision,
        endpoint=constants.ENDPOINT,
        cache_dir=constants.HF_HUB_CACHE,
        allow_patterns=list(kind.asked_first),
        local_files_only=local_files_only,
        tqdm_class=_counter(lambda _: None),
    )
    commit = Path(folder).name
    tree = get_cached_repo_tree(name, repo_type=kind.word, revision=commit, cache_dir=constants.HF_HUB_CACHE)
    files = tuple(HubFile(each.path, each.size) for each in tree if _stays_inside(each.path))
    return Listing(name, commit, files, kind)


def cached(listing: Listing, file: HubFile) -> Path | None:
    """Where the cache has a file, in its right size."""
    from huggingface_hub import constants, try_to_load_from_cache

    found = try_to_load_from_cache(
        listing.name, file.path, cache_dir=constants.HF_HUB_CACHE, revision=listing.commit, repo_type=listing.kind.word
    )
    path = Path(found) if isinstance(found, str) else None
    return path if path and path.stat().st_size == file.size else None


def fetch_files(listing: Listing, files: Sequence[HubFile], progress: "Progress | None" = None) -> list[Path]:
    """The files in the hub's cache, in order, several at a time. Raises UnreachableError, or the kind's error."""
    stop, lock = Event(), Lock()
    total, here, fetched = sum(file.size for file in files), dict.fromkeys(files, 0), 0

    def tell(file: HubFile, size: int) -> None:
        nonlocal fetched
        with lock:
            fetched += size - here[file]
            here[file] = size
            if progress:
                progress(fetched, total, f"bytes of {listing.name} fetched")

    def say(done: int, total: int | None, what: str, details: str = "") -> None:
        with lock:
            if progress:
                progress(done, total, what, details)

    def fetch(file: HubFile) -> Path:
        path = cached(listing, file) or _fetched(listing, file, None, say, lambda size: tell(file, size), stop.wait)
        tell(file, file.size)
        return path

    with strict_client(stop), ThreadPoolExecutor(AT_ONCE) as threads:
        futures = [threads.submit(fetch, file) for file in files]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def fetch_to(folder: Path, listing: Listing, file: HubFile) -> Path:
    """One file in a folder of the caller's, apart from the cache. Raises UnreachableError, or the kind's error."""
    with strict_client():
        return _fetched(listing, file, folder, None, lambda _: None, time.sleep)


def _fetched(
    listing: Listing,
    file: HubFile,
    folder: Path | None,
    say: "Progress | None",
    tell: Callable[[int], None],
    sleep: Callable[[float], object],
) -> Path:
    """A file fetched anew and found to be the listed one."""
    from huggingface_hub import constants, hf_hub_download

    where = f"{listing.name}, {file.path}"

    def fetch() -> Path:
        with clear_errors(where, listing.commit, listing.kind), disk_errors(where, listing.kind):
            path = hf_hub_download(
                listing.name,
                file.path,
                repo_type=listing.kind.word,
                revision=listing.commit,
                endpoint=constants.ENDPOINT,
                cache_dir=folder or constants.HF_HUB_CACHE,
                tqdm_class=_counter(tell),
            )
        return _checked(Path(path), file)

    try:
        return retried(fetch, "the hub", say, sleep)
    except WrongContentError as error:
        raise listing.kind.error(
            f"{where}: {error}, again and again; a proxy, a sign-in page or a mirror changes it: try another network, "
            f"or another mirror in HF_ENDPOINT; {listing.kind.elsewhere}"
        ) from error
    except TransientError as error:
        raise _given_up(error, f" for {file.path}") from error


def _given_up(error: TransientError, what: str = "") -> UnreachableError:
    """After the last attempt, in words."""
    answer = f"the hub answers {error}" if str(error)[:1].isdigit() else f"the hub cannot be reached: {error}"
    return UnreachableError(answer + what)


def _checked(path: Path, file: HubFile) -> Path:
    """path, or, when its content is not the listed one, it is removed and WrongContentError raised."""
    kept = path.parent / path.readlink() if path.is_symlink() else path  # the cache names it by its checksum
    wrong = None
    with path.open("rb") as stream:
        page = is_html(stream.read(64))
    if path.stat().st_size != file.size:
        wrong = f"{path.stat().st_size:,} bytes came instead of {file.size:,}"
    elif not _is_told(kept.name, path):
        wrong = "the checksum is not the hub's"
    if wrong is None:
        return path
    for each in (kept, path):
        each.unlink(missing_ok=True)
    raise WrongContentError(wrong + (" and it is an HTML page" if page else ""))


def _is_told(checksum: str, path: Path) -> bool:
    """Is this the content that the hub told the checksum of?

    That is SHA-256 for large files, and git's for the others: SHA-1 of a header and the content.
    """
    if len(checksum) == 64:
        return checksum == sha256(path)
    if len(checksum) != 40:
        return True  # a mirror's own kind
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return checksum == digest.hexdigest()


def _counter(tell: Callable[[int], None]) -> Any:
    """A progress bar's class for huggingface_hub that shows nothing and tells how many bytes of a file are there."""
    from huggingface_hub.utils.tqdm import tqdm

    class Counter(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
            super().__init__(*args, initial=initial, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self.bytes = initial

        def update(self, n: float | None = 1) -> None:
            self.bytes += int(n or 0)
            tell(self.bytes)

    return Counter


def _stays_inside(path: str) -> bool:
    """Is a listed path one that stays in its folder?"""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts
