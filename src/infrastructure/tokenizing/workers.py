"""Parts go to worker processes, one at a time to each, and their results come back in any order."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from smallgpt.domain.errors import DataError
from smallgpt.infrastructure.tokenizing.draft import PartFacts
from smallgpt.infrastructure.tokenizing.encoding import Job, PartJob, encode_part
from smallgpt.infrastructure.tokenizing.speed import Meter
from smallgpt.infrastructure.tokenizing.worker import Failed, Finished, Progress

# Not with -m: what a module's own __main__ sends has another name here. With -P, so that a random.py in the current folder
# is not taken for Python's.
WORKER = "from smallgpt.infrastructure.tokenizing.worker import main; main()"


SECONDS_TO_END = 3.0


@dataclass
class Worker:
    """A process, the channel to it, and the part that it is at."""

    process: "subprocess.Popen[bytes]"
    channel: "Connection[Any, Any]"
    at: PartJob | None = None


def encode_parts(
    job: Job, part_jobs: Sequence[PartJob], workers: Sequence[Worker], meter: Meter
) -> Iterator[PartFacts]:
    """The facts of each part as it is finished. Without workers the parts are encoded here, in order.

    When a part fails, those that are being encoded are finished first, so that they need not be done again; then the
    error of the first part in order is raised: the same one however many workers there are.
    """
    if workers:
        yield from _by_workers(job, part_jobs, workers, meter)
        return
    for part_job in part_jobs:
        facts = encode_part(job, part_job, partial(meter.tell, part_job))
        meter.finish(part_job)
        yield facts


def _by_workers(job: Job, part_jobs: Sequence[PartJob], workers: Sequence[Worker], meter: Meter) -> Iterator[PartFacts]:
    waiting = list(reversed(part_jobs))
    failures: list[Failed] = []
    for worker in workers[: len(part_jobs)]:
        _give(worker, waiting.pop(), job)
    while busy := [worker for worker in workers if worker.at is not None]:
        ready = wait([worker.channel for worker in busy])
        for worker in (worker for worker in busy if worker.channel in ready):
            assert worker.at is not None
            match _received(worker):
                case Progress(_, text_bytes, tokens):
                    meter.tell(worker.at, text_bytes, tokens)
                    continue
                case Finished(facts):
                    meter.finish(worker.at)
                    yield facts
                case Failed() as failed:
                    failures.append(failed)
            worker.at = None
            if waiting and not failures:
                _give(worker, waiting.pop())
    if failures:
        raise min(failures, key=lambda failed: failed.number).error


def _give(worker: Worker, part_job: PartJob, job: Job | None = None) -> None:
    """The next part, and at first what all parts have in common. A worker that is gone is noticed when it is heard."""
    worker.at = part_job
    with suppress(OSError):
        for message in (job, part_job) if job else (part_job,):
            worker.channel.send(message)


def _received(worker: Worker) -> Progress | Finished | Failed:
    try:
        message: Progress | Finished | Failed = worker.channel.recv()
        return message
    except (EOFError, OSError):  # OSError: it was cut off within a message
        code = worker.process.wait()
        assert worker.at is not None
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        error = DataError(
            f"{worker.at.part.name}: the process that read it {how}, perhaps for want of memory; run the command again, "
            "with --workers 1 if it happens again"
        )
        return Failed(worker.at.number, error)


@contextmanager
def started(count: int) -> Iterator[list[Worker]]:
    """So many processes, that end at the end. They import what they need while their parent goes on; one is none."""
    with ExitStack() as stack:
        workers = []
        for _ in range(count if count > 1 else 0):
            ours, theirs = Pipe()
            stack.callback(ours.close)
            process = _without_interrupts([sys.executable, "-P", "-c", WORKER, str(theirs.fileno())], theirs.fileno())
            theirs.close()
            workers.append(Worker(process, ours))
            stack.callback(_end, workers[-1])
        yield workers


def _without_interrupts(command: list[str], descriptor: int) -> "subprocess.Popen[bytes]":
    """A child that neither Ctrl-C nor a closed terminal reaches: its parent ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        return subprocess.Popen(command, pass_fds=[descriptor], stdin=subprocess.DEVNULL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(worker: Worker) -> None:
    """At once where it waits for work; else so that it can remove what it has fetched."""
    if worker.at is None:
        worker.process.kill()
    worker.process.terminate()
    try:
        worker.process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()
