"""Attention against the cache, by the Triton kernels: every length, split and whole, against a float64 formula."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from smallgpt.domain import ops as plain
from smallgpt.domain.errors import HardwareError
from smallgpt.kernels import launching, tiles
from smallgpt.kernels.attention import fused
from tests.kernels.fused.parity import DTYPES, assert_as_good_as_eager
from tests.kernels.memory import Memory

SHAPES = [  # (B, T, H, S, D)
    (1, 1, 1, 1, 16),  # the second token of a text; every count is 1
    (2, 1, 3, 7, 16),  # nothing is a multiple of anything
    (3, 1, 2, 129, 64),  # one slot more than the seed's context
    (1, 1, 1, 65, 128),  # the largest head
    (2, 1, 1, 40, 5),  # a head that is mostly padding
    (1, 1, 2, 530, 48),  # enough to split on any device
    (2, 2, 1, 9, 16),  # two queries
    (2, 4, 2, 131, 32),
    (1, 8, 1, 70, 80),  # as many as are guessed at once
    (1, 8, 1, 530, 64),  # split
    (2, 17, 1, 33, 16),  # two blocks of queries, the second with a single one
]


@contextmanager
def small_tiles() -> Iterator[None]:
    """Several steps a split, even of few keys."""
    with ExitStack() as stack:
        stack.enter_context(tiles.forced("attention", "one_query", {"BLOCK_N": 16, "num_warps": 4, "num_stages": 1}))
        entry = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1}
        stack.enter_context(tiles.forced("attention", "few_queries", entry))
        yield


@pytest.fixture
def splitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits of 16 keys, more than `combine` takes at a time from 257 keys on."""
    monkeypatch.setattr(fused, "MIN_SLOTS_TO_SPLIT", 1)
    monkeypatch.setattr(fused, "MIN_KEYS_PER_SPLIT", 16)
    monkeypatch.setattr(fused, "PROGRAMS_PER_MULTIPROCESSOR", 1000)


