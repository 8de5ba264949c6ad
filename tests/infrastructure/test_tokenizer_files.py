"""tokenizer.json: other tools read ours and encode the same; what is no such file is named and refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import models, pre_tokenizers

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.tokenizers import Tokenizer, byte_tokenizer, load_tokenizer

AsHub = Callable[[Tokenizer], Any]
Stories = Callable[..., list[str]]
WORDS = ["They", " said", " café", "🙂", '"Hi!"', "<|user|>", "<|endoftext|>", "\n\n", "  ", "it's", " 1234"]


@pytest.fixture(scope="module")
def chat(stories: Stories) -> Tokenizer:
    return train_bpe(stories(200), 302, specials=["<|user|>", "<|assistant|>"])


@pytest.mark.parametrize("kind", ["bytes", "bpe", "chat", "gpt2"])
def test_saved_file_gives_the_same_ids_here_and_in_tokenizers(
    kind: str, request: pytest.FixtureRequest, as_hub: AsHub, stories: Stories, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    hub = as_hub(tokenizer)
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.name == loaded.name == {"chat": "bpe"}.get(kind, kind)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.vocab_size, loaded.specials) == (tokenizer.vocab_size, tokenizer.specials)
    assert hub.get_vocab_size() == tokenizer.vocab_size
    for name, number in tokenizer.specials.items():
        assert hub.token_to_id(name) == number
        assert hub.get_added_tokens_decoder()[number].special

    @settings(max_examples=150)
    @given(st.one_of(st.text(), st.text(alphabet=" \n\t'sltaé🙂1.<|>"), st.lists(st.sampled_from(WORDS)).map("".join)))
    def agree(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids == loaded.encode(text) == hub.encode(text).ids
        assert tokenizer.decode(ids) == text == hub.decode(ids)

    agree()
    for text in stories(20, seed=1):
        assert tokenizer.encode(text) == hub.encode(text).ids


def test_special_tokens_are_found_by_other_tools_that_look_for_them(chat: Tokenizer, as_hub: AsHub) -> None:
    hub = as_hub(chat)
    hub.encode_special_tokens = False
    assert hub.encode("<|user|>They").ids == [chat.special("<|user|>"), *chat.encode("They")]


def test_special_tokens_may_come_first(chat: Tokenizer, as_hub: AsHub, tmp_path: Path) -> None:
    vocabulary, merges, _ = chat.rules
    moved = Tokenizer({token: number + 1 for token, number in vocabulary.items()}, merges, {"<s>": 0})
    as_hub(moved)
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert (loaded.specials, loaded.end_of_text) == ({"<s>": 0}, None)
    assert loaded.encode("They said") == [number + 1 for number in chat.encode("They said")]


def special(**changes: Any) -> dict[str, Any]:
    """An added token as `tokenizers` writes it."""
    return {"id": 300, "content": "<|user|>", "special": True} | changes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document["model"].pop("merges"), "'merges'"),
        (lambda document: document.update(normalizer={"type": "NFC"}), "normalizer"),
        (lambda document: document.update(pre_tokenizer={"type": "Sequence", "pretokenizers": []}), "splits text"),
        (lambda document: document["pre_tokenizer"].update(add_prefix_space=True), "a space before it"),
        (lambda document: document["model"]["merges"].reverse(), "order of the merges"),
        (lambda document: document["model"]["merges"].pop(), r"43 tokens of two bytes or more, but 42 merges"),
        (lambda document: document["model"]["merges"].append("q zz"), "'zz', which is not in its vocabulary"),
        (lambda document: document["model"]["merges"].append("q z z"), "not a tokenizer"),
        (lambda document: document["model"]["vocab"].update(a="b"), "not whole numbers"),
        (lambda document: document["model"]["vocab"].update(a=-1), "none with id 97"),
        (lambda document: document["model"]["vocab"].update({" ": 300}), "stands for no byte"),
        (lambda document: document["model"]["vocab"].pop("a"), "none with id 97"),
        (lambda document: document["added_tokens"].append(special(id=299)), "two of its tokens have id 299"),
        (lambda document: document["added_tokens"].append(special(id=97)), "two of its tokens have id 97"),
        (lambda document: document["added_tokens"].append(special(id=500)), "301 tokens, but none with id 300"),
        (lambda document: document["added_tokens"].append(special(content="a")), "'a' has two ids"),
        (lambda document: document["added_tokens"].append(special(content="<|endoftext|>")), "has two ids"),
        (lambda document: document["added_tokens"].append(special(special=False)), "looked for in every text"),
        (lambda document: document["added_tokens"].append(special(id="x")), "not a tokenizer"),
        (lambda document: document.pop("model"), "nothing under 'model'"),
        (lambda document: document.update(model=[]), "not a tokenizer"),
    ],
)
def test_files_that_do_not_add_up_are_refused(change: Any, words: str, bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["vocab"].pop("<|endoftext|>")
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    assert_refused(path, words)


def assert_refused(path: Path, words: str) -> None:
    """With the words, the file, and the remedy, in two lines at most."""
    with pytest.raises(DataError, match=words) as caught:
        load_tokenizer(path)
    message = str(caught.value)
    assert str(path) in message
    assert "--tokenizer gpt2, bpe or bytes" in message
    assert message.count("\n") < 2
    assert len(message) < 400


def word_piece() -> str:
    return str(HubTokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).to_str())


def unigram() -> str:
    return str(HubTokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)).to_str())


def like_llama_2() -> str:
    return str(HubTokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], byte_fallback=True)).to_str())


def like_llama_3() -> str:
    made = HubTokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    parts = [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return str(made.to_str())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (word_piece(), "model is WordPiece"),
        (unigram(), "model is Unigram"),
        (like_llama_2(), "byte fallback, as Llama 2 has"),
        (like_llama_3(), "splits text in another way"),
        (b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02\n\x0c\n\x03<s>", "a SentencePiece model"),
        (pickle.dumps({"a": 1}), "a pickle, which is never opened"),
        (b"PK\x03\x04\x80\xff", "a binary file"),
        (b"\xff\xfe", "a binary file"),
        (b"", "the file is empty"),
        (b'{"model": {"type": "BPE", "vo', "cut short, or not JSON"),
        (b"[PAD]\n[UNK]\nthe\n", "cut short, or not JSON"),
        (b"[" * 100_000, "cut short, or not JSON"),
        (b"[]", "JSON, but not an object"),
        (b"null", "JSON, but not an object"),
        (b'{"hello": 0}', "nothing under 'model'"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 50 else "",
)
def test_files_of_other_kinds_are_named_and_refused(content: str | bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert_refused(path, words)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, r"cannot be read \(Is a directory\)")
    assert_refused(tmp_path / "missing.json", r"cannot be read \(No such file")
