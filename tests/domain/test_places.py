"""What may be written of a place: everything but what opens it."""

import pytest

from smallgpt.domain.places import without_secrets


@pytest.mark.parametrize(
    ("written", "cleared"),
    [
        ("https://me:secret@host/data", "https://host/data"),
        ("https://secret@host/data", "https://host/data"),  # a token alone
        ("https://me:sec@ret@host/data", "https://host/data"),
        ("s3://bucket/runs@first/x", "s3://bucket/runs@first/x"),
        ("https://host/file?signature=secret", "https://host/file"),
        ("cannot open https://secret@host/a and ftp://me:secret@host/b", "cannot open https://host/a and ftp://host/b"),
    ],
)
def test_no_secret_is_left(written: str, cleared: str) -> None:
    assert without_secrets(written) == cleared
