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

import pytest

from tests.scale_out.conftest import ROOT

MEETING_POINT = "10.77.0.254"

needs_hosts = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need root, and `ip` of the package iproute2",
)


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


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts, and the switch as the last: it has an address too, and no link to lose."""
    mark = uuid4().hex[:6]  # two tests at once have their own
    switch = f"sg-{mark}-s"
    with ExitStack() as stack:
        _namespace(stack, switch)
        _ip("-n", switch, "link", "add", "eth0", "type", "bridge")
        _ip("-n", switch, "addr", "add", f"{MEETING_POINT}/24", "dev", "eth0")
        _ip("-n", switch, "link", "set", "eth0", "up")
        made = []
        for number in range(1, count + 1):
            host = Host(f"sg-{mark}-{number}", f"10.77.0.{number}", switch)
            _namespace(stack, host.name)
            _ip("link", "add", "eth0", "netns", host.name, "type", "veth", "peer", "name", host.name, "netns", switch)
            _ip("-n", switch, "link", "set", host.name, "master", "eth0", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
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
