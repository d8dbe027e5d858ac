"""When a step of a chunk is played: for exactly its duration, from the moment it is accepted.

Comes in: chunks that were judged good, and a time; goes out: which steps overlap the next tick. All times are nanoseconds of
the clock that drives the ticks, never image stamps. At most one chunk waits, and the newest one wins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from openvla_ros.contract import Action, ReceivedChunk

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, eq=False)
class Play:
    """One step and the time it is played: from start_ns until end_ns, less only when something replaces or stops it.

    Each is itself only: two that look alike are two steps.
    """

    received: ReceivedChunk
    index: int
    start_ns: int

    @property
    def end_ns(self) -> int:
        """Start plus the chunk's step duration."""
        return self.start_ns + round(self.received.chunk.step_s * SECOND_NS)

    @property
    def step(self) -> Action:
        """The step as the policy asked for it."""
        return self.received.chunk.steps[self.index]

    def share(self, from_ns: int, until_ns: int) -> float:
        """Fraction of the step that falls between two times, 0..1."""
        overlap_ns = min(self.end_ns, until_ns) - max(self.start_ns, from_ns)
        return max(0, overlap_ns) / (self.end_ns - self.start_ns)


class Schedule:
    """Plays one step at a time. With `preempt` a new chunk replaces the playing step at once, else at its end."""

    def __init__(self, preempt: bool = False) -> None:
        self._preempt = preempt
        self.clear()

    def clear(self) -> None:
        """Forget what plays and what waits."""
        self._playing: Play | None = None
        self._before: Play | None = None  # the one that `_playing` followed; an early tick may still meet its end
        self._waiting: ReceivedChunk | None = None
        self._covered_ns: int | None = None  # end of the newest window that was asked for

    @property
    def playing(self) -> Play | None:
        """The newest step of the newest window, if more was to come of it; it may have ended since."""
        return self._playing

    @property
    def waiting(self) -> ReceivedChunk | None:
        """The chunk that starts when the playing step ends."""
        return self._waiting

    def put(self, received: ReceivedChunk) -> None:
        """A chunk with at least one step. It replaces a waiting one; the playing chunk's further steps are then void."""
        self._waiting = received

    def skip(self) -> None:
        """Give up the playing chunk, so that the waiting one starts at the next window."""
        self._playing = self._before = None

    def window(self, now_ns: int, until_ns: int) -> tuple[Play, ...]:
        """The steps that are played between two times, in order; together they never overlap.

        A step that starts inside the window is decided now: what arrives later waits for its end. Only the past is
        forgotten, so windows may overlap (an early tick) or leave gaps (a late one).
        """
        if self._preempt and self._waiting is not None:
            self._playing, self._before = self._start(now_ns), None
        elif self._playing is None:
            self._playing = self._start(max(now_ns, self._before.end_ns) if self._before else now_ns)
        plays = [self._before, self._playing]
        while self._playing is not None and self._playing.end_ns < until_ns:
            self._before, self._playing = self._playing, self._follow(self._playing, now_ns, until_ns)
            plays.append(self._playing)
        self._covered_ns = until_ns
        return tuple(play for play in plays if play is not None and play.end_ns > now_ns and play.start_ns < until_ns)

    def _start(self, start_ns: int) -> Play | None:
        received, self._waiting = self._waiting, None
        return None if received is None else Play(received, 0, start_ns)

    def _follow(self, ended: Play, now_ns: int, until_ns: int) -> Play | None:
        """What comes after a step. It starts where that ended, or now if the arm has been told to rest in between."""
        start_ns = ended.end_ns
        if start_ns < now_ns:
            # A tick that came late left the old speed on beyond the step's end: that time is the next step's already.
            # More than a tick late, nothing is made up for: no step is shortened by a stall.
            overrun = self._covered_ns is not None and self._covered_ns < start_ns and now_ns - start_ns < until_ns - now_ns
            start_ns = start_ns if overrun else now_ns
        if self._waiting is not None:
            return self._start(start_ns)
        if ended.index + 1 < len(ended.received.chunk.steps):
            return replace(ended, index=ended.index + 1, start_ns=start_ns)
        return None
