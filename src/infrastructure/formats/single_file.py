"""The one file of a format that keeps a model in one."""

from pathlib import Path

from smallgpt.domain.errors import CheckpointError


def single_file(path: Path, kind: str) -> Path:
    """The file itself, or the only one of the kind in a folder. Raises CheckpointError where there are several."""
    if not path.is_dir():
        return path
    files = sorted(path.glob(f"*.{kind.lower()}"))
    if len(files) != 1:
        raise CheckpointError(f"{path} holds {len(files)} {kind} files; name one, such as {files[0]}")
    return files[0]
