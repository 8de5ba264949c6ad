"""A continuation's text: the same however it is cut into tokens, and never a character that may have to be taken back."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.infrastructure.text_stream import TextStream
from smallgpt.infrastructure.tokenizers import END_OF_TEXT, Tokenizer, byte_tokenizer

FEW = "abé日"  # few characters make many coincidences; three of one, two and three bytes
# Each is two of what stands before it, or of single bytes: tokens of several characters, and of parts of them.
LONGER = [b"ab", b"ba", b"abab", b"bab", b"\xc3\xa9", b"a\xc3"]
MERGES = [(b"a", b"b"), (b"b", b"a"), (b"ab", b"ab"), (b"b", b"ab"), (b"\xc3", b"\xa9"), (b"a", b"\xc3")]
IDS = {**byte_tokenizer().rules.vocabulary, **{token: 257 + at for at, token in enumerate(LONGER)}}
TOKENIZER = Tokenizer(IDS, MERGES, {END_OF_TEXT: 256})


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[int]]:
    """A text, and its bytes cut into tokens anyhow."""
    text = draw(st.text(FEW, max_size=12) | st.text("ab", max_size=12))
    data, ids = text.encode(), list[int]()
    while data:
        token = draw(st.sampled_from([data[:size] for size in (4, 3, 2, 1) if data[:size] in IDS]))
        ids.append(IDS[token])
        data = data[len(token) :]
    return text, ids


def first_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop that is complete first, and that stop: by trying every length."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def streamed(ids: Sequence[int], stops: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER, stops)
    pieces = []
    for id in ids:
        pieces.append(stream.feed(id))
        if stream.stop:
            break
    return [*pieces, stream.flush()], stream


@given(cut_texts())
def test_without_stops_the_text_is_what_the_tokens_say(cut: tuple[str, list[int]]) -> None:
    text, ids = cut
    pieces, stream = streamed(ids)
    assert "".join(pieces) == text
    assert stream.stop is None
    assert pieces[-1] == "", "a whole text leaves nothing to the end"


@settings(max_examples=500)
@given(cut_texts(), st.lists(st.text("ab", min_size=1, max_size=4) | st.text(FEW, min_size=1, max_size=4), max_size=4))
def test_the_first_complete_stop_ends_the_text_however_it_is_cut(cut: tuple[str, list[int]], stops: list[str]) -> None:
    text, ids = cut
    pieces, stream = streamed(ids, stops)
    assert ("".join(pieces), stream.stop) == first_stop(text, stops)


@given(cut_texts(), st.lists(st.text(FEW, min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_is_held_back_that_cannot_begin_a_stop(cut: tuple[str, list[int]], stops: list[str]) -> None:
    _, ids = cut
    stream, shown, so_far = TextStream(TOKENIZER, stops), "", b""
    for id in ids:
        shown += stream.feed(id)
        so_far += TOKENIZER.decode_bytes([id])
        if stream.stop:
            break
        held = so_far.decode(errors="ignore").removeprefix(shown)
        assert not held or any(stop.startswith(held) for stop in stops)


def test_stops_that_overlap() -> None:
    # "bc" is complete before "abcd" is; of "bc" and "abc", complete together, the longer one leaves less
    for stops, expected in ((["abcd", "bc"], ("xa", "bc")), (["bc", "abc"], ("x", "abc")), (["cd", "ab"], ("x", "ab"))):
        pieces, stream = streamed(b"xabcdy", stops)
        assert ("".join(pieces), stream.stop) == expected
    # both lie in what one token completes: the one that is complete first counts, as if the token were two
    for ids in ([*b"bab"], [98, IDS[b"ab"]], [IDS[b"bab"]]):
        pieces, stream = streamed(ids, ["bab", "a"])
        assert ("".join(pieces), stream.stop) == ("b", "a")


def test_a_stop_that_begins_again_inside_itself_is_found() -> None:
    pieces, stream = streamed(b"aabaabaaby", ["aabaaby"])
    assert ("".join(pieces), stream.stop) == ("aab", "aabaaby")


def test_after_a_stop_nothing_comes() -> None:
    stream = TextStream(TOKENIZER, ["b"])
    assert stream.feed(IDS[b"ab"]) == "a"
    assert (stream.feed(97), stream.flush(), stream.stop) == ("", "", "b")


@pytest.mark.parametrize(("ids", "text"), [([0xC3], "\ufffd"), ([97, 0xE6, 0x97], "a\ufffd"), ([0xC3, 97], "\ufffda")])
def test_an_unfinished_character_is_a_replacement_character(ids: list[int], text: str) -> None:
    assert "".join(streamed(ids)[0]) == text


def test_what_may_begin_a_stop_comes_at_the_end() -> None:
    stream = TextStream(TOKENIZER, ["aba"])
    assert [stream.feed(id) for id in b"ab"] == ["", ""]
    assert stream.flush() == "ab"
