"""The card's numbers against plain lists, and its words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.infrastructure import card
from smallgpt.infrastructure.card import (
    Card,
    SplitCard,
    describe_coverage,
    describe_lengths,
    describe_split,
    document_lengths,
)
from smallgpt.infrastructure.card_words import markdown
from smallgpt.infrastructure.cleaning.contamination import Contamination
from smallgpt.infrastructure.cleaning.duplicates import Duplicates, Place
from smallgpt.infrastructure.cleaning.near_duplicates import NearDuplicates
from smallgpt.infrastructure.manifest import Manifest, SplitFacts, TokenFile
from tests.infrastructure.cleaning.made import END, split_of

TEXTS = st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=20)


def facts(tokens: int, documents: int | None = None, text_bytes: int | None = None) -> SplitFacts:
    return SplitFacts(
        files=(TokenFile(name="a.bin", tokens=tokens, sha256="0"),),
        tokens=tokens,
        sha256="0",
        highest_id=9,
        documents=documents,
        starts=None,
        text_bytes=text_bytes,
        longest_document=None,
    )


def manifest(**changes: object) -> Manifest:
    given = {"splits": {"train": facts(3_000), "validation": facts(100)}, "tokenizer": None, "baselines": None}
    return Manifest(dtype="uint16", vocab_size=300, source="letters", **{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("end_of_text", [END, None])
@given(texts=TEXTS, pieces=st.integers(1, 3))
def test_lengths_are_those_of_the_documents(end_of_text: int | None, texts: list[list[int]], pieces: int) -> None:
    split = split_of(texts, pieces=min(pieces, len(texts)), end_of_text=end_of_text)
    assert document_lengths(split).tolist() == [len(text) for text in texts]


def test_lengths_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [[1] * length for length in (3, 0, 2, 5, 1, 4, 6)]
    for at_once in range(1, 9):
        monkeypatch.setattr(card, "_AT_ONCE", at_once)
        assert document_lengths(split_of(texts, pieces=2)).tolist() == [3, 0, 2, 5, 1, 4, 6]


def test_a_last_document_without_end_of_text_keeps_its_last_token() -> None:
    split = split_of([[1, 2], [3, 4, 5]])
    (piece,) = split.pieces
    cut = type(split)((type(piece)(piece.tokens[slice(-1)], piece.starts),), END)
    assert document_lengths(cut).tolist() == [2, 3]


def test_quantiles_and_what_block_sizes_cut() -> None:
    lengths = describe_lengths(np.array([*range(1, 100), 2100], dtype=np.uint32))
    assert (lengths.shortest, lengths.median, lengths.p90, lengths.p99, lengths.longest) == (1, 50, 90, 99, 2100)
    assert lengths.mean == (99 * 50 + 2100) / 100
    cuts = {cut.block_size: cut for cut in lengths.cuts}
    assert cuts[128].documents == cuts[2048].documents == 0.01
    assert cuts[2048].tokens == pytest.approx(52 / 7050)
    assert cuts[128].tokens == pytest.approx((2100 - 128) / 7050)


def test_coverage_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = np.array([0] * 98 + [1, 2, 5], dtype=np.uint16), np.array([0, 7, 8], dtype=np.uint16)
    for at_once in (10, 1000):
        monkeypatch.setattr(card, "_AT_ONCE", at_once)
        found = describe_coverage(train, validation, 10)
        assert (found.used, found.for_99_percent, found.validation_only, found.never) == (4, 3, 2, 4)


def test_bytes_per_token_leave_end_of_text_out_where_documents_are_known() -> None:
    described = manifest(splits={"train": facts(10, 2, 40), "validation": facts(10)})
    assert describe_split(described, "train", np.array([3, 5], dtype=np.uint32)).bytes_per_token == 5
    assert describe_split(described, "train", None).bytes_per_token == 4
    assert describe_split(described, "validation", None).bytes_per_token is None


def whole_card() -> Card:
    keep = np.ones(4, dtype=np.bool_)
    example: tuple[tuple[Place, Place], ...] = ((("validation", 0), ("train", 1_234)),)
    near = NearDuplicates(keep, keep, 1_500, 2, 0, example, clusters=70, threshold=0.8)
    seen = Contamination(13, np.array([0.25, 0, 0.9], dtype=np.float32), 100, 40)
    lengths = describe_lengths(np.array([10, 300], dtype=np.uint32))
    splits: dict[card.Split, SplitCard] = {
        "train": SplitCard(3_000_000, 2, 9_000_000, 3.0, lengths),
        "validation": SplitCard(1_000_000, 2, None, None, lengths),
    }
    coverage = card.Coverage(used=250, for_99_percent=100, never=49, validation_only=1)
    baselines = {"uniform": 5.7, "trigram": 2.5, "fitted_tokens": 3_000_000.0}
    described = manifest(baselines=baselines, revision="abc123")
    return Card(described, splits, coverage, Duplicates(keep, keep, 0, 0, 0, ()), near, seen)


def test_the_card_in_words() -> None:
    text = markdown(whole_card(), lambda place: f"{place[0]} says | *this*\nand more")
    for part in (
        "# letters\n\nText from letters, revision abc123, as ids of an unknown tokenizer (300 ids).",
        "| documents | 2 | 2 |",
        "| bytes of text | 9,000,000 | unknown |",
        "Validation has 25.00 % of the tokens.",
        "![How long the documents are](lengths.png)",
        "| longest | 300 | 300 |",
        "| 128 | 50.00 % | 55.48 % |",
        "| that validation has and training has not | 1 |",
        "Tables of 3,000,000 training tokens reach",
        "| trigram | 2.500 |",
        "Equal documents: none.",
        "Near copies, which share 80 % of their 5-grams by estimate: 1,500 training documents repeat another one,",
        "They are of 70 clusters.",
        r"| validation 0 | train 1,234 | train says \| \*this\* and more |",
        "Of 3 validation documents, 2 share a run of 13 tokens with training, 1 at least half of their runs, 1 at least 80 %",
        "| validation 2 | 90.00 % |",
    ):
        assert part in text, part


def test_what_was_not_looked_for_is_said_so() -> None:
    known = whole_card()
    bare = Card(known.manifest, {n: SplitCard(10, None, None, None, None) for n in known.splits}, known.coverage)
    text = markdown(bare, lambda place: "")
    assert "Not known: the files do not tell where documents begin." in text
    assert "smallgpt prepare card DIR --near-duplicates" in text
    assert "smallgpt prepare card DIR --contamination" in text
    assert "lengths.png" not in text
    assert bare.as_dict()["contamination"] is bare.as_dict()["exact_duplicates"] is None


def test_the_card_as_facts() -> None:
    found = whole_card().as_dict()
    assert found["splits"]["train"]["lengths"]["cuts"][0] == {
        "block_size": 128,
        "documents": 0.5,
        "tokens": pytest.approx(172 / 310),
    }
    assert found["near_duplicates"]["examples"] == [[["validation", 0], ["train", 1_234]]]
    assert found["contamination"]["worst"] == [{"document": 2, "share": 0.9}, {"document": 0, "share": 0.25}]
    assert found["contamination"]["share_of_ngrams"] == 0.4
