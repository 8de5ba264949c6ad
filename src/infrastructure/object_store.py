"""A folder of an object store, or of anything else that fsspec reaches: S3, Google's and Azure's stores, sftp, a disk.

What goes wrong there is a domain error of one or two lines, without a password in it; what may pass is tried again.
"""

import errno
import posixpath
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from smallgpt.domain.errors import ConfigError, SmallGPTError
from smallgpt.domain.places import without_secrets
from smallgpt.infrastructure.progress import Progress
from smallgpt.infrastructure.retrying import BUSY, TransientError, busy, reason_of, retried

Result = TypeVar("Result")

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "oci": "ocifs",
    "oss": "ossfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
}
"""What to install for a protocol."""
WITHOUT_FOLDERS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "http", "https")
"""Protocols whose names have slashes and no folders, so that none has to be made; to make one could make a bucket."""
FINAL = (errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class Store:
    """A folder behind a URL. Methods raise `error`, and ConfigError where the URL itself is wrong."""

    def __init__(
        self,
        url: str,
        error: type[SmallGPTError],
        progress: Progress | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`progress` hears of attempts, `sleep` waits between them."""
        self.url, self.error, self.progress, self.sleep = without_secrets(url).rstrip("/"), error, progress, sleep
        self.fs, self.root = _opened(url)
        self.protocol = url.partition("://")[0]

    def inside(self, name: str) -> "Store":
        """A folder of this one."""
        store = object.__new__(Store)
        store.__dict__ = {**self.__dict__, "url": f"{self.url}/{name}", "root": self._path(name)}
        return store

    def folders(self, name: str = "") -> list[str]:
        """The names of the folders in a folder, sorted; none where there is no such folder."""

        def listed() -> list[str]:
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self._path(name), detail=True)
            except FileNotFoundError:
                return []
            return sorted(posixpath.basename(each["name"].rstrip("/")) for each in found if each["type"] == "directory")

        return self._tried(listed, name)

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none."""

        def content() -> bytes | None:
            try:
                found: bytes = self.fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return found

        return self._tried(content, name)

    def fetch(self, name: str, target: Path, told: Callable[[int], object]) -> bool:
        """Copy a file to `target`; False where there is none. `told` hears how many bytes have come."""
        from fsspec.callbacks import Callback

        def copied() -> bool:
            callback = Callback(hooks={"told": lambda size, value, **_: told(value)})
            try:
                self.fs.get_file(self._path(name), str(target), callback=callback)
            except FileNotFoundError:
                return False
            return True

        return self._tried(copied, name)

    def put(self, path: Path, name: str) -> None:
        """Copy a file of this machine, whole."""

        def copied() -> None:
            self._make_folder(name)
            self.fs.put_file(str(path), self._path(name))
            self.fs.invalidate_cache()
            there, here = self.fs.size(self._path(name)), path.stat().st_size
            if there != here:
                raise TransientError(f"{there} of {here} bytes are there")

        self._tried(copied, name)

    def write(self, name: str, content: bytes) -> None:
        """Replace a small file."""

        def written() -> None:
            self._make_folder(name)
            self.fs.pipe_file(self._path(name), content)

        self._tried(written, name)

    def remove_folder(self, name: str, first: str) -> None:
        """Remove a folder and the files in it, if it is there; the one called `first` before the others."""

        def removed() -> None:
            self.fs.invalidate_cache()
            folder = self._path(name)
            for path in sorted(self.fs.find(folder), key=lambda path: posixpath.basename(path) != first):
                self.fs.rm_file(path)  # not rm, which takes [ and * in a name for a pattern
            if self.protocol not in WITHOUT_FOLDERS and self.fs.isdir(folder):
                self.fs.rmdir(folder)
            self.fs.invalidate_cache()

        self._tried(removed, name)

    def _path(self, name: str) -> str:
        return posixpath.join(self.root, name) if name else self.root

    def _make_folder(self, name: str) -> None:
        if self.protocol not in WITHOUT_FOLDERS:
            self.fs.makedirs(posixpath.dirname(self._path(name)), exist_ok=True)

    def _tried(self, step: Callable[[], Result], name: str) -> Result:
        where = f"{self.url}/{name}" if name else self.url

        def once() -> Result:
            try:
                return step()
            except Exception as error:
                raise self._cleared(error, where) from None  # what a library says may hold passwords

        try:
            return retried(once, self.url, self.progress, self.sleep)
        except TransientError as error:
            raise self.error(f"{where}: {error}, again and again; try again when the store answers") from None

    def _cleared(self, error: Exception, where: str) -> Exception:
        """A library's error as one of ours, as TransientError where another attempt may help, or as it is."""
        reason = reason_of(error)  # what a library says may hold passwords
        status = getattr(error, "status", None) or getattr(error, "code", None)
        match error:
            case TransientError() | SmallGPTError():
                return error
            case FileNotFoundError():
                return self.error(f"{where}: not there; check the bucket and the folder")
            case OSError(errno=number) if number in FINAL:
                return self.error(f"{where}: {reason}; mend that, or choose another folder")
        if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__:
            package = PACKAGES.get(self.protocol)
            keys = f"{package} finds (its environment variables or files)" if package else "this machine has"
            return self.error(f"{where}: access denied ({reason}); check the credentials that {keys}, and their rights")
        if status in BUSY:
            return busy(int(str(status)), None)
        if status == 404:
            return self.error(f"{where}: not there (404); check the bucket and the folder")
        own = type(error).__module__ == "builtins" and not isinstance(error, OSError | EOFError)
        return error if own else TransientError(reason)


def _opened(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it. Raises ConfigError for a protocol that it does not have."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        fs, root = fsspec.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        remedy = f"the package {package}: pip install {package}" if package else f"another package: {error}"
        raise ConfigError(f"{protocol}://... needs {remedy}") from None
    except ValueError as error:
        words = without_secrets(str(error).splitlines()[0])
        raise ConfigError(
            f"{without_secrets(url)}: {words}; it is like s3://bucket/folder or gs://bucket/folder"
        ) from None
    return fs, str(root).rstrip("/")