def formula(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Row by row and query by query, over the slots that it sees and no others."""
    T = q.size(1)
    rows = []
    for b, length in enumerate(lengths):
        for t in range(T):
            keys, values = (x[b, : length - T + t + 1] for x in (k, v))  # (seen, H, D)
            weights = (torch.einsum("hd,shd->hs", q[b, t], keys) / sqrt(q.size(-1))).softmax(-1)
            rows.append(torch.einsum("hs,shd->hd", weights, values))
    return torch.stack(rows).view(q.shape)


def operands(device: torch.device, dtype: torch.dtype, B: int, T: int, H: int, S: int, D: int) -> tuple[Tensor, ...]:
    """q as part of a projection, and k and v as the cache keeps them."""
    q = torch.randn(B, T, 3, H, D, device=device).to(dtype)[:, :, 0]
    k, v = torch.randn(2, B, H, S, D, device=device).to(dtype).transpose(2, 3)
    return q, k, v


def assert_right(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], memory: Memory, *, tell: bool = True, offset: int = 0
) -> None:
    """Guarded operands, the slots behind each length filled with nan and infinity, or no lengths at all without `tell`."""
    eager = formula(q, k, v, lengths)
    exact = formula(q.double(), k.double(), v.double(), lengths)
    stale_k, stale_v = k.clone(), v.clone()
    for b, n in enumerate(lengths):
        stale_k[b, n:], stale_v[b, n:] = torch.nan, torch.inf
    given = memory.guard(torch.tensor(lengths, device=q.device)) if tell else None
    q, k, v = (memory.guard(x, offset) for x in (q, stale_k, stale_v))
    y = fused.cached_attention(q, k, v, given)
    assert y.is_contiguous()
    assert_as_good_as_eager(y, eager, exact, q.dtype, "y")


def lengths_between(T: int, S: int, B: int) -> list[int]:
    """Different ones: the longest, the shortest, and between."""
    return [S, T, max(T, S // 2)][:B]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_shape_is_as_good_as_eager(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, memory: Memory
) -> None:
    B, T, H, S, D = shape
    assert_right(*operands(device, dtype, B, T, H, S, D), lengths_between(T, S, B), memory)  # type: ignore[call-arg,arg-type]


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_length_is_right_whole_and_split(
    T: int, dtype: torch.dtype, device: torch.device, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of each length from T to all 50 slots, over 4 splits: ends within a step, on its edge and on a split's."""
    S = 50
    q, k, v = operands(device, dtype, S - T + 1, T, 1, S, 16)
    with small_tiles():
        assert_right(q, k, v, list(range(T, S + 1)), memory)
        monkeypatch.setattr(fused, "MIN_SLOTS_TO_SPLIT", 1)
        monkeypatch.setattr(fused, "MIN_KEYS_PER_SPLIT", 16)
        monkeypatch.setattr(fused, "PROGRAMS_PER_MULTIPROCESSOR", 1000)
        assert_right(q, k, v, list(range(T, S + 1)), memory)


@pytest.mark.usefixtures("splitting")
@pytest.mark.parametrize("T", [1, 2, 8, 20])
def test_more_splits_than_are_joined_at_a_time(T: int, device: torch.device, memory: Memory) -> None:
    q, k, v = operands(device, torch.float32, 3, T, 2, 300, 24)
    with small_tiles():
        assert_right(q, k, v, [300, 257, max(T, 5)], memory)


@pytest.mark.usefixtures("splitting")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_queries_of_one_row_may_end_in_different_splits(
    dtype: torch.dtype, device: torch.device, memory: Memory
) -> None:
    """With 36 slots and 8 queries the first sees 29 and the last 36: the third split is nothing to the first four."""
    q, k, v = operands(device, dtype, 1, 8, 1, 48, 16)
    with small_tiles():
        assert_right(q, k, v, [36], memory)


@pytest.mark.parametrize("S", [1, 20, 128, 600])
def test_without_lengths_every_slot_is_seen(S: int, device: torch.device, memory: Memory) -> None:
    q, k, v = operands(device, torch.float16, 2, 1, 2, S, 32)
    assert_right(q, k, v, [S, S], memory, tell=False)
    everything = torch.full((2,), S, device=device)
    assert torch.equal(fused.cached_attention(q, k, v, None), fused.cached_attention(q, k, v, everything))


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "slots before heads": lambda x: x.contiguous(),
    "heads and batch exchanged": lambda x: x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
    "gaps": lambda x: torch.cat([x, x], 1)[:, : x.size(1)],
    "columns apart": lambda x: torch.stack([x, x], -1)[..., 0],
    "first slots of many": lambda x: (
        torch.cat([x, x, x], 1)[:, : x.size(1)].transpose(1, 2).contiguous().transpose(1, 2)
    ),
}


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_strides_and_alignment_do_not_matter(name: str, T: int, device: torch.device, memory: Memory) -> None:
    q, k, v = operands(device, torch.float32, 2, T, 3, 37, 16)
    lengths = torch.tensor([37, 20], device=device)
    expected = fused.cached_attention(q, k, v, lengths)
    view = VIEWS[name]
    for moved in ((view(q), k, v), (q, view(k), v), (q, k, view(v))):
        placed = [memory.guard(x, offset=1) for x in moved]
        assert torch.equal(fused.cached_attention(*placed, lengths), expected)  # type: ignore[call-arg]
    shared = torch.tensor([25], device=device)
    apart = fused.cached_attention(q, k, v, shared.repeat(2))
    assert torch.equal(fused.cached_attention(q, k, v, shared.expand(2)), apart)


@pytest.mark.parametrize("T", [1, 4])
def test_a_row_does_not_depend_on_the_others_and_results_repeat(T: int, device: torch.device) -> None:
    q, k, v = operands(device, torch.float16, 3, T, 2, 50, 16)
    lengths = torch.tensor([50, 9, 31], device=device)
    together = fused.cached_attention(q, k, v, lengths)
    assert torch.equal(together, fused.cached_attention(q, k, v, lengths))
    for row in range(3):
        alone = fused.cached_attention(*(x[row : row + 1] for x in (q, k, v, lengths)))
        assert torch.equal(alone[0], together[row])


