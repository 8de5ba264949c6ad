"""The process that encodes parts, started with the number of its end of a pipe.

It is sent a Job, then a PartJob at a time, and answers with Progress, and with Finished or Failed. It ends with its parent.
"""

import ctypes
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection

from smallgpt.infrastructure.tokenizing.draft import PartFacts
from smallgpt.infrastructure.tokenizing.encoding import Job, PartJob, encode_part

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Progress:
    """Done since the last one: UTF-8 bytes of text, and tokens."""

    number: int
    text_bytes: int
    tokens: int


@dataclass(frozen=True)
class Finished:
    """A part is done."""

    facts: PartFacts


@dataclass(frozen=True)
class Failed:
    """A part cannot be done."""

    number: int
    error: Exception


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that what was fetched is removed
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # a killed parent must not leave writers behind
    channel: Connection[Progress | Finished | Failed, Job | PartJob] = Connection(int(sys.argv[1]))
    try:
        job = channel.recv()
        assert isinstance(job, Job)
        while True:
            part_job = channel.recv()
            assert isinstance(part_job, PartJob)
            channel.send(_encode(job, part_job, channel))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has no more work, or is gone


def _encode(
    job: Job, part_job: PartJob, channel: "Connection[Progress | Finished | Failed, Job | PartJob]"
) -> Finished | Failed:
    def tell(text_bytes: int, tokens: int) -> None:
        channel.send(Progress(part_job.number, text_bytes, tokens))

    try:
        return Finished(encode_part(job, part_job, tell))
    except Exception as error:
        return Failed(part_job.number, error)
