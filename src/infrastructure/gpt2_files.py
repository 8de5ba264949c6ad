"""GPT-2's two tokenizer files in tiktoken's cache, fetched with time-outs, bounded retries and a check of the content.

tiktoken alone fetches them without a time-out or a second try, and reports a wrong file as a bug of its own. Users who
have the files of GPT-2's release can put them, as vocab.bpe and encoder.json, into the folder TIKTOKEN_CACHE_DIR.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha1, sha256
from pathlib import Path
from typing import TYPE_CHECKING

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.retrying import BUSY, TransientError, busy, innermost, is_html, reason_of, retried

if TYPE_CHECKING:
    from urllib3.response import HTTPResponse

    from smallgpt.infrastructure.progress import Progress

ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
"""tiktoken's; the names in its cache are SHA-1 of address and file name."""
LARGEST = 4_000_000
"""Bytes; more cannot be one of the files."""
TIME_OUT = 10.0
"""Seconds to connect, and between bytes."""
PATIENCE = 60.0
"""Seconds for a file."""


@dataclass(frozen=True)
class Gpt2File:
    """A file of GPT-2's release."""

    name: str
    sha256: str

    @property
    def cached_as(self) -> str:
        """Its name in tiktoken's cache."""
        return sha1((ADDRESS + self.name).encode(), usedforsecurity=False).hexdigest()

    def is_right(self, content: bytes) -> bool:
        """Is this its content?"""
        return sha256(content).hexdigest() == self.sha256


MERGES = Gpt2File("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
"""The one that tells all tokens; tiktoken's own GPT-2 reads the other one too."""
FILES = (
    MERGES,
    Gpt2File("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
)


def cache_folder() -> Path | None:
    """Where tiktoken keeps files; None when the user has turned that off."""
    named = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if named == "":
        return None
    return Path(named) if named else Path(tempfile.gettempdir()) / "data-gym-cache"


def provide_gpt2_files(progress: "Progress | None" = None, address: str = ADDRESS) -> None:
    """Put both files into tiktoken's cache, unless they are there. Raises DataError when they cannot be had."""
    folder = cache_folder()
    if folder is None:
        return
    for file in FILES:
        place = folder / file.cached_as
        if _has(place, file):
            continue
        try:
            own = folder / file.name
            content = own.read_bytes() if _has(own, file) else _fetch(address + file.name, file, progress)
            _write(place, content)
        except TransientError as error:
            raise DataError(_missing(file, str(error))) from error
        except OSError as error:
            raise DataError(
                f"the GPT-2 tokenizer cannot be kept in tiktoken's cache ({folder}: {error.strerror}); set "
                "TIKTOKEN_CACHE_DIR to a folder that can be written, or use --tokenizer bpe or bytes"
            ) from error


def _has(path: Path, file: Gpt2File) -> bool:
    return path.is_file() and path.stat().st_size <= LARGEST and file.is_right(path.read_bytes())


def _fetch(url: str, file: Gpt2File, progress: "Progress | None") -> bytes:
    """Its right content. Raises TransientError for what may work later, DataError for the rest."""
    import requests
    from urllib3.exceptions import HTTPError

    def fetch() -> bytes:
        try:
            with requests.get(url, timeout=TIME_OUT, stream=True) as response:
                if response.status_code in BUSY:
                    raise busy(response.status_code, response.headers.get("Retry-After"))
                if response.status_code != 200:
                    raise DataError(_missing(file, f"the server answers {response.status_code}"))
                content = _bounded(response.raw)
        except (requests.RequestException, HTTPError) as error:
            if isinstance(error, requests.ConnectTimeout) or _is_hopeless(innermost(error)):
                raise DataError(_missing(file, reason_of(error))) from error
            raise TransientError(reason_of(error)) from error
        if not file.is_right(content):
            raise TransientError("an HTML page came instead" if is_html(content) else "its checksum is wrong")
        return content

    if progress:
        progress(0, None, f"fetching GPT-2's {file.name}")
    return retried(fetch, "the GPT-2 files' server", progress)


def _bounded(stream: "HTTPResponse") -> bytes:
    """All of it, as long as it is not too much or too slow."""
    began, content = time.monotonic(), bytearray()
    while chunk := stream.read1(2**16, decode_content=True):
        content += chunk
        if len(content) > LARGEST:
            raise TransientError(f"more than {LARGEST:,} bytes came")
        if time.monotonic() - began > PATIENCE:
            raise TransientError(f"only {len(content):,} bytes in {PATIENCE:.0f} s")
    return bytes(content)


def _is_hopeless(error: BaseException) -> bool:
    """Is it no such name, no route, nobody there or a wrong certificate, which the next second does not change?"""
    passing = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, TimeoutError)
    return isinstance(error, OSError) and not isinstance(error, passing)


def _write(path: Path, content: bytes) -> None:
    """Replace a file as a whole, also when another process does the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _missing(file: Gpt2File, reason: str) -> str:
    return (
        f"the GPT-2 tokenizer is not in tiktoken's cache and its {file.name} could not be fetched ({reason}); use "
        "--tokenizer bpe or bytes, or set TIKTOKEN_CACHE_DIR to a folder with vocab.bpe and encoder.json, or to a "
        "copy of the cache of a machine that has it"
    )
