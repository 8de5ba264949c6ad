"""Batches where a GPU wants them: cut from tokens that lie in its memory, or made ready on the host one step ahead."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from smallgpt.infrastructure.devices import Choice
from smallgpt.infrastructure.windows import Anywhere, Batches, ShortThenFull

RESIDENT_SHARE = 0.25  # of a GPU's memory that tokens may take


def batches_on(device: torch.device, batches: ShortThenFull) -> tuple["ShortThenFull | Resident | Prefetched", Choice]:
    """The same batches, brought to the device in the way that keeps it busy; and why that way."""
    if device.type == "cpu":
        return batches, Choice("mapped", "windows are read from the file as they are needed")
    if not isinstance(batches.full.view, Anywhere):
        return Prefetched(batches, device), Choice("prefetched", "rows are put together from documents or folders")
    size, (_, total) = batches.full.view.tokens.nbytes, torch.cuda.mem_get_info(device)
    words = f"{size / 2**20:,.0f} MiB of tokens, and the GPU has {total / 2**20:,.0f} MiB"
    if is_resident(size, device):
        return Resident(batches, device), Choice("resident", words)
    return Prefetched(batches, device), Choice("prefetched", words)


def is_resident(token_bytes: int, device: torch.device) -> bool:
    """Whether that many bytes of tokens lie on the GPU: when they take a small share of all its memory."""
    return token_bytes <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[1]


class Resident:
    """All tokens on the device, as they are on disk; the windows of `Anywhere` are gathered there."""

    def __init__(self, batches: ShortThenFull, device: torch.device) -> None:
        self.batches, self.device = batches, device
        tokens = _anywhere(batches.full).tokens
        signed = {2: np.int16, 4: np.int32}[tokens.dtype.itemsize]  # torch can index these
        whole = np.array(tokens[:]).view(signed)  # which checks every id
        self.tokens = torch.from_numpy(whole).to(device)
        self.mask = 2 ** (8 * whole.dtype.itemsize) - 1

    def rows(self, step: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See application.ports.Batches; on the device, without waiting for it."""
        batches, rows = self.batches.at(step, rows)
        view = _anywhere(batches)
        at = _to(torch.from_numpy(view.starts(batches.samples(step, rows))), self.device)  # (rows,)
        places = at[:, None] + torch.arange(view.block_size + 1, device=self.device)
        window = self.tokens[places].long() & self.mask  # (rows, T + 1)
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()


class Prefetched:
    """Batches read and pinned by a thread while the device does the step before."""

    def __init__(self, batches: ShortThenFull, device: torch.device) -> None:
        self.batches, self.device = batches, device
        self.reader = ThreadPoolExecutor(1, "batches")
        self.ahead: tuple[int, Sequence[int], Future[tuple[Tensor, Tensor]]] | None = None

    def rows(self, step: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """See application.ports.Batches; on the device, without waiting for it. Asked for in turn, they are ready."""
        if self.ahead is not None and self.ahead[:2] == (step, rows):
            inputs, targets = self.ahead[2].result()
        else:
            inputs, targets = self._read(step, rows)
        self.ahead = step + 1, rows, self.reader.submit(self._read, step + 1, rows)
        return inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def _read(self, step: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        inputs, targets = self.batches.rows(step, rows)
        return _pinned(inputs, self.device), _pinned(targets, self.device)


def _anywhere(batches: Batches) -> Anywhere:
    assert isinstance(batches.view, Anywhere), "or batches_on chose Prefetched"
    return batches.view


def _pinned(x: Tensor, device: torch.device) -> Tensor:
    return x.pin_memory() if device.type == "cuda" else x


def _to(x: Tensor, device: torch.device) -> Tensor:
    return _pinned(x, device).to(device, non_blocking=True)
