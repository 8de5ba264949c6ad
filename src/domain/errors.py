"""Errors that a user can act on: each says what happened, the value, and the remedy, and carries its exit code."""


class SmallGPTError(Exception):
    """An error for the user's eyes: one or two lines, no traceback. `exit_code` is the process's."""

    exit_code = 1


class ConfigError(SmallGPTError):
    """A flag, preset or configuration value that cannot be used."""

    exit_code = 2


class DataError(SmallGPTError):
    """A corpus, token file or tokenizer that is missing, damaged or unsuitable."""

    exit_code = 3


class CheckpointError(SmallGPTError):
    """A run or checkpoint that is missing, damaged, in use or of another kind."""

    exit_code = 4


class NumericsError(SmallGPTError):
    """A loss, gradient or logit that is not finite."""

    exit_code = 5


class HardwareError(SmallGPTError):
    """A device, precision or kernel that this machine cannot run."""

    exit_code = 6


class KernelError(HardwareError):
    """An implementation that does not run on a device, or runs wrong. Whoever asked for it adds the remedy, by its flags."""

    def __init__(self, words: str, operation: str = "") -> None:
        super().__init__(words)
        self.operation = operation


def is_out_of_memory(error: BaseException) -> bool:
    """Is it what torch raises when a GPU's or the machine's memory is used up?"""
    if (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ):  # torch's, which is not imported here
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )
