"""The one thread that owns the Engine: it takes sequences from the queue, steps, and hands tokens to the event loop.

Everything here that the event loop calls (`submit`, `leave`, `stop`) only notes something under a lock that is never held
during a step.
"""

import asyncio
import gc
import threading
from collections.abc import Callable, Sequence
from math import ceil
from time import monotonic

from smallgpt.application.engine import Engine
from smallgpt.application.serving import FairQueue, QueueFullError
from smallgpt.application.streams import Stream
from smallgpt.interfaces.http import errors
from smallgpt.interfaces.http.errors import ApiError
from smallgpt.interfaces.http.limits import UNFETCHED, Limits
from smallgpt.interfaces.http.log import log
from smallgpt.interfaces.http.metrics import Metrics
from smallgpt.interfaces.http.tickets import Job, Piece, Ticket

FAILURES = 3
"""Failed steps in a row after which the server calls itself unhealthy."""


class Worker:
    """Runs an engine in a thread of its own; `close` ends it."""

    def __init__(self, make_engine: Callable[[], Engine], limits: Limits, metrics: Metrics) -> None:
        self._make_engine, self._limits, self._metrics = make_engine, limits, metrics
        self._engine = make_engine()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = threading.Condition()
        self._queue: FairQueue[Job] = FairQueue(limits.queue)
        self._running: dict[Stream, Job] = {}
        self._left: set[Ticket] = set()
        self._end_by: float | None = None  # once stopping: when what runs is ended
        self._closing = False
        self.death: str | None = None
        """What ended the thread, so that nothing will be written any more."""
        self._failures = 0
        self._seconds = 1.0  # a sequence's usual time, for Retry-After
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; pieces are put into tickets' queues in this event loop."""
        self._loop = loop
        self._thread.start()

    def close(self, seconds: float = 5.0) -> None:
        """End the thread after its step; what still runs is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)

    @property
    def trouble(self) -> str | None:
        """Why the server is not healthy, or None."""
        if self._failures >= FAILURES:
            return f"the last {self._failures} steps of the model failed"
        return self.death

    @property
    def is_stopping(self) -> bool:
        """Has `stop` been called?"""
        return self._end_by is not None

    @property
    def is_idle(self) -> bool:
        """Is nothing running or waiting?"""
        with self._changed:
            return not self._running and not self._queue

    def submit(self, ticket: Ticket) -> None:
        """Queue all sequences of a ticket. Raises ApiError when there is no place, or the server is stopping."""
        with self._changed:
            if self.death is not None:
                raise errors.broken()
            if self.is_stopping or self._closing:
                raise errors.stopping()
            try:
                displaced = self._queue.put_all(ticket.client, ticket.jobs)
            except QueueFullError:
                self._metrics.sequences.labels("refused").inc(len(ticket.jobs))
                raise self._busy() from None
            for job in displaced:
                self._turn_away(job, self._busy())
            self._count()
            self._changed.notify()

    def leave(self, ticket: Ticket) -> None:
        """The client is not interested any more: its sequences free their places before the next step."""
        with self._changed:
            waiting = [job for job in ticket.jobs if self._discard(job)]
            self._metrics.sequences.labels("left").inc(len(waiting))
            if any(job.ticket is ticket for job in self._running.values()):
                self._left.add(ticket)
            self._count()
            self._changed.notify()

    def stop(self) -> None:
        """Refuse what waits and what comes; end what still runs after the grace time."""
        with self._changed:
            self._end_by = monotonic() + self._limits.grace
            while (job := self._queue.take()) is not None:
                self._turn_away(job, errors.stopping())
            self._count()
            self._changed.notify()

    def _discard(self, job: Job) -> bool:
        before = len(self._queue)
        self._queue.discard(job)
        return len(self._queue) < before

    def _busy(self) -> ApiError:
        waiting = len(self._queue)
        return errors.busy(waiting, min(60, max(1, ceil(self._seconds * waiting / self._limits.streams))))

    def _turn_away(self, job: Job, error: ApiError) -> None:
        """The end of a sequence without a token. What others of its request were given is not lost for it."""
        written = job.ticket.has_tokens
        self._metrics.sequences.labels("length" if written else "refused").inc()
        self._hand_over([(job, job.ending("length") if written else error)])

    def _count(self) -> None:
        self._metrics.waiting.set(len(self._queue))
        self._metrics.active.set(len(self._running))

    def _hand_over(self, events: Sequence[tuple[Job, Piece | ApiError]]) -> None:
        assert self._loop is not None
        if events and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: Sequence[tuple[Job, Piece | ApiError]]) -> None:
        """In the event loop: into the tickets' queues."""
        for job, event in events:
            ticket = job.ticket
            if ticket.is_dropped:
                continue
            if ticket.events.qsize() >= UNFETCHED:
                ticket.is_dropped = True
                event = errors.unread()
                self.leave(ticket)
            ticket.events.put_nowait(event)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.death = f"the model cannot go on: {_words(error)}"
        with self._changed:  # nobody may wait for a thread that has ended
            self._closing = True
            jobs = [*self._running.values(), *self._queue]
            self._running.clear()
            while self._queue.take() is not None:
                pass
            self._count()
            self._hand_over([(job, errors.broken() if self.death else errors.stopping()) for job in jobs])

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closing and not self._running and not self._queue:
                    self._changed.wait()
                if self._closing:
                    return
                self._clear()
                self._admit()
                self._count()
            if self._running:
                failure = self._step_or_failure()
                if failure is not None:
                    self._fail(failure)

    def _clear(self) -> None:
        """Let go of those whose client has left or whose time is over."""
        now = monotonic()
        late = now - self._limits.timeout
        for job in [job for job in self._queue if job.arrived < late]:
            self._queue.discard(job)
            self._turn_away(job, errors.late(self._limits.timeout))
        over = self._end_by is not None and now >= self._end_by
        for stream, job in list(self._running.items()):
            if job.ticket in self._left:
                self._release(stream, "left")
            elif over or job.arrived < late:
                ended = job.ticket.has_tokens or over
                self._release(stream, "length" if ended else "refused")
                self._hand_over([(job, job.ending("length") if ended else errors.late(self._limits.timeout))])
        self._left.clear()

    def _admit(self) -> None:
        while self._engine.n_free and (job := self._queue.take()) is not None:
            self._running[self._engine.add(job.request)] = job
            self._metrics.prompt_tokens.inc(len(job.request.prompt))

    def _step_or_failure(self) -> str | None:
        """A step, or the words for what went wrong. The exception itself would keep the step's tensors in memory."""
        try:
            self._step()
        except Exception as error:  # whatever it is, the next client must not find a dead server
            return _words(error)
        return None

    def _step(self) -> None:
        given = self._engine.step()
        self._failures = 0
        now = monotonic()
        events: list[tuple[Job, Piece | ApiError]] = []
        with self._changed:
            for stream, tokens in given:
                job = self._running[stream]
                before = job.n_tokens
                pieces = job.pieces(tokens, stream.finish)
                events += [(job, piece) for piece in pieces]
                self._observe(job, before, now)
                if pieces and pieces[-1].finish:
                    self._release(stream, pieces[-1].finish)
                    self._seconds += 0.1 * (now - job.arrived - self._seconds)
            self._count()
        self._hand_over(events)

    def _observe(self, job: Job, before: int, now: float) -> None:
        new = job.n_tokens - before
        if not new:
            return
        self._metrics.tokens.inc(new)
        if before:
            self._metrics.next_token.observe((now - job.last) / new)
        else:
            self._metrics.first_token.observe(now - job.arrived)
        job.last = now

    def _release(self, stream: Stream, outcome: str) -> None:
        self._engine.remove(stream)
        del self._running[stream]
        self._metrics.sequences.labels(outcome).inc()

    def _fail(self, words: str) -> None:
        """Tell everybody whose tokens were in the step, and go on with a new engine: this one may be half-way."""
        log(f"smallgpt: a step failed: {words}")
        told = ApiError(500, "the model failed while it wrote this text; try again", code="engine_error")
        with self._changed:
            self._failures += 1
            self._metrics.sequences.labels("failed").inc(len(self._running))
            self._hand_over([(job, told) for job in self._running.values()])
            self._running.clear()
            self._count()
        del self._engine
        gc.collect()  # its cache must be free before there is another one: memory may be what was short
        self._engine = self._make_engine()


def _words(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