@pytest.mark.usefixtures("splitting")
@pytest.mark.parametrize("T", [1, 2])
@pytest.mark.parametrize("S", [40, 300])
def test_large_scores_neither_overflow_nor_lose_the_largest(T: int, S: int, device: torch.device) -> None:
    """In a split, between splits, and between the sixteen splits that are joined first and the rest."""
    q, k, v = operands(device, torch.float32, 1, T, 1, S, 32)
    q, k = 100 * q, 100 * k
    k[:, :256] *= 2
    for split in (False, True):
        with small_tiles() if split else ExitStack():
            found = fused.cached_attention(q, k, v, torch.tensor([S], device=device))
        exact = formula(q.double(), k.double(), v.double(), [S])
        assert (found.double() - exact).abs().max() < 5e-3  # scores around 50,000 have an fp32 rounding of 4e-3


@pytest.mark.parametrize("T", [1, 2])
def test_a_query_that_sees_nothing_gets_zeros(T: int, device: torch.device, splitting: None) -> None:
    """And no more slots are read than there are, whatever a length says."""
    q, k, v = operands(device, torch.float32, 3, T, 1, 40, 16)
    for split in (False, True):
        with small_tiles() if split else ExitStack():
            y = fused.cached_attention(q, k, v, torch.tensor([0, 40, 4000], device=device))
        assert not y[0].any()
        torch.testing.assert_close(y[1], formula(q[1:2], k[1:2], v[1:2], [40])[0])
        assert y[2].isfinite().all()


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("of_cache", DTYPES, ids=str)
def test_the_cache_may_be_of_another_dtype(T: int, of_cache: torch.dtype, device: torch.device) -> None:
    q, k, v = operands(device, of_cache, 2, T, 2, 40, 16)
    lengths = torch.tensor([40, 12], device=device)
    for dtype in DTYPES:
        y = fused.cached_attention(q.to(dtype), k, v, lengths)
        exact = formula(q.to(dtype).double(), k.double(), v.double(), [40, 12])
        eager = formula(*(x.to(dtype) for x in (q, k, v)), [40, 12])  # type: ignore[call-arg,arg-type]
        assert_as_good_as_eager(y, eager, exact, dtype, "y")


def test_autocast_decides_the_dtype(device: torch.device) -> None:
    q, k, v = operands(device, torch.float32, 1, 1, 1, 9, 16)
    with torch.autocast(device.type, torch.float16):
        y = fused.cached_attention(q, k, v, None)
    assert torch.equal(y, fused.cached_attention(q.half(), k, v, None))
    assert y.dtype == torch.float16


@pytest.mark.parametrize("shape", [(0, 1, 2, 16), (2, 0, 2, 16), (2, 1, 0, 16)], ids=str)
def test_nothing_gives_nothing(shape: tuple[int, ...], device: torch.device) -> None:
    B, T, H, D = shape
    q, k, v = operands(device, torch.float32, B, T, H, 5, D)
    assert fused.cached_attention(q, k, v, torch.full((B,), 5, device=device)).shape == shape


@pytest.mark.parametrize("T", [1, 3])
def test_a_compiled_graph_has_no_breaks_and_the_same_results(T: int, device: torch.device) -> None:
    q, k, v = operands(device, torch.float32, 2, T, 2, 33, 16)
    lengths = torch.tensor([33, 7], device=device)
    compiled = torch.compile(fused.cached_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, lengths), fused.cached_attention(q, k, v, lengths))
    torch._dynamo.reset()


