"""The parts of a model that settings can name: what is frozen, and which matrices get low-rank updates. Imports no torch.

embeddings   both tables, and with the tokens' table the output head, which is the same matrix
positions    the position table alone
norms        every layer norm
attention    every attention's two matrices        mlp   every MLP's
blocks       whole blocks, their norms included: all, blocks.0 or blocks.0-3, counted from 0
"""

import re
from collections.abc import Sequence

PATTERNS = {
    "embeddings": r"\.w[tp]e\.",
    "positions": r"\.wpe\.",
    "norms": r"\.ln(1|2|_f)\.",
    "attention": r"\.attn\.",
    "mlp": r"\.mlp\.",
    "blocks": r"\.h\.",
}
"""What is found in the names of a part's parameters."""
RANGE = re.compile(r"blocks\.(\d+)(?:-(\d+))?")
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""A block's matrices."""


def check_parts(words: Sequence[str]) -> None:
    """Raises ValueError for the first word that names no part."""
    for word in words:
        first, last = blocks_of(word) or (0, 0)
        if word not in PATTERNS and not RANGE.fullmatch(word):
            raise ValueError(
                f"{word!r} is no part of a model; name {', '.join(PATTERNS)}, blocks.N or blocks.N-M, counted from 0"
            )
        if first > last:
            raise ValueError(f"{word} ends before it begins; write blocks.{last}-{first}")


def blocks_of(word: str) -> tuple[int, int] | None:
    """The first and the last block of blocks.N or blocks.N-M; None for other words."""
    found = RANGE.fullmatch(word)
    return (int(found[1]), int(found[2] or found[1])) if found else None


def is_part(name: str, words: Sequence[str]) -> bool:
    """Does a parameter, or a module written as `NAME.`, belong to one of the parts?"""
    return any(_is_of(name, word) for word in words)


def _is_of(name: str, word: str) -> bool:
    blocks = blocks_of(word)
    if blocks is None:
        return re.search(PATTERNS[word], name) is not None
    number = re.search(r"\.h\.(\d+)\.", name)
    return number is not None and blocks[0] <= int(number[1]) <= blocks[1]


def check_targets(targets: Sequence[str]) -> None:
    """Raises ValueError for the first target that is no matrix of a block."""
    for target in targets:
        if not any(is_target(matrix, [target]) for matrix in MATRICES):
            raise ValueError(f"{target!r} is no matrix of a block; name c_attn, c_proj, c_fc, or one as {MATRICES[1]}")


def is_target(name: str, targets: Sequence[str]) -> bool:
    """Is the matrix of that name meant? A target is the end of a name, as in peft: c_proj means both of a block."""
    return any(f".{name}".endswith(f".{target}") for target in targets)
