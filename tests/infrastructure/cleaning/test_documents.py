"""Batches give every document once, whole where it fits, whatever the streams and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.infrastructure.cleaning import documents
from smallgpt.infrastructure.cleaning.documents import DocumentTokens
from tests.infrastructure.cleaning.made import END, split_of

TEXTS = st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=20)


def together(split: DocumentTokens, tokens: int) -> list[list[int]]:
    """The documents, put together from their batches."""
    found: list[list[int]] = [[] for _ in range(len(split))]
    for batch in split.batches(tokens):
        assert len(batch.ids) <= tokens
        assert batch.offsets[-1] == len(batch.ids)
        for at, number in enumerate(range(batch.documents.start, batch.documents.stop)):
            assert len(found[number]) == (batch.skipped if at == 0 else 0)
            found[number] += batch.ids[batch.offsets[at] : batch.offsets[at + 1]].tolist()
    return found


@pytest.mark.parametrize("end_of_text", [END, None])
@given(texts=TEXTS, pieces=st.integers(1, 3), tokens=st.integers(1, 40))
def test_every_document_comes_once(end_of_text: int | None, texts: list[list[int]], pieces: int, tokens: int) -> None:
    split = split_of(texts, pieces=min(pieces, len(texts)), end_of_text=end_of_text)
    assert len(split) == len(texts)
    assert together(split, tokens) == texts


def test_many_small_documents_come_in_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_DOCUMENTS_AT_ONCE", 7)
    texts = [[at] for at in range(100)]
    assert together(split_of(texts, pieces=3), 1000) == texts


def test_an_end_of_text_inside_a_document_stays() -> None:
    assert together(split_of([[1, END, 2], [3]]), 99) == [[1, END, 2], [3]]
