"""The command, run in this process."""

from collections.abc import Callable

import pytest

from smallgpt.interfaces.cli import main

Run = Callable[..., tuple[int, str, str]]


def leave(*words: str) -> int:
    """Run the command -> its exit code."""
    with pytest.raises(SystemExit) as left:
        main(words)
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command: (exit code, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        code = leave(*words)
        return code, *capsys.readouterr()

    return call
