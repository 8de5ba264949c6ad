"""What every test gets: a fixed seed, one thread, no network; and small models and batches to work with."""

import errno
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from smallgpt.domain.config import GPTConfig

if not torch.cuda.is_available():
    # Triton decides where a kernel is defined whether to interpret it: before the first import of smallgpt.kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Without a deadline a busy machine fails nothing; derandomized, a failure is the same one everywhere.
settings.register_profile("smallgpt", deadline=None, derandomize=True, database=None)
settings.load_profile("smallgpt")

# A shell's background job ignores Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fixed_seed_and_one_thread() -> None:
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)  # in every test: the code under test may have set it


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests fetch from stores stays among their files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLGPT_CACHE", str(tmp_path_factory.getbasetemp() / "smallgpt-cache"))
        yield


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections that leave this machine fail as they do without a network."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _local_only(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", _local_names_only(socket.getaddrinfo))
        yield


def _local_only(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and not _is_local(address[0]):
            raise OSError(errno.ENETUNREACH, f"tests reach no network, not even {address[0]}")
        return connect(self, address)

    return guarded


def _local_names_only(getaddrinfo: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host is not None and not _is_local(host):
            raise socket.gaierror(socket.EAI_AGAIN, f"tests reach no network, not even {host}")
        return getaddrinfo(host, *args, **kwargs)

    return guarded


def _is_local(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return name in ("localhost", "::1", "0.0.0.0", "") or name.startswith("127.")


@pytest.fixture
def tiny() -> GPTConfig:
    """A model of milliseconds, with odd sizes where sizes are free, and no dropout."""
    return GPTConfig(block_size=12, vocab_size=61, n_layer=2, n_head=2, n_embd=32, dropout=0.0)


class MadeBatches:
    """A learnable stream: each token is 7·previous + 3 modulo the vocabulary, except where `row` mixes in a jump."""

    def __init__(self, config: GPTConfig, ignored: Callable[[int], int] = lambda row: 0) -> None:
        self.vocab_size, self.block_size, self.ignored = config.vocab_size, config.block_size, ignored

    def rows(self, step: int, rows: range) -> tuple[Tensor, Tensor]:
        """See application.ports.Batches; the first ignored(row) targets of a row are -100."""
        tokens = torch.empty(len(rows), self.block_size + 1, dtype=torch.int64)
        for at, row in enumerate(rows):
            token = (31 * step + 17 * row + 5) % self.vocab_size
            for column in range(self.block_size + 1):
                tokens[at, column] = token
                token = (7 * token + 3 + (row * column) % 2) % self.vocab_size
        targets = tokens[:, 1:].clone()
        for at, row in enumerate(rows):
            targets[at, : self.ignored(row)] = -100
        return tokens[:, :-1], targets


@pytest.fixture
def make_batches() -> type[MadeBatches]:
    return MadeBatches
