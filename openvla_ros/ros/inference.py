"""The slow part beside the executor: one worker thread, the newest frame, and results that can be overtaken.

Frames and an instruction come in from callbacks, at once and without waiting; chunks go out from the worker. Whatever makes
earlier results void (instruction, driver, deactivate) raises the generation: a result of an older one is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

from openvla_ros.contract import ActionChunk, ChunkIdentity

Frame = TypeVar("Frame")


@dataclass(frozen=True)
class Job(Generic[Frame]):
    """What the worker is given: one frame and what held when it was taken."""

    frame: Frame
    stamp_ns: int
    instruction: str
    generation: int


@dataclass
class Counts:
    """What happened since the worker was made. Written under the lock, read anywhere."""

    taken: int = 0  # frames given to the policy
    replaced: int = 0  # frames that a newer one replaced before the policy was free
    delivered: int = 0  # chunks published
    overtaken: int = 0  # results dropped because their generation was over
    faults: int = 0  # chunks without an action
    refused: int = 0  # frames that could not be decoded or were too old once the policy was free


class Inference(Generic[Frame]):
    """One thread that turns the newest frame into a chunk.

    act: called on the worker thread with a Job; returns the chunk, or None when the frame is not usable.
    publish: called with a chunk and its identity while the lock is held, so that nothing can overtake it in between; short.
    session: random number of this process.
    """

    def __init__(self, act: Callable[[Job[Frame]], ActionChunk | None],
                 publish: Callable[[ActionChunk, ChunkIdentity], None], session: int, step_s: float) -> None:
        self._act, self._publish, self._session, self._step_s = act, publish, session, step_s
        self._changed = threading.Condition(threading.RLock())
        self._frame: tuple[Frame, int] | None = None
        self._instruction = ""
        self._generation, self._sequence = 1, 0
        self._open = self._ended = False
        self._busy_since: float | None = None
        self.counts = Counts()
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def generation(self) -> int:
        """Results of this generation are published, others dropped."""
        return self._generation

    @property
    def instruction(self) -> str:
        """What the policy is told to do; empty: nothing."""
        return self._instruction

    @property
    def busy_s(self) -> float:
        """How long the present inference has been running [s, wall time]; 0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else monotonic() - since

    def offer(self, frame: Frame, stamp_ns: int) -> None:
        """Hand in a frame. It replaces one that is still waiting; never waits."""
        with self._changed:
            if not self._open:
                return
            if self._frame is not None:
                self.counts.replaced += 1
            self._frame = (frame, stamp_ns)
            self._changed.notify_all()

    def open(self) -> None:
        """Begin to publish (activate)."""
        with self._changed:
            self._open = True
            self._generation += 1

    def close(self, reason: str, stamp_ns: int) -> None:
        """Stop publishing (deactivate, exit): the last word is a chunk without steps. Does nothing when closed."""
        with self._changed:
            if self._open:
                self.supersede(reason, stamp_ns, stop=True)
                self._open = False

    def instruct(self, instruction: str, stamp_ns: int, reason: str = "") -> None:
        """Change what to do. Empty means stop now. The text that already holds is no change."""
        with self._changed:
            if instruction == self._instruction:
                return
            self._instruction = instruction
            self.supersede(reason or "instruction cleared", stamp_ns, stop=not instruction)

    def supersede(self, reason: str, stamp_ns: int, stop: bool = False) -> int:
        """Make earlier results and the waiting frame void; with `stop` also say so to the arm. Returns the new generation."""
        with self._changed:
            self._generation += 1
            self._frame = None
            if stop and self._open:
                self._deliver(ActionChunk((), self._step_s, stamp_ns, self._instruction, fault=reason))
            self._changed.notify_all()
            return self._generation

    def end(self, timeout_s: float | None = None) -> bool:
        """End the worker; waits for the running inference. False when it is still running after timeout_s."""
        with self._changed:
            self._ended, self._open, self._frame = True, False, None
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _deliver(self, chunk: ActionChunk) -> None:
        self._sequence += 1
        self.counts.delivered += 1
        self._publish(chunk, ChunkIdentity(self._session, self._generation, self._sequence))

    def _next(self) -> Job[Frame] | None:
        with self._changed:
            while not self._ended and (self._frame is None or not self._instruction or not self._open):
                self._changed.wait()
            if self._ended or self._frame is None:
                return None
            (frame, stamp_ns), self._frame = self._frame, None
            self.counts.taken += 1
            return Job(frame, stamp_ns, self._instruction, self._generation)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._busy_since = monotonic()
            chunk = self._act(job)
            self._busy_since = None
            with self._changed:
                if chunk is None:
                    self.counts.refused += 1
                elif not self._open or job.generation != self._generation:
                    self.counts.overtaken += 1
                else:
                    self.counts.faults += bool(chunk.fault)
                    self._deliver(chunk)
