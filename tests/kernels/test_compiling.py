"""The compile gate's parts that need no compiler: reading its products, the rules, occupancy, keys and the report's file."""

import importlib.util
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from smallgpt.kernels import tiles
from smallgpt.kernels.compile_report import Row, faults, read, worse, write
from smallgpt.kernels.compiling import amdgcn_usage, cuobjdump_usage, dots, instruction
from smallgpt.kernels.gpus import GPUS, occupancy
from smallgpt.kernels.kernel_source import source_of
from smallgpt.kernels.launching import ARCHITECTURES, recording
from smallgpt.kernels.tiles import Tile

DOT = Row("attention", "sm_90", "forward", "T=64 bfloat16", "k1", "M=64", 4, 2, "bf16", "wgmma", 128, 0, 48 * 1024)
WIDE = replace(DOT, target="sm_100", instruction="tcgen05.mma", tensor_memory=512)
PLAIN = Row("layer_norm", "sm_80", "forward", "width 256", "k2", "C=256", 4, 2, "", "none", 64, 0, 512)


def test_every_architecture_of_the_tile_tables_has_its_limits() -> None:
    assert tuple(GPUS) == ARCHITECTURES


@pytest.mark.parametrize(
    ("target", "registers", "shared_bytes", "num_warps", "expected"),
    [
        # CUDA's occupancy calculator: registers limit (an SM holds 512 a lane in each of four parts) ...
        ("sm_80", 64, 0, 8, 32 / 64),
        ("sm_80", 65, 0, 8, 24 / 64),  # 65 take 72
        ("sm_80", 32, 0, 4, 64 / 64),
        ("sm_86", 37, 0, 4, 48 / 48),
        ("sm_90", 255, 0, 8, 8 / 64),
        ("sm_75", 96, 0, 4, 20 / 32),
        # ... or shared memory, with the kilobyte that the system takes since Ampere ...
        ("sm_80", 32, 48 * 1024, 8, 24 / 64),
        ("sm_80", 32, 163 * 1024, 8, 8 / 64),
        ("sm_89", 32, 50 * 1024, 4, 4 / 48),
        ("sm_75", 32, 32 * 1024, 4, 8 / 32),
        # ... or the number of blocks.
        ("sm_86", 16, 0, 1, 16 / 48),
        ("sm_89", 16, 0, 1, 24 / 48),
        ("gfx942", 128, 0, 4, 16 / 32),  # waves: 512 registers a lane on each of four SIMDs
        ("gfx942", 64, 32 * 1024, 4, 8 / 32),
        # What does not fit at all.
        ("sm_80", 255, 0, 16, 0),
        ("sm_86", 32, 100 * 1024, 4, 0),
    ],
)
def test_occupancy_is_that_of_the_vendors_calculators(
    target: str, registers: int, shared_bytes: int, num_warps: int, expected: float
) -> None:
    assert occupancy(target, registers, shared_bytes, num_warps) == expected


def test_tensor_memory_limits_occupancy_too() -> None:
    assert occupancy("sm_100", 32, 0, 4, tensor_memory=256) == 8 / 64
    assert occupancy("sm_100", 32, 0, 4, tensor_memory=1024) == 0


TTIR = """
    %a = tt.dot %p, %v, %acc, inputPrecision = tf32 : tensor<64x32x{0}> * tensor<32x64x{0}> -> tensor<64x64xf32> loc(#loc54)
    %b = tt.dot %x, %y, %acc : tensor<64x32xf32> * tensor<32x64xf32> -> tensor<64x64xf32> loc(#loc55)
"""


def test_dots_are_named_by_what_they_multiply() -> None:
    assert dots(TTIR.format("bf16")) == "bf16+f32"
    assert dots(TTIR.format("f32")) == "f32+tf32"
    assert dots("%r = tt.reduce(%a) : tensor<64xf32>") == ""


