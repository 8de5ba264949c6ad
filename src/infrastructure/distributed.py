"""Processes that train together, as torchrun starts them: torch.distributed over gloo on CPUs and NCCL on GPUs."""

import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket, PrefixStore, Store
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from smallgpt.domain.errors import ConfigError, HardwareError
from smallgpt.domain.gpt import GPT
from smallgpt.domain.state import Held
from smallgpt.infrastructure.launches import interface_to_first

Value = TypeVar("Value")

GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True)
"""Everything to the first process, and into host memory."""
SPREAD = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
AT_ANOTHER_STORE = (
    "torchrun may have sent it to another store than this one.\n"
    "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on every host where hosts come and go (docs/scale-out-hosts.md)."
)
PREPARING = timedelta(days=1)
"""How long the others wait while the first prepares data: as long as it takes."""
LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|timeout|socket|rendezvous|nccl|gloo", re.IGNORECASE
)
"""What errors of torch.distributed have in common: their types are those of any other error."""


class ProcessGroup:
    """What the processes of a launch tell each other: the common part of `Replicas` and `Shards`."""

    def __init__(self, device: torch.device) -> None:
        """Of a process group that is there already."""
        self.device, self.rank, self.count = device, dist.get_rank(), dist.get_world_size()

    def sum(self, x: Tensor) -> Tensor:
        """See Processes."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """See Processes. On the host, so that no GPU is waited for."""
        found = torch.tensor(flag, dtype=torch.int32)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def of_first(self, value: Value) -> Value:
        """See Processes."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def of_all(self, value: Value) -> list[Value]:
        """See Processes."""
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def wait_for_first(self, seconds: float | None = None) -> None:
        """See Processes."""
        limit = PREPARING if seconds is None else timedelta(seconds=seconds)
        group: Any = dist.group.WORLD  # the module's function refuses a group that has NCCL too
        group.monitored_barrier(limit)

    def gathered(self, model: GPT, optimizers: list[Optimizer]) -> Held:
        """See Processes."""
        weights: dict[str, Any] = get_model_state_dict(model, options=GATHER)
        weights.pop("lm_head.weight", None)  # tied to wte
        if not any(optimizer.state for optimizer in optimizers):  # torch would make a step of zeros to have some
            return weights, {}
        found: dict[str, Any] = get_optimizer_state_dict(model, optimizers, options=GATHER)
        states = found.get("state", {})  # none but in the first process
        return weights, {f"{name}/{key}": tensor for name, state in states.items() for key, tensor in state.items()}

    def spread(self, model: GPT, optimizers: list[Optimizer], state: Held) -> None:
        """See Processes."""
        weights, tensors = state if self.rank == 0 else ({}, {})
        tied: dict[str, Any] = {"lm_head.weight": weights["transformer.wte.weight"]} if self.rank == 0 else {}
        set_model_state_dict(model, {**weights, **tied}, options=SPREAD)
        if not self.of_first(bool(tensors)):
            return
        groups = get_optimizer_state_dict(model, optimizers)["param_groups"]  # as they are: they are not saved
        states: dict[str, Any] = {}
        for name, tensor in tensors.items():
            parameter, key = name.rsplit("/", 1)
            states.setdefault(parameter, {})[key] = tensor
        whole: dict[str, Any] = {"state": states, "param_groups": groups} if self.rank == 0 else {}
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        set_optimizer_state_dict(model, optimizers, whole, options=SPREAD)
        for optimizer, own in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate  # which a captured step reads where it lies; torch brings it to the host


class Replicas(ProcessGroup):
    """Each process holds the whole model and its optimizer state (DistributedDataParallel): a domain.processes.Processes."""

    shards = False

    def __init__(self, device: torch.device, reduce: Literal["fp32", "bf16"] = "fp32") -> None:
        """`reduce` is the precision in which gradients travel."""
        super().__init__(device)
        self.reduce = reduce

    def sharded(self) -> "Shards":
        """See Processes."""
        return Shards(self.device, self.reduce)

    def joined(self, model: GPT) -> nn.Module:
        """See Processes. The first one's weights become everybody's."""
        ids = [self.device.index] if self.device.type == "cuda" else None
        module = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        if self.reduce == "bf16":
            module.register_comm_hook(None, _mean_in_bf16)
        _settle_buckets(module, self.device)
        return module

    def apart(self, joined: nn.Module) -> AbstractContextManager[object]:
        """See Processes."""
        assert isinstance(joined, DistributedDataParallel), "or joined() did not make it"
        return joined.no_sync()

    def whole(self, tensor: Tensor) -> Tensor:
        """See Processes."""
        return tensor


