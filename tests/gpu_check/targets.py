"""What the kernels are meant to reach on an H100 in bf16, judged from the rows of a benchmark; elsewhere it is only told."""

from collections.abc import Iterator, Sequence
from typing import Any

from smallgpt.application.operation_costs import layer_norm_bytes

Row = dict[str, Any]
Target = dict[str, Any]
"""what, wanted, found and met; `found` is None, and the target not met, where something was not timed."""

OURS = "triton"
MEGABYTE = 10**6
SHARE_OF_BANDWIDTH = {
    "forward": ((256, 0.60), (768, 0.75), (2048, 0.85)),
    "backward": ((256, 0.57), (768, 0.65), (2048, 0.75)),
}
"""Widths from which on a share of the memory's bandwidth is wanted."""


def attention(rows: Sequence[Row]) -> Iterator[Target]:
    """1.5 times the best SDPA backend at T = 128; from 512 on 1.0 times forward and 0.75 times backward."""
    for own in _ours(rows):
        long = {"forward": 1.0, "backward": 0.75}.get(own["direction"])
        wanted = 1.5 if own["seq_len"] <= 128 else long
        if wanted is None:
            continue
        others = [row for row in _beside(rows, own) if row["system"].startswith("sdpa-")]
        packed = [row["milliseconds"] for row in others if not row["system"].endswith("-apart")]
        apart = [row["milliseconds"] for row in others if row["system"].endswith("-apart")]
        what = f"attention T={own['seq_len']} D={own['head_size']} dropout {own['dropout']} {own['direction']}"
        found = min(packed) / own["milliseconds"] if packed else None
        beside = {"found_with_q_k_v_apart": min(apart) / own["milliseconds"] if apart else None}
        yield _target(f"{what}: times the best SDPA backend", wanted, found, **beside)


def layer_norm(rows: Sequence[Row], bandwidth: float) -> Iterator[Target]:
    """Shares of the memory's bandwidth (bytes per second), by width and direction."""
    for own in _ours(rows):
        if own["direction"] not in SHARE_OF_BANDWIDTH or own["add"]:
            continue
        wanted = [share for width, share in SHARE_OF_BANDWIDTH[own["direction"]] if width <= own["width"]]
        itemsize = 4 if own["dtype"] == "float32" else 2
        moved = layer_norm_bytes(own["rows"], own["width"], itemsize, own["direction"])
        found = moved / (own["milliseconds"] * 1e-3) / bandwidth
        yield _target(f"layer norm width {own['width']} {own['direction']}: share of bandwidth", wanted[-1], found)


def linear_cross_entropy(rows: Sequence[Row]) -> Iterator[Target]:
    """At most 64 MB of extra memory, and no slower than compiled full logits."""
    for own in _ours(rows):
        if own["direction"] != "both":
            continue
        what = f"linear cross-entropy {own['rows']} x {own['vocab_size']} x {own['width']}"
        extra = own["extra_memory_bytes"] / MEGABYTE
        yield _target(f"{what}: extra memory, MB", 64.0, extra, met=extra <= 64)
        compiled = [row["milliseconds"] for row in _beside(rows, own) if row["system"] == "full-logits-compiled"]
        found = compiled[0] / own["milliseconds"] if compiled else None
        yield _target(f"{what}: times compiled full logits", 1.0, found)


def decoding(rows: Sequence[Row]) -> Iterator[Target]:
    """No slower than torch's SDPA under the same mask."""
    for own in _ours(rows):
        same = ("streams", "queries", "n_head", "slots", "dtype")
        beside = [r for r in rows if r["system"] == "sdpa" and all(r[name] == own[name] for name in same)]
        what = f"decoding {own['streams']} x {own['queries']}, {own['slots']} slots, {own['dtype']}: times SDPA"
        yield _target(what, 1.0, beside[0]["milliseconds"] / own["milliseconds"])


def _ours(rows: Sequence[Row]) -> Iterator[Row]:
    return (row for row in rows if row["system"] == OURS)


def _beside(rows: Sequence[Row], own: Row) -> Iterator[Row]:
    """The rows of the same shape and direction."""
    same = (
        "direction",
        "batch_size",
        "seq_len",
        "n_head",
        "head_size",
        "dropout",
        "rows",
        "vocab_size",
        "width",
        "add",
    )
    return (row for row in rows if all(row.get(name) == own.get(name) for name in same))


def _target(what: str, wanted: float, found: float | None, *, met: bool | None = None, **more: float | None) -> Target:
    reached = found is not None and found >= wanted if met is None else met
    return {"what": what, "wanted": wanted, "found": found, "met": reached, **more}