@pytest.mark.parametrize("T", [1, 3])
def test_the_operator_is_what_it_is_declared_to_be(
    T: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # opcheck compares storage offsets, which guards move
    q, k, v = operands(device, torch.float16, 2, T, 2, 33, 16)
    for lengths in (None, torch.tensor([33, 7], device=device)):
        opcheck(fused.DECODE, (q, k, v, lengths), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("slots", "programs", "multiprocessors", "block", "expected"),
    [
        (128, 4, 132, 128, 1),  # the seed's context, one stream: a second launch costs more than it saves
        (511, 1, 132, 64, 1),
        (512, 1, 132, 64, 4),
        (1024, 12, 132, 128, 8),  # GPT-2 124M, one stream
        (1024, 12 * 16, 132, 128, 2),
        (1024, 12 * 22, 132, 128, 1),  # enough programs without
        (1000, 12, 132, 128, 8),  # the last split is shorter
        (1000, 60, 132, 128, 4),  # splits are whole blocks: 5 are wanted, of 2 blocks each
        (8192, 1, 132, 64, 64),
        (8192, 1, 2, 64, 4),
        (0, 1, 132, 64, 0),
    ],
)
def test_keys_are_split_as_far_as_programs_are_lacking(
    slots: int, programs: int, multiprocessors: int, block: int, expected: int
) -> None:
    keys = fused._keys_per_split(slots, programs, multiprocessors, block)
    assert keys % block == 0
    assert -(-slots // keys) == expected


def test_launches_do_not_depend_on_lengths(device: torch.device) -> None:
    """What a CUDA graph needs; on meta tensors values cannot even be asked for."""
    q, k, v = (x.to("meta") for x in operands(device, torch.float16, 2, 1, 1, 1024, 64))
    launches = []
    for lengths in (torch.empty(2, dtype=torch.int64, device="meta"), None):
        with launching.recording("sm_90") as recorded:
            fused.launch_cached(q, k, v, lengths)
        launches.append([(launch.kernel.__name__, launch.grid) for launch in recorded])
    assert launches[0] == launches[1] == [("one_query", (2, 2)), ("combine", (2,))]


BAD: list[tuple[Any, str]] = [
    (lambda q, k, v, n: (q[:, 0], k, v, n), r"q is \(2, 2, 16\), the caches are .*give q \(B, T, H, D\) and caches"),
    (lambda q, k, v, n: (q, k[:, :3], v, n), r"the caches are \(2, 3, 2, 16\) and \(2, 5, 2, 16\)"),
    (lambda q, k, v, n: (q, k[:, :, :1], v[:, :, :1], n), r"the caches are \(2, 5, 1, 16\)"),
    (lambda q, k, v, n: (q.double(), k, v, n), "q is float64.*reference"),
    (lambda q, k, v, n: (q.repeat(1, 1, 1, 9), k.repeat(1, 1, 1, 9), v.repeat(1, 1, 1, 9), n), "head size of 144 "),
    (lambda q, k, v, n: (q, k, v, n.int()), r"lengths is \(2,\) torch.int32 on .*; give \(2,\) torch.int64"),
    (lambda q, k, v, n: (q, k, v, n[:1]), r"lengths is \(1,\)"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_input_is_named_with_its_value_and_a_remedy(change: Any, words: str, device: torch.device) -> None:
    q, k, v = operands(device, torch.float32, 2, 1, 2, 5, 16)
    with pytest.raises(ValueError, match=f"attention: .*{words}"):
        fused.cached_attention(*change(q, k, v, torch.tensor([5, 5], device=device)))


def test_a_backward_pass_is_refused_and_not_left_out(device: torch.device) -> None:
    q, k, v = operands(device, torch.float32, 1, 1, 1, 5, 16)
    for leaves in ((q.clone().requires_grad_(), k, v), (q, k, v.clone().requires_grad_())):
        with pytest.raises(
            RuntimeError, match=r"attention: .* no backward pass; .*inference_mode.*--kernels.attention torch"
        ):
            fused.cached_attention(*leaves, None)
        with torch.no_grad():
            torch.testing.assert_close(fused.cached_attention(*leaves, None), plain.cached_attention(*leaves, None))


def test_a_cpu_without_the_interpreter_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "INTERPRETING", False)
    q, k, v = operands(torch.device("cpu"), torch.float32, 1, 1, 1, 5, 16)
    with pytest.raises(HardwareError, match=r"attention: .*need a GPU, and .*TRITON_INTERPRET=1"):
        fused.cached_attention(q, k, v, None)
