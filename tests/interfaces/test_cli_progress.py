"""Progress of long preparations where there is no terminal: some lines, and the last count of all."""

from io import StringIO

from rich.console import Console

from smallgpt.interfaces.cli.progress import shown


def lines(*told: tuple[int, int | None, str, str]) -> list[str]:
    out = StringIO()
    with shown(Console(file=out, width=80)) as tell:
        for words in told:
            tell(*words)
    return out.getvalue().splitlines()


def test_the_last_count_is_shown() -> None:
    verified = [(done, 30, "bytes verified", "") for done in (10, 20, 30)]
    assert lines(*verified) == ["bytes verified 10 of 30", "bytes verified 30 of 30"]


def test_the_last_count_is_shown_once() -> None:
    assert lines((5, 5, "files", ""), (5, 5, "files", "")) == ["files 5 of 5"]
    assert lines((1, None, "read", ""), (2, None, "read", ""), (0, None, "merged", "")) == ["read 1", "merged"]
