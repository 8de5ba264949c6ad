"""What one multiprocessor of each architecture holds, and how much of it a kernel's programs occupy.

NVIDIA: CUDA C++ Programming Guide, "Compute Capabilities", table of technical specifications, and the allocation units of
the CUDA Occupancy Calculator; tensor memory from the PTX manual's tcgen05 section. AMD: the CDNA 3 instruction set
architecture (512 vector registers a lane on each of 4 SIMDs, 8 waves a SIMD, 64 KB of LDS) and LLVM's AMDGPU usage guide.
"""

from dataclasses import dataclass

KB = 1024
PARTITIONS = 4  # of a multiprocessor (AMD: SIMDs of a compute unit), each with its own registers
REGISTERS_A_LANE = 512  # of a partition, NVIDIA's 16,384 / 32 lanes and AMD's alike
REGISTER_UNIT = 8  # a thread's registers are allocated in eights
TENSOR_MEMORY_COLUMNS = 512  # sm_100's, of a multiprocessor and at most of one program


@dataclass(frozen=True)
class GPU:
    """The limits of one multiprocessor (AMD: compute unit)."""

    warps: int
    """That can be resident; of 64 threads on AMD."""
    programs: int
    """That can be resident: CUDA's blocks, AMD's work-groups."""
    shared_bytes: int
    shared_limit: int
    """Bytes that one program may have."""
    shared_reserved: int
    """Bytes that the system adds to each program."""
    shared_unit: int
    instructions: tuple[str, ...]
    """The tensor-core instructions that Triton has there for tl.dot."""


GPUS = {
    "sm_75": GPU(32, 16, 64 * KB, 64 * KB, 0, 256, ()),  # Triton has dropped Turing's tensor cores
    "sm_80": GPU(64, 32, 164 * KB, 163 * KB, KB, 128, ("mma.sync",)),
    "sm_86": GPU(48, 16, 100 * KB, 99 * KB, KB, 128, ("mma.sync",)),
    "sm_89": GPU(48, 24, 100 * KB, 99 * KB, KB, 128, ("mma.sync",)),
    "sm_90": GPU(64, 32, 228 * KB, 227 * KB, KB, 128, ("wgmma", "mma.sync")),
    "sm_100": GPU(64, 32, 228 * KB, 227 * KB, KB, 128, ("tcgen05.mma", "mma.sync")),
    "sm_120": GPU(48, 24, 100 * KB, 99 * KB, KB, 128, ("mma.sync",)),
    "gfx942": GPU(32, 16, 64 * KB, 64 * KB, 0, 512, ("v_mfma",)),
}


def occupancy(target: str, registers: int, shared_bytes: int, num_warps: int, tensor_memory: int = 0) -> float:
    """Resident warps as a fraction of what the multiprocessor could hold; 0 if not even one program fits.

    `registers` of a thread, `shared_bytes` and `tensor_memory` (columns) of a program.
    """
    gpu = GPUS[target]
    registers = max(REGISTER_UNIT, _round_up(registers, REGISTER_UNIT))
    warps_by_registers = PARTITIONS * (REGISTERS_A_LANE // registers)
    shared = _round_up(shared_bytes + gpu.shared_reserved, gpu.shared_unit)
    programs = min(
        gpu.programs,
        gpu.warps // num_warps,
        warps_by_registers // num_warps,
        gpu.shared_bytes // shared if shared else gpu.programs,
        TENSOR_MEMORY_COLUMNS // tensor_memory if tensor_memory else gpu.programs,
    )
    return programs * num_warps / gpu.warps


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
