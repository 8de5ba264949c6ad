"""Pickles that would run code do not, whatever way they take to it; plain values come out as they went in."""

import builtins
import copyreg
import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallgpt.infrastructure.formats import safe_pickle
from smallgpt.infrastructure.formats.safe_pickle import BUILDING, Made, read_pickle

ENCODING = "tiktoken.core.Encoding"
ALLOWED = BUILDING | {ENCODING}
FIND = b"ctiktoken.core\nEncoding\n"
MADE = FIND + b")\x81"  # an object of it


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def text(word: str) -> bytes:
    return b"\x8c" + struct.pack("B", len(word)) + word.encode()


def found(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def payloads(proof: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make the file `proof` where Python's own machine reads them, and what the refusal names."""
    command, code = f"touch {proof}", f"open({str(proof)!r}, 'w').close()"
    shell, system = text(command) + b"\x85R.", f"{os.name}.system"
    dumps = pickle.dumps
    return {
        "system": (dumps(Calls(os.system, command)), system),
        "system, protocol 0": (dumps(Calls(os.system, command), 0), system),
        "eval": (dumps(Calls(eval, code)), "builtins.eval"),
        "exec, protocol 2": (dumps(Calls(exec, code), 2), "builtins.exec"),
        "subprocess": (dumps(Calls(subprocess.call, ["touch", str(proof)])), "subprocess.call"),
        "deep in a state": (
            b"\x80\x04" + MADE + dumps({"name": [{1: Calls(eval, code)}]})[2:-1] + b"b.",
            "builtins.eval",
        ),
        "as a key": (dumps({Calls(eval, code): 1}), "builtins.eval"),
        "before the rest": (
            b"\x80\x04" + found("builtins", "eval") + text(code) + b"\x85R0" + MADE + b".",
            "builtins.eval",
        ),
        "getattr": (dumps(Calls(getattr, Calls(__import__, "os"), "system")), "builtins.getattr"),
        "getattr chain": (
            b"\x80\x04" + found("tiktoken.core", "Encoding.__init__.__globals__") + b".",
            "tiktoken.core.Encoding.__init__.__globals__",
        ),
        "names from the memo": (
            b"\x80\x04" + text("os") + b"\x94" + text("system") + b"\x9400h\x00h\x01\x93" + shell,
            "os.system",
        ),
        "INST": (f"(V{command}\nios\nsystem\n.".encode(), "INST of 'os system'"),
        "OBJ": (b"(cos\nsystem\nV" + command.encode() + b"\no.", "os.system"),
        "a call of what was made": (b"\x80\x04" + MADE + text("x") + b"\x85R.", "call 'Made'"),
        "a class with arguments": (b"\x80\x04" + FIND + text("x") + b"\x85\x81.", "make a tiktoken.core.Encoding"),
        "_reconstructor of another": (
            dumps(Calls(copyreg._reconstructor, builtins.object, builtins.object, None), 2),  # type: ignore[attr-defined]
            "builtins.object",
        ),
        "encode by another codec": (
            b"\x80\x04" + found("_codecs", "encode") + text("x") + text("hex") + b"\x86R.",
            "_codecs",
        ),
        "state of a function": (b"\x80\x04" + found("_codecs", "encode") + b"}b.", "Named"),
        "two states": (b"\x80\x04" + MADE + b"\x88b}b.", "two states"),
        "persistent": (b"Pposix system\n.", "PERSID"),
        "persistent, binary": (b"\x80\x02X\x01\x00\x00\x00aQ.", "BINPERSID"),
        "extension": (b"\x80\x02\x82\x01.", "EXT1"),
        "out-of-band buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "bytearray": (dumps(bytearray(b"x"), 5), "BYTEARRAY8"),
        "a set": (dumps({1}), "EMPTY_SET"),
        "ordered": (dumps(OrderedDict()), "collections.OrderedDict"),
        "a float": (dumps(1.5), "BINFLOAT"),
    }


NAMES = list(payloads(Path("proof")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("allowed", [ALLOWED, frozenset()], ids=["objects", "plain"])
def test_what_would_run_code_is_refused_and_named(name: str, allowed: frozenset[str], tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    content, words = payloads(proof)[name]
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError) as refused:
        read_pickle(tmp_path / "x.pkl", allowed)
    assert not proof.exists()
    assert words in str(refused.value) or not allowed
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("name", ["system", "eval", "deep in a state", "names from the memo", "INST", "OBJ"])
def test_pythons_own_machine_would_have_run_it(name: str, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    content, _ = payloads(proof)[name]
    try:
        pickle.loads(content)
    except Exception:  # after the deed
        assert proof.exists()
    assert proof.exists()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner, inner, inner)
        | st.tuples(inner)
        | st.dictionaries(st.text() | st.binary() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_out_as_they_went_in(protocol: int, tmp_path: Path) -> None:
    @given(value=values)
    def agree(value: Any) -> None:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol))
        assert read_pickle(tmp_path / "x.pkl", BUILDING) == value

    agree()


def test_what_is_named_twice_is_the_same_object(tmp_path: Path) -> None:
    shared = [1, 2]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([shared, shared, "a" * 300, 2**70]))
    again = read_pickle(tmp_path / "x.pkl")
    assert again == [shared, shared, "a" * 300, 2**70]
    assert again[0] is again[1]


def test_an_object_is_its_class_and_its_state(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + MADE + pickle.dumps({"a": 1})[2:-1] + b"b.")
    assert read_pickle(tmp_path / "x.pkl", ALLOWED) == Made(ENCODING, {"a": 1})


NO_PICKLES = [b"", b".", b"N", b"NN.", b"(N.", b"hello", b"]e.", b"t.", b"h\x05.", b"(Nd.", b"K\x01K\x02s."]


@pytest.mark.parametrize("content", [*NO_PICKLES, b"\x80\x04K\x01", b"\x80\x04\x8a\xff."])
def test_what_is_no_pickle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError):
        read_pickle(tmp_path / "x.pkl", ALLOWED)


def test_bombs_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pkl"
    doubled = b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))  # a tuple twice in a tuple, and so on: 2^60 hashes
    path.write_bytes(b"\x80\x04}N" + doubled + b"K\x01s.")
    with pytest.raises(ValueError, match="a tuple is the key of a dict"):
        read_pickle(path)
    path.write_bytes(b"\x80\x04)r\xff\xff\xff\xff.")  # the memo's place four billion
    assert read_pickle(path) == ()
    monkeypatch.setattr(safe_pickle, "LARGEST", 4)
    with pytest.raises(ValueError, match="9 bytes, and at most 4"):
        read_pickle(path)


def test_text_encoded_again_and_again_does_not_fill_the_memory(tmp_path: Path) -> None:
    words = b"X" + struct.pack("<I", 10_000) + b"a" * 10_000 + b"\x94"  # remembered as 0
    encode = found("_codecs", "encode") + b"\x94" + text("latin1") + b"\x94"  # as 1 and 2
    call = b"h\x01h\x00h\x02\x86R"
    path = tmp_path / "many.pkl"
    path.write_bytes(b"\x80\x04](" + words + encode + b"000" + call * 5_000 + b"e.")
    with pytest.raises(ValueError, match="more bytes than it holds"):
        read_pickle(path, BUILDING)
