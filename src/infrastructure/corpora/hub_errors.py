"""What goes wrong between here and the hub, in one or two lines that name the remedy."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from smallgpt.domain.errors import SmallGPTError
from smallgpt.infrastructure.corpora.hub_client import StoppedError
from smallgpt.infrastructure.corpora.hub_kinds import Kind
from smallgpt.infrastructure.retrying import TransientError, reason_of

_TOKEN = "set HF_TOKEN to a token that may read it (huggingface.co/settings/tokens)"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class WrongContentError(TransientError):
    """Another content than the one that the hub lists."""


@contextmanager
def clear_errors(where: str, revision: str | None, kind: Kind) -> Iterator[None]:
    """The client's errors as kind.error where one answer is enough, as TransientError where it is not.

    where is the repository's name, or that, a comma and a file.
    """
    try:
        yield
    except (TransientError, StoppedError, SmallGPTError):
        raise
    except Exception as error:
        cleared = _clear(error, where, revision, kind)
        if cleared is None:
            raise
        raise cleared from error


def _clear(error: Exception, where: str, revision: str | None, kind: Kind) -> Exception | None:
    """What to raise instead; None for what has nothing to do with the hub."""
    from huggingface_hub import constants, errors

    endpoint, elsewhere = constants.ENDPOINT, kind.elsewhere
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        error = error.__cause__  # the client looked into the cache, too
    match error:
        case errors.GatedRepoError():
            page = f"{endpoint}/{kind.pages}{where.partition(',')[0]}"
            return kind.error(f"{where}: gated; accept its terms at {page} and {_TOKEN}; {elsewhere}")
        case errors.RevisionNotFoundError():
            return kind.error(f"{where}: no revision {revision!r} on the hub; choose another --revision")
        case errors.RepositoryNotFoundError():
            missing = f"no such {kind.word} on the hub ({endpoint}), or a private one"
            return kind.error(f"{where}: {missing}: check the name, or {_TOKEN}; {elsewhere}")
        case errors.RemoteEntryNotFoundError():
            return kind.error(
                f"{where}: listed, but not there (404); choose another mirror in HF_ENDPOINT; {elsewhere}"
            )
        case errors.HfHubHTTPError():
            status = error.response.status_code
            if status in (401, 403):
                return kind.error(f"{where}: access denied ({status}); {_TOKEN}; {elsewhere}")
            return kind.error(f"{where}: the hub ({endpoint}) answers {status}; {elsewhere}")
        case errors.HFValidationError():
            return kind.error(f"{where}: not a {kind.word}'s name ({reason_of(error)}); it is OWNER/NAME, or a folder")
        case errors.CachedRepoTreeNotFoundError():
            return kind.error(f"{where}: the cache cannot be written ({constants.HF_HUB_CACHE}); move it with HF_HOME")
        case errors.LocalEntryNotFoundError() | errors.FileMetadataError() | ValueError():
            return TransientError("this is not a hub's answer, but perhaps a proxy's or a sign-in page")
        case OSError(errno=None) if "Consistency check" in str(error):
            return WrongContentError("the size is not the hub's")
        case OSError(errno=None) | RuntimeError() | errors.XetDownloadError():  # xet: the hub's way for large files
            return TransientError(reason_of(error))
    # The HTTP library is not the same in every version.
    return TransientError(reason_of(error)) if type(error).__module__.startswith("http") else None


@contextmanager
def disk_errors(where: str, kind: Kind) -> Iterator[None]:
    """The system's errors in writing the cache, as kind.error."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        reason = os.strerror(error.errno) + (f": {error.filename}" if error.filename else "")
        remedy = "free some space, or move it with HF_HOME" if error.errno in _FULL else "move it with HF_HOME"
        raise kind.error(f"{where}: the cache cannot be written ({reason}); {remedy}") from error
