"""The tile tables and rules: every entry names hardware that exists and sizes that Triton takes."""

from importlib.resources import files
from json import loads
from typing import Any

import pytest

from smallgpt.kernels import tiles
from smallgpt.kernels.launching import ARCHITECTURES
from smallgpt.kernels.layer_norm.tiles import BACKWARD, FORWARD, MAX_WIDTH, row_tile
from smallgpt.kernels.tiles import forced, tile

SIZES = {"attention": (32, 64, 128), "linear_cross_entropy": (16, 32, 64, 128, 256, 384)}
BITS = (16, 32)
operation = pytest.mark.parametrize("operation", SIZES)


def entries(operation: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = loads(files("smallgpt.kernels").joinpath(operation, "tiles.json").read_text())
    return found


def key(entry: dict[str, Any]) -> tuple[str, str, int, int]:
    return entry["kernel"], entry["architecture"], entry["size"], entry["bits"]


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@operation
def test_every_entry_is_one_that_can_be_launched(operation: str) -> None:
    for entry in entries(operation):
        assert set(entry) == {"kernel", "architecture", "size", "bits", "tile", "evidence"}, entry
        assert entry["architecture"] in ARCHITECTURES, entry
        assert entry["size"] in SIZES[operation], entry
        assert entry["bits"] in BITS, entry
        blocks = dict(entry["tile"])
        assert blocks.pop("num_warps") in (1, 2, 4, 8, 16), entry
        assert 1 <= blocks.pop("num_stages") <= 5, entry
        assert blocks, entry
        for name, block in blocks.items():
            assert name.startswith("BLOCK_"), entry
            assert is_power_of_two(block), entry
            assert 16 <= block <= 256, entry  # tl.dot takes no less than 16


@operation
def test_every_entry_says_what_it_rests_on(operation: str) -> None:
    for entry in entries(operation):
        assert entry["evidence"].split(":")[0] in ("compiled", "measured"), entry


@operation
def test_no_key_is_there_twice_and_all_of_one_kernel_name_the_same_blocks(operation: str) -> None:
    keys = [key(entry) for entry in entries(operation)]
    assert len(set(keys)) == len(keys)
    blocks: dict[str, set[str]] = {}
    for entry in entries(operation):
        assert blocks.setdefault(entry["kernel"], set(entry["tile"])) == set(entry["tile"]), entry


@operation
def test_every_kernel_has_a_tile_on_every_architecture(operation: str) -> None:
    """But the single tile of attention, which does not fit everywhere."""
    there = {key(entry) for entry in entries(operation)}
    names = {name for name, *_ in there if not name.startswith("one_tile")}
    assert names
    missing = [
        (name, architecture, size, bits)
        for name in sorted(names)
        for architecture in ARCHITECTURES
        for size in SIZES[operation]
        for bits in BITS
        if (name, architecture, size, bits) not in there
    ]
    assert missing == []


@operation
def test_a_table_is_looked_up_and_an_entry_can_be_forced(operation: str) -> None:
    first = entries(operation)[0]
    kernel, architecture, size, bits = key(first)
    assert tile(operation, *key(first)) == first["tile"]
    assert tile(operation, kernel, "sm_1", size, bits) is None
    with forced(operation, kernel, {"BLOCK_M": 16}):
        with forced(operation, kernel, {"BLOCK_M": 32}), forced(operation, "another", {"BLOCK_M": 64}):
            assert tile(operation, kernel, "sm_1", 1, 1) == {"BLOCK_M": 32}
            assert tile(operation, "another", architecture, size, bits) == {"BLOCK_M": 64}
        assert tile(operation, kernel, architecture, size, bits) == {"BLOCK_M": 16}
    assert tile(operation, *key(first)) == first["tile"]


def test_a_forced_tile_is_let_go_when_the_code_under_it_fails() -> None:
    with pytest.raises(ZeroDivisionError), forced("attention", "made up", {"BLOCK_M": 16}):
        raise ZeroDivisionError
    assert tile("attention", "made up", "sm_80", 64, 16) is None
    assert tiles._forced == {}


@pytest.mark.parametrize("rule", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_a_row_of_layer_norm_is_one_tile_at_every_width(rule: Any) -> None:
    for width in range(1, MAX_WIDTH + 1):
        entry = row_tile(rule, width)
        assert width <= entry["BLOCK_C"] < 2 * width, width
        assert is_power_of_two(entry["BLOCK_C"]), width
        assert is_power_of_two(entry["BLOCK_ROWS"]), width
        assert is_power_of_two(entry["num_warps"]), width
        assert entry["num_warps"] * 64 <= 1024, width  # threads of a program, at AMD's 64 to a warp
        assert entry["BLOCK_ROWS"] * entry["BLOCK_C"] <= max(rule.elements, entry["BLOCK_C"]), width
