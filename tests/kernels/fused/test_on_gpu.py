"""What only a GPU can show, for every operation alike: the same bits 100 times, replayed CUDA graphs, one Inductor graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from smallgpt.kernels.attention import fused as attention
from smallgpt.kernels.layer_norm import fused as layer_norm
from smallgpt.kernels.linear_cross_entropy import fused as linear_cross_entropy

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore"),  # Inductor's, of which every version has its own
]
Step = Callable[..., tuple[Tensor, ...]]


@pytest.fixture(autouse=True)
def memory() -> None:
    """No guard bands here: graphs and compiled code manage their own memory."""


@dataclass(frozen=True)
class Operation:
    """A differentiable step: `call` on leaves of these shapes, then on the rest as it is."""

    call: Callable[..., Any]
    shapes: list[tuple[int, ...]]
    rest: Callable[[], list[Any]] = list


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return layer_norm.layer_norm(x, weight, bias, 1e-5)


def add_norm(residual: Tensor, delta: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return layer_norm.add_layer_norm(residual, delta, weight, bias, 1e-5)


def attend(qkv: Tensor) -> Tensor:
    return attention.causal_attention(qkv, 0.0)


def attend_with_dropout(qkv: Tensor) -> Tensor:
    return attention.causal_attention(qkv, 0.25)


def targets() -> list[Any]:
    found = torch.randint(5003, (1030,), device="cuda")
    found[::9] = -100
    return [found]


OPERATIONS = {
    "attention, one tile": Operation(attend, [(3, 100, 3, 4, 64)]),
    "attention, two stages": Operation(attend, [(2, 777, 3, 4, 64)]),
    "layer norm": Operation(norm, [(1030, 768), (768,), (768,)]),
    "add and layer norm": Operation(add_norm, [(1030, 256), (1030, 256), (256,), (256,)]),
    "cross-entropy, chosen": Operation(linear_cross_entropy.linear_cross_entropy, [(1030, 256), (5003, 256)], targets),
    "cross-entropy, chunked": Operation(
        linear_cross_entropy.linear_cross_entropy_chunked, [(1030, 256), (5003, 256)], targets
    ),
    "cross-entropy, flash": Operation(
        linear_cross_entropy.linear_cross_entropy_flash, [(1030, 256), (5003, 256)], targets
    ),
}
WITH_DROPOUT = {
    "one tile": Operation(attend_with_dropout, [(3, 100, 3, 4, 64)]),
    "two stages": Operation(attend_with_dropout, [(2, 777, 3, 4, 64)]),
}
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
each_dropout = pytest.mark.parametrize("operation", WITH_DROPOUT.values(), ids=WITH_DROPOUT.keys())


def half() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def operands(operation: Operation) -> tuple[list[Tensor], list[Any]]:
    leaves = [torch.randn(shape, device="cuda").to(half()).requires_grad_() for shape in operation.shapes]
    return leaves, operation.rest()


def outputs_and_gradients(call: Callable[..., Any], leaves: list[Tensor], rest: list[Any]) -> tuple[Tensor, ...]:
    found = call(*leaves, *rest)
    outputs = (found,) if isinstance(found, Tensor) else tuple(found)
    upstream = [torch.full_like(y, 0.5) for y in outputs]
    return *(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, upstream)


def assert_same_bits(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(found) == len(expected)
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"result {number} differs by {(a.float() - b.float()).abs().max():.1e}"
        assert a.isfinite().all(), f"result {number} is not finite"


@each_operation
def test_a_hundred_repeats_give_the_same_bits(operation: Operation) -> None:
    leaves, rest = operands(operation)
    first = outputs_and_gradients(operation.call, leaves, rest)
    for _ in range(100):
        assert_same_bits(outputs_and_gradients(operation.call, leaves, rest), first)


@each_dropout
def test_dropout_repeats_with_its_seed(operation: Operation) -> None:
    leaves, rest = operands(operation)
    torch.manual_seed(1)
    first = outputs_and_gradients(operation.call, leaves, rest)
    for _ in range(20):
        torch.manual_seed(1)
        assert_same_bits(outputs_and_gradients(operation.call, leaves, rest), first)
    assert not torch.equal(outputs_and_gradients(operation.call, leaves, rest)[0], first[0])  # the seed goes on


@each_operation
def test_a_graph_replays_on_changed_inputs(operation: Operation) -> None:
    leaves, rest = operands(operation)
    graph, captured = capture(operation, leaves, rest)
    for _ in range(2):
        fresh, others = operands(operation)
        with torch.no_grad():
            for old, new in zip([*leaves, *rest], [*fresh, *others], strict=True):
                old.copy_(new)
        graph.replay()
        assert_same_bits(captured, outputs_and_gradients(operation.call, fresh, others))


@each_dropout
def test_a_graph_drops_others_at_every_replay(operation: Operation) -> None:
    graph, captured = capture(operation, *operands(operation))
    seen = []
    for _ in range(3):
        graph.replay()
        seen.append([x.clone() for x in captured])
    assert not torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[1][0], seen[2][0])
    assert not torch.equal(seen[0][1], seen[1][1])


def capture(
    operation: Operation, leaves: list[Tensor], rest: list[Any]
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """Forward and backward as one CUDA graph, and where it leaves its results."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            outputs_and_gradients(operation.call, leaves, rest)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = outputs_and_gradients(operation.call, leaves, rest)
    return graph, captured


@each_operation
def test_inductor_makes_one_graph_that_gives_the_same_bits(operation: Operation) -> None:
    torch.compiler.reset()
    compiled = torch.compile(operation.call, fullgraph=True)
    for _ in range(2):
        leaves, rest = operands(operation)
        found = outputs_and_gradients(compiled, leaves, rest)
        assert_same_bits(found, outputs_and_gradients(operation.call, leaves, rest))


@pytest.mark.parametrize("queries", [1, 5])
def test_decoding_replays_on_other_lengths_and_gives_the_same_bits(queries: int) -> None:
    """One capture for every length of every row; 1,024 slots are split, so both launches are in the graph."""
    q, k, v = (torch.randn(3, n, 2, 64, device="cuda").to(half()) for n in (queries, 1024, 1024))
    lengths = torch.tensor([1024, 1024, 1024], device="cuda")
    attention.cached_attention(q, k, v, lengths)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = attention.cached_attention(q, k, v, lengths)
    for rows in ([queries, 1024, 300], [129, 128, 127], [700, queries, 1]):
        lengths.copy_(torch.tensor(rows))
        graph.replay()
        for _ in range(20):
            assert_same_bits((captured,), (attention.cached_attention(q, k, v, lengths),))


def test_inductor_takes_decoding_as_one_call() -> None:
    torch.compiler.reset()
    q, k, v = (torch.randn(3, n, 2, 64, device="cuda").to(half()) for n in (1, 300, 300))
    lengths = torch.tensor([300, 7, 128], device="cuda")
    found = torch.compile(attention.cached_attention, fullgraph=True)(q, k, v, lengths)
    assert_same_bits((found,), (attention.cached_attention(q, k, v, lengths),))