BLOCKED = (
    "%c = tt.dot %a, %b, %d : tensor<8x8xf32, #dot> * tensor<8x8xf32, #dot1> -> tensor<8x8xf32, #blocked1> loc(#l)"
)
MATRIX = "%c = tt.dot %a, %b, %d : tensor<8x8xf16, #dot> * tensor<8x8xf16, #dot1> -> tensor<8x8xf32, #mma> loc(#l)"


@pytest.mark.parametrize(
    ("ttgir", "machine_code", "expected"),
    [
        (MATRIX, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r1}", "mma.sync"),
        ("", "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16\nwgmma.fence.sync.aligned;", "wgmma"),
        ("", "tcgen05.mma.cta_group::1.kind::f16 [ %r1 ]", "tcgen05.mma"),
        (MATRIX, "v_mfma_f32_32x32x8_f16 a[0:15]\nv_mfma_f32_32x32x8bf16_1k a[0:15]", "v_mfma_bf16+v_mfma_f16"),
        (MATRIX, "v_mfma_f32_32x32x4_xf32 v[0:15]", "v_mfma_xf32"),
        (BLOCKED, "fma.rn.f32 %f1, %f2, %f3, %f4;", "fma"),
        (BLOCKED + "\n" + MATRIX, "mma.sync.aligned.m16n8k16 {%r1}\nfma.rn.f32 %f1;", "fma+mma.sync"),
        ("", "fma.rn.f32 %f1, %f2, %f3, %f4;", "none"),  # ordinary arithmetic
    ],
)
def test_the_instruction_is_found(ttgir: str, machine_code: str, expected: str) -> None:
    assert instruction(ttgir, machine_code) == expected


def test_registers_and_spills_are_read_from_both_vendors_tools() -> None:
    printed = " Function forward:\n  REG:255 STACK:336 SHARED:0 LOCAL:0 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    assert cuobjdump_usage(printed) == (255, 336)
    metadata = (
        "    .amdhsa_private_segment_fixed_size 7\n    .private_segment_fixed_size: 16\n    .vgpr_count:     96\n"
    )
    assert amdgcn_usage(metadata) == (96, 16)


@pytest.mark.parametrize(
    "row",
    [
        DOT,
        WIDE,
        PLAIN,
        replace(DOT, instruction="mma.sync+wgmma"),
        replace(DOT, dots="f32", instruction="fma"),
        replace(DOT, dots="tf32"),
        replace(DOT, dots="bf16+f32", instruction="fma+wgmma"),
        replace(DOT, target="gfx942", instruction="v_mfma_bf16"),
        replace(DOT, target="gfx942", dots="f32", instruction="v_mfma_f32"),  # exact on AMD's matrix cores
        replace(DOT, target="sm_75", instruction="fma", registers=255, spill_bytes=99),  # not run there
        replace(DOT, spill_bytes=8, measured="docs/benchmarks/x.json"),
    ],
)
def test_good_launches_have_no_faults(row: Row) -> None:
    assert faults(row) == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (replace(DOT, instruction="fma"), "multiplies bf16 without tensor cores: fma"),
        (replace(DOT, instruction="fma+wgmma"), "multiplies some of bf16 without tensor cores: fma+wgmma"),
        (replace(DOT, dots="tf32", instruction="fma"), "multiplies tf32 without tensor cores: fma"),
        (replace(DOT, dots="f32"), "rounds fp32 operands: wgmma"),
        (replace(DOT, target="gfx942", dots="f32", instruction="v_mfma_xf32"), "rounds fp32 operands: v_mfma_xf32"),
        (replace(DOT, spill_bytes=8), "spills 8 bytes a thread"),
        (replace(PLAIN, target="sm_75", spill_bytes=8), "spills 8 bytes a thread"),
        (replace(DOT, shared_bytes=232_449), "takes 232,449 bytes of shared memory of 232,448"),
        (replace(WIDE, tensor_memory=1024), "takes 1024 columns of tensor memory of 512"),
        (replace(PLAIN, registers=255, num_warps=16), "cannot launch: 16 warps of 255 registers do not fit"),
        (replace(PLAIN, error="CompilationError: bad"), "does not compile: CompilationError: bad"),
    ],
)
def test_each_broken_rule_is_said(row: Row, fault: str) -> None:
    assert faults(row) == [fault]


