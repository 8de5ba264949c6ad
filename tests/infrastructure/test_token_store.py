"""Token files: what opening refuses, the shuffle, the batches as a pure function, and evaluation blocks."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.data_folder import write_data_folder
from smallgpt.infrastructure.permutation import permute
from smallgpt.infrastructure.token_store import (
    ShortThenFull,
    WindowBatches,
    evaluation_blocks,
    open_store,
    verify_store,
)
from smallgpt.infrastructure.tokenizers import byte_tokenizer, train_bpe

TRAIN = [f"Story {i}: once upon a time there was a dog." for i in range(30)]
VALIDATION = ["The cat sat on the mat.", "Café 🙂"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "bytes"
    write_data_folder(out, TRAIN, VALIDATION, byte_tokenizer(), "test")
    return out


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_a_data_folder_reads_back(folder: Path) -> None:
    store = verify_store(folder)
    tokens = store.tokens("validation")
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [*VALIDATION[0].encode(), 256, *VALIDATION[1].encode(), 256]
    assert store.text_bytes("validation") == sum(len(text.encode()) for text in VALIDATION)
    assert (store.documents("train"), store.documents("validation")) == (30, 2)
    assert (store.vocab_size, store.end_of_text) == (257, 256)
    assert store.tokenizer_file == folder / "tokenizer.json"
    assert store.baselines.keys() == {"uniform", "unigram", "bigram", "trigram", "fitted_tokens"}
    assert store.baselines["unigram"] < store.baselines["uniform"] == pytest.approx(np.log(257))
    tokenizer = store.tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(tokens.tolist()) == "<|endoftext|>".join([*VALIDATION, ""])
    with pytest.raises(DataError, match="no split 'test', only train, validation"):
        store.tokens("test")


def test_the_mapped_tokens_cannot_be_written(folder: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_store(folder).tokens("train")[0] = 1


def _manifest_change(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        (folder / "dataset.json").write_text(json.dumps(document | changes), encoding="utf-8")

    return change


def _cut(folder: Path) -> None:
    content = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(content[:-1])


def _grow(folder: Path) -> None:
    with (folder / "validation.bin").open("ab") as file:
        file.write(b"\1\0")


def _large_id(folder: Path) -> None:
    with (folder / "train.bin").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\x01\x01")  # 257


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut, r"train\.bin: \d+ bytes, but dataset.json says \d+ tokens of 2 bytes.*prepare the data again"),
        (_grow, r"validation\.bin: \d+ bytes"),
        (_large_id, r"token id 257, but the vocabulary ends at 256"),
        (lambda folder: (folder / "validation.bin").unlink(), r"validation\.bin: cannot be read"),
        (lambda folder: (folder / "dataset.json").unlink(), r"token files without.*smallgpt prepare bins"),
        (lambda folder: (folder / "dataset.json").write_text("{"), r"dataset\.json: the file: Invalid JSON"),
        (_manifest_change(format_version=2), r"format_version"),
        (_manifest_change(dtype="float32"), r"dtype"),
        (_manifest_change(splits={}), r"no split 'train'"),
        (_manifest_change(vocab_size=200), r"token id 256"),
        (_manifest_change(dtype="uint32"), r"tokens of 4 bytes"),
        (lambda folder: shutil.rmtree(folder), r"no such data folder; `smallgpt prepare demo --out"),
    ],
)
def test_a_damaged_folder_is_refused(damage: Callable[[Path], None], words: str, folder: Path) -> None:
    damage(folder)
    with pytest.raises(DataError, match=words):
        open_store(folder)


def test_a_manifest_cannot_point_outside_its_folder(folder: Path) -> None:
    text = (folder / "dataset.json").read_text(encoding="utf-8")
    (folder / "dataset.json").write_text(text.replace("train.bin", "../copy/train.bin"), encoding="utf-8")
    with pytest.raises(DataError, match=r"splits\.train\.files"):
        open_store(folder)


def test_a_flipped_bit_passes_the_quick_check_and_not_the_full_one(folder: Path) -> None:
    content = bytearray((folder / "train.bin").read_bytes())
    content[10] ^= 1
    (folder / "train.bin").write_bytes(content)
    open_store(folder)
    with pytest.raises(DataError, match=r"train\.bin: SHA-256 .* but dataset.json has"):
        verify_store(folder)


def test_another_tokenizer_is_noticed(folder: Path) -> None:
    train_bpe(TRAIN, 300).save(folder / "tokenizer.json")
    with pytest.raises(DataError, match=r"fingerprint .* but the tokens were made with"):
        _ = open_store(folder).tokenizer


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_the_shuffle_is_a_bijection(n: int, key: int) -> None:
    places = permute(np.arange(n), n, np.full(n, key, dtype=np.uint64))
    assert np.array_equal(np.sort(places), np.arange(n))


def test_the_shuffle_is_fixed_for_ever_and_spreads() -> None:
    first = permute(np.arange(10), 10, np.full(10, 7, dtype=np.uint64))
    assert first.tolist() == [7, 1, 9, 0, 6, 3, 4, 5, 8, 2]
    n = 5000
    places = permute(np.arange(n), n, np.full(n, 1, dtype=np.uint64))
    assert abs(np.corrcoef(np.arange(n), places)[0, 1]) < 0.05
    assert np.abs(np.diff(places)).mean() > n / 4  # a third of n is what chance gives
    assert (places == permute(np.arange(n), n, np.full(n, 2, dtype=np.uint64))).mean() < 0.01


def test_large_corpora_need_no_table() -> None:
    n = 10**12
    places = permute(np.array([0, 1, n - 1]), n, np.zeros(3, dtype=np.uint64))
    assert len(set(places.tolist())) == 3
    assert (places < n).all()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    tokens=st.integers(2, 400),
    block_size=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**31 - 1),
)
def test_an_epoch_visits_each_window_once(tokens: int, block_size: int, batch_size: int, seed: int) -> None:
    if tokens <= block_size:
        return
    stream = np.arange(tokens, dtype=np.uint16)
    batches = WindowBatches(stream, block_size=block_size, batch_size=batch_size, seed=seed)
    n, T = batches.windows, block_size
    steps = -(-2 * n // batch_size)
    pairs = [batches.rows(step, range(batch_size)) for step in range(steps)]
    inputs, targets = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)  # tokens count up, so the next token is one more
    assert int(targets.max()) < tokens
    for epoch in range(2):
        starts = inputs[epoch * n : (epoch + 1) * n, 0]
        phase = int(starts.min())
        assert sorted(starts.tolist()) == [phase + T * window for window in range(n)]
        assert phase < T


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_any_number_of_processes_sees_the_same_stream(processes: int) -> None:
    batches = WindowBatches(np.arange(1000, dtype=np.uint16), block_size=16, batch_size=8, seed=3)
    for step in (0, 5, 17):
        whole = batches.rows(step, range(8))
        for rank in range(processes):
            x, y = batches.rows(step, range(rank, 8, processes))
            assert torch.equal(x, whole[0][rank::processes])
            assert torch.equal(y, whole[1][rank::processes])


def test_batches_depend_on_seed_and_epoch_only() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    a = WindowBatches(tokens, block_size=16, batch_size=8, seed=3)
    later = a.rows(9, range(8))
    a.rows(0, range(8))
    assert torch.equal(a.rows(9, range(8))[0], later[0])
    b = WindowBatches(tokens, block_size=16, batch_size=8, seed=4)
    assert not torch.equal(b.rows(9, range(8))[0], later[0])
    epochs = [Counter((a.rows(0, range(e * a.windows, (e + 1) * a.windows))[0][:, 0] % 16).tolist()) for e in range(20)]
    assert all(len(phases) == 1 for phases in epochs)
    assert len({next(iter(phases)) for phases in epochs}) > 5  # windows start elsewhere in every epoch


def test_too_few_tokens_for_a_block() -> None:
    with pytest.raises(DataError, match=r"16 training tokens .* block of 16 .* at most 15"):
        WindowBatches(np.arange(16, dtype=np.uint16), block_size=16, batch_size=1, seed=0)
    x, y = WindowBatches(np.arange(17, dtype=np.uint16), block_size=16, batch_size=1, seed=0).rows(0, range(1))
    assert (int(x[0, 0]), int(y[0, -1])) == (0, 16)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    count=st.integers(2, 100),
    block_size=st.integers(1, 12),
    batch=st.integers(1, 4),
    start=st.sampled_from([None, 500]),
    limit=st.none() | st.integers(1, 120),
)
def test_evaluation_predicts_every_token_once(
    count: int, block_size: int, batch: int, start: int | None, limit: int | None
) -> None:
    tokens = np.arange(1, count + 1, dtype=np.uint16)
    pairs = list(evaluation_blocks(tokens, block_size, start, max_tokens=limit, batch=batch))
    inputs = torch.cat([x.flatten() for x, _ in pairs])
    targets = torch.cat([y.flatten() for _, y in pairs])
    real = targets != -100
    expected = tokens.tolist() if start is not None else tokens.tolist()[1:]
    assert targets[real].tolist() == expected[:limit]
    context = ([] if start is None else [start]) + tokens.tolist()
    assert inputs[real].tolist() == context[: int(real.sum())]
    assert real.nonzero().flatten().tolist() == list(range(int(real.sum())))  # only the end is filled up
    assert all(x.shape == y.shape and x.shape[1] == block_size and x.shape[0] <= batch for x, y in pairs)
    assert inputs.dtype == targets.dtype == torch.int64


def test_nothing_to_evaluate() -> None:
    with pytest.raises(DataError, match="1 tokens leave nothing to predict"):
        next(evaluation_blocks(np.array([3], dtype=np.uint16), 8, None))


def test_short_windows_come_first_and_keep_the_tokens_of_a_step() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    batches = ShortThenFull(tokens, block_size=8, batch_size=4, seed=0, short_steps=2)
    assert [batches.rows(step, range(4))[0].shape for step in (0, 1, 2, 3)] == [(8, 4), (8, 4), (4, 8), (4, 8)]
    whole, parts = batches.rows(1, range(4))[0], [batches.rows(1, range(rank, 4, 2))[0] for rank in (0, 1)]
    assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, torch.cat(parts).tolist()))
