"""What each implementation of (add +) layer norm keeps for its backward pass: for the plan of a run's memory."""


def kept_bytes(backend: str, N: int, C: int) -> int:
    """Bytes for N rows of C, the norm itself not counted: what the reader of it keeps is the reader's."""
    if backend == "reference":
        return 2 * 4 * N * C + 4 * N  # centred, and divided by the deviation, in fp32; 1/deviation
    return 4 * N * C + 2 * 4 * N  # the fp32 sum that was normalised, mean and 1/deviation
