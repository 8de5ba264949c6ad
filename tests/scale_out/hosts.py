"""Hosts with addresses of their own, on this machine: network namespaces, joined by a switch that is a third one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

ROOT = Path(__file__).parents[2]
MEETING_POINT = "10.77.0.254"
CARD = "eth0"  # of every host
BURST = 256 * 1024  # bytes that a slowed link lets through at once


def missing() -> str | None:
    """Why there can be no such hosts here; None where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lost = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if lost:
        return f"network namespaces need {' and '.join(lost)} (Debian: iproute2)"
    try:
        _ip("netns", "add", probe := f"probe-{os.getpid()}")
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.decode().strip()}"
    _ip("netns", "del", probe)
    return None


@dataclass(frozen=True)
class Host:
    """A namespace with one interface, eth0, whose other end is the port of the switch that has its name."""

    name: str
    address: str
    switch: str

    def start(self, *words: str, cwd: Path, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Run Python on this host; what it prints goes into a file."""
        with log.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, *words],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'typings'}", **environment},
                stdout=file,
                stderr=file,
            )

    def link(self, state: str) -> None:
        """up, or down: then nothing that is sent arrives, and nobody is told."""
        _ip("-n", self.switch, "link", "set", self.name, state)

    def limit(self, bits_per_second: float) -> None:
        """Send no faster. What has to wait is kept, and not thrown away as a real link would in the end."""
        words = ["root", "tbf", "rate", f"{bits_per_second:.0f}bit", "burst", f"{BURST}", "limit", f"{64 * 2**20}"]
        subprocess.run(
            ["tc", "-n", self.name, "qdisc", "replace", "dev", CARD, *words], check=True, capture_output=True
        )


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts, and the switch as the last: it has an address too, and no link to lose."""
    mark = uuid4().hex[:6]  # two tests at once have their own
    switch = f"sg-{mark}-s"
    with ExitStack() as stack:
        _namespace(stack, switch)
        _ip("-n", switch, "link", "add", CARD, "type", "bridge")
        _ip("-n", switch, "addr", "add", f"{MEETING_POINT}/24", "dev", CARD)
        _ip("-n", switch, "link", "set", CARD, "up")
        made = []
        for number in range(1, count + 1):
            host = Host(f"sg-{mark}-{number}", f"10.77.0.{number}", switch)
            _namespace(stack, host.name)
            _ip("link", "add", CARD, "netns", host.name, "type", "veth", "peer", "name", host.name, "netns", switch)
            _ip("-n", switch, "link", "set", host.name, "master", CARD, "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", CARD)
            _ip("-n", host.name, "link", "set", CARD, "up")
            made.append(host)
        yield [*made, Host(switch, MEETING_POINT, switch)]


def _namespace(stack: ExitStack, name: str) -> None:
    """Made, and removed at the end whatever happens; its interfaces go with it, its processes are ended."""
    _ip("netns", "add", name)
    stack.callback(_remove, name)
    _ip("-n", name, "link", "set", "lo", "up")


def _remove(name: str) -> None:
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    for pid in found.stdout.split():
        subprocess.run(["kill", "-KILL", pid], check=False, capture_output=True)
    _ip("netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)
