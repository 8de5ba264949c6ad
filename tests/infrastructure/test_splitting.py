"""What is held out stays held out when the corpus grows, and below which size that is not so."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import ConfigError, DataError
from smallgpt.infrastructure.corpora.splitting import hold_out


def split_documents(texts: Sequence[str], share: float = 0.05) -> tuple[list[str], list[str]]:
    held_out = hold_out(texts, share)
    both = [held_out.parts(text) for text in texts]
    return [train for train, _ in both if train.strip()], [held for _, held in both if held.strip()]


def held_out(documents: Sequence[str], share: float = 0.05) -> set[str]:
    return set(split_documents(documents, share)[1])


def texts(count: int, kind: str = "") -> list[str]:
    return [f"{kind} document {at} " + "word " * (at % 17) for at in range(count)]


@settings(max_examples=30)
@given(
    st.integers(400, 700),
    st.lists(st.text(alphabet="xyz", min_size=1, max_size=30), max_size=300),
    st.sampled_from([0.05, 0.1, 0.3]),
    st.booleans(),
)
def test_from_400_documents_on_each_keeps_its_side(count: int, added: list[str], share: float, before: bool) -> None:
    corpus = texts(count)
    grown = [*added, *corpus] if before else [*corpus, *added]
    assert held_out(grown, share) & set(corpus) == held_out(corpus, share)


def test_a_corpus_that_grows_tenfold_keeps_every_side() -> None:
    whole = texts(8_000)
    sides = [held_out(whole[:count]) & set(whole[:400]) for count in (400, 800, 8_000)]
    assert sides[0] == sides[1] == sides[2]
    assert len(sides[0]) > 5


def test_a_small_share_needs_more_documents_so_that_some_are_held_out() -> None:
    for kind in "abcdefghij":
        corpus = texts(500, kind)
        assert 0 < len("".join(held_out(corpus, 0.002))) < 0.01 * len("".join(corpus))
    corpus = texts(12_000)
    assert held_out(corpus[:10_000], 0.002) == held_out(corpus, 0.002) & set(corpus[:10_000])


@given(st.permutations(texts(30)))
def test_below_400_the_order_of_documents_does_not_matter(shuffled: list[str]) -> None:
    assert held_out(shuffled) == held_out(texts(30))


def test_below_400_the_sides_may_change_as_the_corpus_grows() -> None:
    corpus = texts(380)
    sides = [held_out(corpus[:count]) & set(corpus[:40]) for count in range(40, 381, 20)]
    assert len(set(map(frozenset, sides))) > 1


@pytest.mark.parametrize("count", [1, 2, 5, 50, 399])
def test_below_400_the_share_is_kept_to_within_a_factor_of_two(count: int) -> None:
    corpus = [each + " The rest of it is here." * 20 for each in texts(count)]
    share = sum(map(len, held_out(corpus))) / sum(map(len, corpus))
    assert 0.024 < share <= 0.101


def test_the_share_is_held_out_and_copies_stay_together() -> None:
    texts = [f"document {i % 4000} " + "word " * 20 for i in range(6000)]
    train, validation = split_documents(texts, 0.05)
    held_out = list(validation)
    assert 0.03 < len(held_out) / len(texts) < 0.07
    assert not set(held_out) & set(train)
    assert len(held_out) + len(list(train)) == len(texts)
    assert held_out == list(split_documents(texts[::-1], 0.05)[1])[::-1]  # decided by the text alone


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.text(alphabet="ab .\n", min_size=1, max_size=60), min_size=1, max_size=30), st.floats(0.02, 0.3))
def test_small_corpora_lose_nothing_and_never_cross(texts: list[str], share: float) -> None:
    texts = [text for text in texts if text.strip()]
    if sum(map(len, set(texts))) < 200:
        return
    train, validation = split_documents(texts, share)
    kept, held_out = list(train), list(validation)
    assert kept
    assert held_out
    assert sorted("".join(kept + held_out).replace(" ", "").replace("\n", "")) == sorted(
        "".join(texts).replace(" ", "").replace("\n", "")
    )
    assert not set(kept) & set(held_out) or len(kept + held_out) > len(texts)


@pytest.mark.parametrize(
    ("unit", "end"),
    [("A line.\nA second.\n\n", "\n\n"), ("One line after another\n", "\n"), ("A sentence. ", ". "), ("word ", " ")],
)
def test_one_long_document_is_cut_at_a_boundary(unit: str, end: str) -> None:
    text = unit * 500
    train, validation = (list(side) for side in split_documents([text]))
    assert (len(train), len(validation)) == (1, 1)
    assert train[0] + validation[0] == text
    assert train[0].endswith(end)
    assert 0.04 < len(validation[0]) / len(text) < 0.11


def test_a_book_among_notes_is_cut_rather_than_held_out() -> None:
    book = "It was a long story. " * 2000
    train, validation = (list(side) for side in split_documents([book, "short note", "another note", book]))
    assert sum(map(len, validation)) / (2 * len(book)) == pytest.approx(0.05, abs=0.02)
    assert {"short note", "another note"} <= set(train)


def test_no_text_and_impossible_shares() -> None:
    with pytest.raises(DataError, match="only white space"):
        split_documents(["", " \n"])
    for share in (0.0, 1.0, -1.0, 2.0):
        with pytest.raises(ConfigError, match="validation_share"):
            split_documents(["text"], share)
