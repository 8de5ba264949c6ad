"""States small enough to save by the hundred, and tokenizers to try things on."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as HubTokenizer

from smallgpt.domain.state import TrainingState
from smallgpt.infrastructure.bpe_training import train_bpe
from smallgpt.infrastructure.tokenizers import Tokenizer, gpt2_tokenizer
from tests.faulty_store import FaultyStore, faulty_store

SHARED_CACHE = Path(__file__).parents[3] / "shared" / "tiktoken-cache"
WORDS = ["Once", "upon", "a", "time", "was", "girl's", "dog.", "They'll", "said:", "1234", "café", "🙂", '"Hi!"']


def filled_state(step: int) -> TrainingState:
    """Every number in it is its step, so that a mixture of two saves shows."""
    value = float(step)
    return TrainingState(
        step=step,
        weights={
            "transformer.wte.weight": torch.full((61, 32), value),
            "transformer.ln_f.bias": torch.full((32,), value),
        },
        optimizer={"transformer.wte.weight/exp_avg": torch.full((61, 32), value)},
        loop={"tokens": step, "best": None, "scaler": {}, "seconds": value},
    )


@pytest.fixture
def make_state() -> Callable[[int], TrainingState]:
    return filled_state


def made_up_stories(count: int, seed: int = 0) -> list[str]:
    """The same for the same count and seed."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=60)) + rng.choice(["", "\n", "\n\nThe  end."]) for _ in range(count)]


@pytest.fixture(scope="session")
def stories() -> Callable[..., list[str]]:
    return made_up_stories


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """Trained on 200 stories; 300 ids."""
    return train_bpe(made_up_stories(200), 300)


@pytest.fixture(scope="session")
def gpt2() -> Tokenizer:
    """GPT-2's own, where its files are at hand."""
    if not SHARED_CACHE.is_dir():
        pytest.skip("the GPT-2 files are not in ../shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(SHARED_CACHE))
        return gpt2_tokenizer()


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FaultyStore]]:
    """An object store that fails as it is told, and an empty cache."""
    monkeypatch.setenv("SMALLGPT_CACHE", str(tmp_path / "cache"))
    with faulty_store() as store:
        yield store


@pytest.fixture
def as_hub(tmp_path: Path) -> Callable[[Tokenizer], Any]:
    """The same tokenizer as another tool reads it."""

    def read(tokenizer: Tokenizer) -> Any:
        tokenizer.save(tmp_path / "tokenizer.json")
        hub = HubTokenizer.from_file(str(tmp_path / "tokenizer.json"))
        hub.encode_special_tokens = True
        return hub

    return read
