"""Guessing the next tokens from the text itself: what followed the last few tokens when they came before."""

from collections.abc import Sequence

LONGEST_MATCH = 3


def lookup(ids: Sequence[int], n_draft: int) -> list[int]:
    """Up to n_draft tokens that followed the latest earlier occurrence of the last 3, else 2, tokens of ids; often none.

    Prompt-lookup decoding: the model reads the guess in the same pass as the last token, and keeps what it would have said
    itself (github.com/apoorvumang/prompt-lookup-decoding).
    """
    for size in range(LONGEST_MATCH, 1, -1):
        tail = list(ids[-size:])
        for start in range(len(ids) - size - 1, -1, -1):
            if ids[start] == tail[0] and list(ids[start : start + size]) == tail:
                return list(ids[start + size : start + size + n_draft])
    return []
