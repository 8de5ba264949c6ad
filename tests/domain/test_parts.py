"""Words for the parts of a model."""

import pytest

from smallgpt.domain.config import GPTConfig
from smallgpt.domain.gpt import GPT
from smallgpt.domain.parts import check_parts, check_targets, is_part, is_target

NAMES = [
    name for name, _ in GPT(GPTConfig(n_layer=11, n_embd=8, n_head=1, vocab_size=5, block_size=4)).named_parameters()
]
TABLES = {"transformer.wte.weight", "transformer.wpe.weight"}


def covered(*words: str) -> set[str]:
    return {name for name in NAMES if is_part(name, words)}


def test_every_parameter_is_a_table_a_norm_an_attentions_or_an_mlps() -> None:
    parts = [covered(word) for word in ("embeddings", "norms", "attention", "mlp")]
    assert sorted(name for part in parts for name in part) == sorted(NAMES)
    assert parts[0] == TABLES
    assert covered("positions") == {"transformer.wpe.weight"}


def test_blocks_hold_their_norms_and_the_last_norm_is_in_none() -> None:
    assert covered("blocks") == {name for name in NAMES if name not in TABLES and "ln_f" not in name}
    assert covered("blocks.0-10") == covered("blocks")
    assert covered("blocks.1") == {name for name in NAMES if name.startswith("transformer.h.1.")}, "and not block 10"
    assert covered("blocks.0", "blocks.2-3") == {name for name in NAMES if name.split(".")[2] in ("0", "2", "3")}


@pytest.mark.parametrize("word", ["head", "block.0", "blocks.", "blocks.-1", "blocks.1-", "blocks.a", "", "norms "])
def test_other_words_are_refused_with_those_that_there_are(word: str) -> None:
    with pytest.raises(ValueError, match=r"no part of a model; name embeddings, positions, .*blocks\.N-M"):
        check_parts(["norms", word])


def test_a_range_has_a_beginning_before_its_end() -> None:
    check_parts(["blocks.2-2"])
    with pytest.raises(ValueError, match=r"write blocks\.1-3"):
        check_parts(["blocks.3-1"])


def test_targets_are_ends_of_names_as_in_peft() -> None:
    assert is_target("transformer.h.0.mlp.c_proj", ["c_proj"])
    assert not is_target("transformer.h.0.mlp.c_proj", ["attn.c_proj", "proj"])
    check_targets(["c_attn", "mlp.c_fc"])
    with pytest.raises(ValueError, match="'q_proj' is no matrix of a block; name c_attn"):
        check_targets(["c_attn", "q_proj"])
