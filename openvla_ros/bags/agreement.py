"""What the real nodes said while a recording was played to them, against the offline answers: frame by frame, by observation stamp.

Chunks and clock ticks in, as plain values; out: whether they agree, which frames nobody looked at, how old the answers were, and how
the played clock ran against the computer's. No ROS in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from openvla_ros.bags.expect import Difference, Examiner, Expectation, Tolerance
from openvla_ros.bags.read import SECOND_NS
from openvla_ros.bags.replay import ReplayedFrame
from openvla_ros.contract import FloatArray

LEAST_ANSWERED = 0.1
"""Share of the frames that must be answered live. With fewer, the others were never looked at, and "agrees" would say too much."""


@dataclass(frozen=True)
class HeardChunk:
    """A chunk as it came over DDS. action: [7] its first step; None: it says stop."""

    stamp_ns: int
    arrived_ns: int | None  # on the played clock; None before its first tick was heard
    instruction: str
    token_ids: tuple[int, ...]
    action: FloatArray | None
    fault: str
    stage_ms: Mapping[str, float]

    @property
    def inferred(self) -> bool:
        """Whether the model ran for it. The others only say stop: deactivated, another driver, an empty instruction."""
        return bool(self.stage_ms) or self.action is not None


class Tick(NamedTuple):
    """The played clock at a moment of the computer's steady clock [ns]."""

    played_ns: int
    steady_ns: int


@dataclass(frozen=True)
class Spread:
    """Some milliseconds, summed up."""

    median: float
    p99: float
    max: float


@dataclass(frozen=True)
class PlayedClock:
    """How the played clock ran. rate: its seconds per steady second; drift_ppm: the rate against the wanted one."""

    rate: float
    drift_ppm: float
    jitter_ms: Spread  # distance of the ticks from the straight line


@dataclass(frozen=True)
class Agreement:
    """The comparison. Differences, flips and the margin bound are those of `bags.expect`."""

    frames: int  # offline
    compared: int  # answers that have an offline counterpart
    skipped: tuple[int, ...]  # frames that nobody answered live: newer ones came meanwhile, or they were lost on the way
    unknown: tuple[int, ...]  # stamps [ns] that no frame has
    twice: tuple[int, ...]  # frames that were answered more than once
    stops: Mapping[str, int]  # chunks that only said stop -> how often
    differences: tuple[Difference, ...]
    flips: tuple[int, ...]
    margin_bound: float
    age_ms: Spread | None  # from the stamp to the arrival here, on the played clock
    stage_ms: Mapping[str, float]  # median per stage
    clock: PlayedClock | None

    @property
    def good(self) -> bool:
        """Enough was compared, and all of it agrees."""
        return self._enough and not (self.differences or self.unknown or self.twice)

    @property
    def _enough(self) -> bool:
        return self.compared > 0 and self.compared >= LEAST_ANSWERED * self.frames

    @property
    def words(self) -> str:
        """Why it is not good; empty when it is."""
        if not self.compared:
            return "no answer of the live nodes belongs to a frame of the recording. Look at their logs."
        said = [] if self._enough else [f"only {self.compared} of {self.frames} frames were answered live, expected at least "
                                        f"{LEAST_ANSWERED:.0%}: play more slowly with --rate"]
        wrong = {difference.index for difference in self.differences}
        said += [f"{len(wrong)} of {self.compared} live answers differ from the offline ones (the first: {self.differences[0].detail})"] \
            if wrong else []
        said += [f"{len(self.unknown)} live answers have a stamp that no frame has (the first: {self.unknown[0]})"] if self.unknown else []
        said += [f"frames {', '.join(map(str, self.twice[:5]))} were answered more than once"] if self.twice else []
        return "; ".join(said)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "agrees": self.good, "frames": self.frames, "compared": self.compared, "skipped": list(self.skipped),
            "unknown_stamps": list(self.unknown), "answered_twice": list(self.twice), "stops": dict(self.stops),
            "differences": [{"frame": one.index, "cause": one.cause, "detail": one.detail} for one in self.differences],
            "flips": list(self.flips), "margin_bound": self.margin_bound, "age_ms": asdict(self.age_ms) if self.age_ms else None,
            "stage_ms": dict(self.stage_ms), "clock": asdict(self.clock) if self.clock else None}


def agree(offline: Expectation, heard: Sequence[HeardChunk], ticks: Sequence[Tick], tolerance: Tolerance, rate: float = 1.0) -> Agreement:
    """Compare. rate: how fast the recording was meant to be played."""
    examiner = Examiner(offline, {}, tolerance)
    frame_at = {frame.stamp_ns: frame for frame in offline.frames}
    answered: dict[int, int] = {}
    unknown, differences = list[int](), list[Difference]()
    inferred = [chunk for chunk in heard if chunk.inferred]
    for chunk in inferred:
        frame = frame_at.get(chunk.stamp_ns)
        if frame is None:
            unknown.append(chunk.stamp_ns)
            continue
        answered[frame.index] = answered.get(frame.index, 0) + 1
        live = ReplayedFrame(frame.index, frame.stamp_ns, chunk.instruction, chunk.token_ids, chunk.action, None, chunk.fault, {})
        if (difference := examiner.look(live)) is not None:
            differences.append(difference)
    differences += examiner.too_many_flips()
    stops: dict[str, int] = {}
    for chunk in heard:
        if not chunk.inferred:
            stops[chunk.fault] = stops.get(chunk.fault, 0) + 1
    stages = list(dict.fromkeys(name for chunk in inferred for name in chunk.stage_ms))
    return Agreement(
        len(offline.frames), len(answered), tuple(frame.index for frame in offline.frames if frame.index not in answered), tuple(unknown),
        tuple(index for index, count in answered.items() if count > 1), stops, tuple(differences), tuple(examiner.flips),
        examiner.margin_bound, _spread([(chunk.arrived_ns - chunk.stamp_ns) / 1e6 for chunk in inferred if chunk.arrived_ns is not None]),
        {name: round(float(np.median([chunk.stage_ms[name] for chunk in inferred if name in chunk.stage_ms])), 3) for name in stages},
        played_clock(ticks, rate))


def played_clock(ticks: Sequence[Tick], rate: float = 1.0) -> PlayedClock | None:
    """A straight line through the ticks; None where there is less than a second of them."""
    if len(ticks) < 10 or ticks[-1].steady_ns - ticks[0].steady_ns < SECOND_NS:
        return None
    steady_s = np.array([tick.steady_ns - ticks[0].steady_ns for tick in ticks]) / SECOND_NS
    played_s = np.array([tick.played_ns - ticks[0].played_ns for tick in ticks]) / SECOND_NS
    slope, offset = np.polyfit(steady_s, played_s, 1)
    jitter = _spread((np.abs(played_s - (slope * steady_s + offset)) * 1000.0).tolist())
    assert jitter is not None
    return PlayedClock(float(slope), float((slope / rate - 1.0) * 1e6), jitter)


def _spread(values_ms: Sequence[float]) -> Spread | None:
    if not values_ms:
        return None
    return Spread(*(round(float(value), 3) for value in (np.median(values_ms), np.quantile(values_ms, 0.99), np.max(values_ms))))