class Shards(ProcessGroup):
    """Each process holds its share of weights, gradients and optimizer state (FSDP2): a domain.processes.Processes.

    The blocks' weights are gathered one block at a time, forwards and again backwards.
    """

    shards = True

    def __init__(self, device: torch.device, reduce: Literal["fp32", "bf16"] = "fp32") -> None:
        """`reduce` is the precision in which gradients travel."""
        super().__init__(device)
        self.mesh = init_device_mesh(device.type, (self.count,))
        self.policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if reduce == "bf16" else None)

    def sharded(self) -> "Shards":
        """See Processes."""
        return self

    def joined(self, model: GPT) -> nn.Module:
        """See Processes."""
        for module in (*model.transformer.h, model):
            fully_shard(module, mesh=self.mesh, mp_policy=self.policy)
        model.register_forward_hook(_reshard_unless_trained)
        return model

    @contextmanager
    def apart(self, joined: nn.Module) -> Iterator[None]:
        """See Processes."""
        assert isinstance(joined, FSDPModule), "or joined() did not make it"
        joined.set_requires_gradient_sync(False)
        yield
        joined.set_requires_gradient_sync(True)

    def whole(self, tensor: Tensor) -> Tensor:
        """See Processes."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _reshard_unless_trained(model: nn.Module, *_: object) -> None:
    """FSDP2 leaves the outermost weights gathered for a backward pass, which after an evaluation does not come."""
    assert isinstance(model, FSDPModule), "or joined() did not make it"
    if not torch.is_grad_enabled():
        model.reshard()


def _settle_buckets(module: DistributedDataParallel, device: torch.device) -> None:
    """Let DDP put its buckets into the order of the first backward pass, before a step.

    The order decides how sums are rounded: without this, the first step of a resumed run would round as no other.
    """
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    module(token, token).backward()
    module.zero_grad(set_to_none=True)


def _mean_in_bf16(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """The mean of everybody's gradients, sent as bf16. torch's own hook wants NCCL."""
    gradients = bucket.buffer()
    sent = (gradients / dist.get_world_size()).bfloat16()
    work = dist.all_reduce(sent, async_op=True)
    assert work is not None, "or this process is not among them"
    copied: torch.futures.Future[Tensor] = work.get_future().then(lambda done: gradients.copy_(done.value()[0]))
    return copied


def _of_this_round(store: Store, rank: int, count: int, seconds: float) -> Store:
    """The part of the launcher's store that this round of processes alone reads and writes.

    torchrun restarts processes with the store that the dead ones wrote their addresses into, and gloo would call those.
    The first process names the round; another takes the name once the first has answered to the other's own. Raises
    HardwareError when it has not after so many seconds.
    """
    end = time.monotonic() + seconds
    if rank == 0:
        name = uuid4().hex
        store.set("round", name)
        for other in range(1, count):
            store.set(f"{name}/{store.get(f'{name}/{other}').decode()}", "welcome")
        return PrefixStore(name, store)
    own = uuid4().hex
    while True:
        name = store.get("round").decode()
        store.set(f"{name}/{rank}", own)
        if store.check([f"{name}/{own}"]):
            return PrefixStore(name, store)
        if time.monotonic() > end:
            raise HardwareError(f"process 0 did not answer within {seconds:g} s: {AT_ANOTHER_STORE}")
        time.sleep(0.02)


@contextmanager
def process_group(device: torch.device, seconds: float) -> Iterator[None]:
    """Join the other processes of the launch; leave them at the end, but not on an error: NCCL would wait for them.

    `seconds` is how long one waits for another before it gives up. Raises HardwareError when the others are gone, and
    ConfigError when they compute elsewhere.
    """
    # of FSDP2, about blocks that return views: nothing here changes them in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "cpu:gloo"
    interface = interface_to_first()
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)  # or gloo takes that of the host's name: often loopback
    try:
        store, rank, count = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
        store = _of_this_round(store, rank, count, seconds)
        _check_same_backend(store, rank, backend)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=seconds))
        yield
        dist.destroy_process_group()
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        words = str(error).strip().splitlines()[0][:160]
        raise HardwareError(
            f"the other processes were lost or took more than {seconds:g} s: {words}.\n"
            "The one that failed says why; `smallgpt train --resume RUN` goes on from the last checkpoint."
        ) from error


def _check_same_backend(store: Store, rank: int, backend: str) -> None:
    """Processes of different backends would wait for each other."""
    if rank == 0:
        store.set("backend", backend)
    elif (first := store.get("backend").decode()) != backend:
        raise ConfigError(
            f"process {rank} computes with {backend}, the first one with {first}: not every host has a GPU that torch sees.\n"
            "Mend that, or give --training.device cpu to all."
        )
