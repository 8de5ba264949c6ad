"""What a launcher such as torchrun tells a process, by the environment; distributed.py does the rest, and is slow to load."""

import fcntl
import os
import socket
from struct import pack

import torch

from smallgpt.domain.errors import ConfigError, HardwareError

SIOCGIFADDR = 0x8915
"""Linux's request for an interface's address (netdevice(7))."""


def launched() -> tuple[int, int] | None:
    """(this process's rank, how many there are) where a launcher such as torchrun started it; else None."""
    rank, count = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return (int(rank), int(count)) if rank is not None and count is not None else None


def local_count() -> int:
    """Processes of this training on this machine; 1 where no launcher says otherwise."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def interface_to_first() -> str | None:
    """The network interface by which this process reaches the first one's host; None in a launch on one host.

    None too where no interface has that address (IPv6, or a host that calls itself 127.0.1.1).
    """
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) == 1:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
        try:
            probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        except OSError:
            return None
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            if _address_of(probe, name) == own:
                return name
    return None


def _address_of(probe: socket.socket, interface: str) -> bytes | None:
    """Its IPv4 address: 4 bytes behind the name and the family of a `struct ifreq`."""
    try:
        return fcntl.ioctl(probe, SIOCGIFADDR, pack("256s", interface.encode()))[20:24]
    except OSError:
        return None


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine.

    Raises ConfigError for one that was named for all of them, HardwareError when there are fewer than processes.
    """
    if device.type != "cuda" or launched() is None:
        return device
    if str(device) != "cuda":
        raise ConfigError(
            f"training.device is {device}, which every process would take; use cuda or auto with torchrun"
        )
    number = int(os.environ.get("LOCAL_RANK", "0"))
    if number >= torch.cuda.device_count():
        raise HardwareError(
            f"process {number} of this host has no GPU: torch sees {torch.cuda.device_count()}; "
            f"give --nproc-per-node {torch.cuda.device_count()}"
        )
    return torch.device("cuda", number)
