"""What goes wrong between here and the hub, in one or two lines that name the remedy."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.corpora.hub_client import StoppedError
from smallgpt.infrastructure.retrying import TransientError, reason_of

ELSEWHERE = "without it use `smallgpt prepare text FILES` or `smallgpt prepare demo`"
_TOKEN = "set HF_TOKEN to a token that may read it (huggingface.co/settings/tokens)"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class WrongContentError(TransientError):
    """Another content than the one that the hub lists."""


@contextmanager
def clear_errors(where: str, revision: str | None) -> Iterator[None]:
    """The client's errors as DataError where one answer is enough, as TransientError where it is not.

    where is the dataset's name, or that, a comma and a file.
    """
    try:
        yield
    except (TransientError, StoppedError, DataError):
        raise
    except Exception as error:
        cleared = _clear(error, where, revision)
        if cleared is None:
            raise
        raise cleared from error


def _clear(error: Exception, where: str, revision: str | None) -> Exception | None:
    """What to raise instead; None for what has nothing to do with the hub."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the client looked into the cache, too
    match error:
        case errors.GatedRepoError():
            page = f"{endpoint}/datasets/{where.partition(',')[0]}"
            return DataError(f"{where}: gated; accept its terms at {page} and {_TOKEN}; {ELSEWHERE}")
        case errors.RevisionNotFoundError():
            return DataError(f"{where}: no revision {revision!r} on the hub; choose another --revision")
        case errors.RepositoryNotFoundError():
            missing = f"no such dataset on the hub ({endpoint}), or a private one"
            return DataError(f"{where}: {missing}: check the name, or {_TOKEN}; {ELSEWHERE}")
        case errors.RemoteEntryNotFoundError():
            return DataError(f"{where}: listed, but not there (404); choose another mirror in HF_ENDPOINT; {ELSEWHERE}")
        case errors.HfHubHTTPError():
            status = error.response.status_code
            if status in (401, 403):
                return DataError(f"{where}: access denied ({status}); {_TOKEN}; {ELSEWHERE}")
            return DataError(f"{where}: the hub ({endpoint}) answers {status}; {ELSEWHERE}")
        case errors.HFValidationError():
            return DataError(f"{where}: not a dataset's name ({reason_of(error)}); it is OWNER/NAME, or a folder")
        case errors.CachedRepoTreeNotFoundError():
            return DataError(f"{where}: the cache cannot be written ({constants.HF_HUB_CACHE}); move it with HF_HOME")
        case errors.LocalEntryNotFoundError() | errors.FileMetadataError() | ValueError():
            return TransientError("this is not a hub's answer, but perhaps a proxy's or a sign-in page")
        case OSError(errno=None) if "Consistency check" in str(error):
            return WrongContentError("the size is not the hub's")
        case OSError(errno=None) | RuntimeError() | errors.XetDownloadError():  # xet: the hub's way for large files
            return TransientError(reason_of(error))
    # The HTTP library is not the same in every version.
    return TransientError(reason_of(error)) if type(error).__module__.startswith("http") else None


@contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """The system's errors in writing the cache, as DataError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        reason = os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")
        remedy = "free some space, or move it with HF_HOME" if error.errno in _FULL else "move it with HF_HOME"
        raise DataError(f"{where}: the cache cannot be written ({reason}); {remedy}") from error
