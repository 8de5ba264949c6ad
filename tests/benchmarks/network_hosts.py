"""Hosts of one machine: network namespaces on a bridge, each with an address of its own. Needs root, `ip` and `tc`."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CARD = "eth0"  # of every host
BURST = 256 * 1024  # bytes that a limited link lets through at once


def missing() -> str | None:
    """Why there can be no such hosts here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lost = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if lost:
        return f"network namespaces need {' and '.join(lost)} (Debian: iproute2)"
    try:
        _do("ip", "netns", "add", probe := f"probe-{os.getpid()}")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    _do("ip", "netns", "delete", probe)
    return None


@contextmanager
def hosts(count: int) -> Iterator[list[str]]:
    """So many namespaces, 10.77.0.1 and on; words before which a command runs there: ip netns exec NAME."""
    bridge = f"smallgpt-{os.getpid()}"
    names = [f"{bridge}-{number}" for number in range(count)]
    try:
        _do("ip", "netns", "add", bridge)
        _do("ip", "-n", bridge, "link", "add", "bridge", "type", "bridge")
        _do("ip", "-n", bridge, "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            port = f"port{number}"
            _do("ip", "netns", "add", name)
            _do("ip", "-n", bridge, "link", "add", port, "type", "veth", "peer", "name", CARD, "netns", name)
            _do("ip", "-n", bridge, "link", "set", port, "master", "bridge")
            _do("ip", "-n", bridge, "link", "set", port, "up")
            _do("ip", "-n", name, "address", "add", f"{address(number)}/24", "dev", CARD)
            _do("ip", "-n", name, "link", "set", CARD, "up")
            _do("ip", "-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in (*names, bridge):  # their cards and addresses go with them
            with suppress(subprocess.CalledProcessError):
                _do("ip", "netns", "delete", name)


def address(number: int) -> str:
    """Of a host, counted from 0."""
    return f"10.77.0.{number + 1}"


def limit(name: str, bits_per_second: float) -> None:
    """Let a host send no faster. What has to wait is kept, and not thrown away as a real link would in the end."""
    rate = f"{bits_per_second:.0f}bit"
    words = ["root", "tbf", "rate", rate, "burst", f"{BURST}", "limit", f"{64 * 2**20}"]
    _do("tc", "-n", name, "qdisc", "replace", "dev", CARD, *words)


def _do(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