def test_a_change_for_the_worse_is_said_and_one_for_the_better_is_not() -> None:
    assert worse(DOT, DOT) == []
    assert worse(replace(DOT, shared_bytes=DOT.shared_bytes - 1), DOT) == []
    assert worse(replace(DOT, shared_bytes=DOT.shared_bytes + 1), DOT) == ["shared_bytes 49153, was 49152"]
    assert worse(replace(DOT, instruction="mma.sync"), DOT) == ["mma.sync, was wgmma"]
    assert worse(replace(DOT, spill_bytes=8), DOT) == ["spills 8 bytes a thread", "spill_bytes 8, was 0"]


def test_the_report_comes_back_as_written_and_is_the_same_text_in_any_order(tmp_path: Path) -> None:
    path, again = tmp_path / "a.json", tmp_path / "b.json"
    write("3.7.1", [DOT, PLAIN], path)
    write("3.7.1", [PLAIN, DOT], again)
    assert path.read_bytes() == again.read_bytes()
    report = read(path)
    assert report.triton == "3.7.1"
    assert report.rows == {"k1": DOT, "k2": PLAIN}
    assert read(tmp_path / "none.json").rows == {}


def test_what_a_program_reads_says_how_close_it_is_to_the_limits() -> None:
    row = PLAIN.as_dict()
    assert {"kernel", "variant", "target", "instruction", "registers", "spill_bytes", "shared_bytes"} <= set(row)
    assert (row["shared_limit"], row["occupancy"], row["faults"]) == (163 * 1024, 0.5, [])


class Noting(dict[tuple[str, str, int, int], Tile]):
    """A tile table that remembers which entries were asked for."""

    def __init__(self, table: dict[tuple[str, str, int, int], Tile]) -> None:
        super().__init__(table)
        self.asked: set[object] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("operation", ["attention", "linear_cross_entropy"])  # layer norm's tiles are a rule
def test_every_entry_of_a_tile_table_is_compiled(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Noting(tiles.table(operation))
    monkeypatch.setattr(tiles, "table", lambda name: table)
    variants = list(import_module(f"smallgpt.kernels.{operation}.variants").variants())
    for target in ARCHITECTURES:
        for variant in variants:
            with recording(target):
                variant.run()
    assert sorted(set(table) - table.asked) == []


KERNELS = """
from smallgpt.kernels.language import tl, triton

SCALE = tl.constexpr(2)
UNUSED = tl.constexpr(2)


@triton.jit
def helper(x):
    return x + 1


@triton.jit
def kernel(x_ptr, BLOCK: tl.constexpr):
    at = x_ptr + tl.arange(0, BLOCK)
    tl.store(at, helper(tl.load(at)) * SCALE)
"""


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ("* SCALE", "+ SCALE", True),
        ("x + 1", "x + 3", True),  # in a kernel that it calls
        ("SCALE = tl.constexpr(2)", "SCALE = tl.constexpr(4)", True),
        ("UNUSED", "# a comment that moves what follows\nUNUSED", False),
        ("    at =", "    # a comment\n    at =", False),
        ("UNUSED = tl.constexpr(2)", "UNUSED = tl.constexpr(4)", False),
    ],
)
def test_a_kernel_counts_as_changed_by_what_it_means(tmp_path: Path, before: str, after: str, changes: bool) -> None:
    assert before in KERNELS
    was = source_of(_imported(tmp_path / "was", KERNELS).kernel)
    now = source_of(_imported(tmp_path / "now", KERNELS.replace(before, after, 1)).kernel)
    assert (was != now) == changes


def _imported(folder: Path, source: str) -> ModuleType:
    folder.mkdir()
    path = folder / "made_kernels.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("made_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
