"""Attention against the cache, timed beside torch's SDPA under the same mask, at the seed's shape and at GPT-2 124M's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from smallgpt.domain.errors import SmallGPTError
from smallgpt.domain.ops import cache_mask
from smallgpt.kernels import proof, timing
from smallgpt.kernels.select import BACKENDS
from tests.gpu_check import targets


@dataclass(frozen=True)
class Decoding:
    """`queries` new tokens in each of `streams` rows, which have come from half of the block to all of it."""

    streams: int
    queries: int
    n_head: int
    slots: int
    head_size: int = 64

    def lengths(self) -> list[int]:
        """Of the rows: the whole block first."""
        return [self.slots - i * self.slots // (2 * self.streams) for i in range(self.streams)]

    def cache_bytes(self, itemsize: int) -> int:
        """Of the keys and values that are valid: the least that is read."""
        return 2 * sum(self.lengths()) * self.n_head * self.head_size * itemsize


CASES = [
    Decoding(streams, queries, n_head, slots)
    for n_head, slots in ((4, 128), (12, 1024))
    for streams in (1, 16)
    for queries in (1, 4)
]


def run(cases: Sequence[Decoding] = CASES, device: torch.device | None = None) -> dict[str, Any]:
    """passed (ours ran everywhere and was right), rows with milliseconds and the share of a copy's bandwidth, and targets."""
    device = device or torch.device("cuda", torch.cuda.current_device())
    half = device.type == "cpu" or torch.cuda.get_device_capability(device) < (8, 0)
    bandwidth = timing.copy_bandwidth(device)
    rows: list[dict[str, Any]] = []
    notes = []
    for case in cases:
        for dtype in (torch.float16 if half else torch.bfloat16, torch.float32):
            try:
                rows += _time(case, dtype, device, bandwidth)
            except SmallGPTError as error:
                notes.append(str(error))
    judged = list(targets.decoding(rows))
    for row in rows:
        print(
            f"{row['streams']:3} x {row['queries']} of {row['n_head']} heads, {row['slots']:5} slots {row['dtype']:9} "
            f"{row['system']:7} {row['milliseconds']:9.4f} ms, {row['bandwidth_fraction']:6.1%} of a copy's bandwidth"
        )
    for words in [*notes, *(f"{'met   ' if t['met'] else 'MISSED'} {t['what']}: {t['found']:.2f}" for t in judged)]:
        print(words)
    passed = not notes and all(row["right"] for row in rows)
    return {"passed": passed, "copy_bytes_per_second": bandwidth, "rows": rows, "targets": judged, "notes": notes}


def _time(case: Decoding, dtype: torch.dtype, device: torch.device, bandwidth: float) -> Iterator[dict[str, Any]]:
    B, H, D = case.streams, case.n_head, case.head_size
    generator = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, generator=generator, device=device)
    q = normal(B, case.queries, H, D).to(dtype)
    k, v = normal(2, B, H, case.slots, D).to(dtype).transpose(2, 3)
    lengths = torch.tensor(case.lengths(), device=device)
    exact_q, exact_k, exact_v = (x.cpu().double() for x in (q, k, v))
    expected = BACKENDS["reference"].cached_attention(exact_q, exact_k, exact_v, lengths.cpu())
    mask = cache_mask(case.queries, case.slots, lengths)
    systems: dict[str, Callable[[], Tensor]] = {
        targets.OURS: partial(BACKENDS["triton"].cached_attention, q, k, v, lengths),
        "sdpa": partial(_sdpa, q, k, v, mask),
    }
    for name, attend in systems.items():
        error = proof.distance(attend(), expected)
        milliseconds = median(timing.measure(partial(_again, attend), device, seconds=0.05).milliseconds)
        yield {
            "system": name,
            **asdict(case),
            "dtype": str(dtype).removeprefix("torch."),
            "milliseconds": milliseconds,
            "bandwidth_fraction": case.cache_bytes(dtype.itemsize) / (milliseconds * 1e-3) / bandwidth,
            "error": error,
            "right": error <= proof.TOLERANCE[dtype],
        }


def _again(attend: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return attend


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """torch's choice of backend under a mask that is made already."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
