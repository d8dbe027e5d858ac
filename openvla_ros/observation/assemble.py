"""Text and stamps in, a verdict out: which instruction and which frames may become an Observation, and why not.

No ROS and no clock in here: time is an argument.
"""

from __future__ import annotations

import statistics
import threading
import unicodedata
import zlib
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from openvla_ros.errors import ConfigurationError, InstructionError

MAX_INSTRUCTION_LENGTH = 256
SPECIAL_TOKENS = ("<s>", "</s>", "<unk>", "<PAD>")


def check_instruction(text: str) -> str:
    """The instruction without the white space around it; "" is the verdict "stop".

    At most 256 characters; no control, invisible or line-breaking characters; none of the tokenizer's special tokens,
    which would speak to the model instead of being read by it. Raises InstructionError.
    """
    instruction = text.strip()
    if len(instruction) > MAX_INSTRUCTION_LENGTH:
        raise InstructionError(f"instruction has {len(instruction)} characters, at most {MAX_INSTRUCTION_LENGTH} are taken. "
                               "Say it as the training data does: 'put the spoon on the towel'.")
    for character in instruction:
        # Cc control, Cf invisible (text direction, zero width), Cs half a character, Co private, Zl and Zp line breaks.
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            raise InstructionError(f"instruction {instruction!r} holds the character U+{ord(character):04X}, which cannot be "
                                   "seen. Send one line of plain text.")
    for token in SPECIAL_TOKENS:
        if token.lower() in instruction.lower():
            raise InstructionError(f"instruction {instruction!r} spells the special token {token}. Leave it out.")
    return instruction


class FrameReason(Enum):
    """What is said about one frame. FRESH is the only one that may be shown to a policy."""

    FRESH = "fresh"
    ZERO_STAMP = "zero stamp"
    FUTURE = "future stamp"
    STALE = "stale"
    REPEATED = "repeated stamp"
    WENT_BACK = "stamp went back"
    FROZEN = "frozen picture"


REMEDIES: Mapping[FrameReason, str] = {
    FrameReason.ZERO_STAMP: "The camera driver does not stamp its images. Use a driver that does, or set stamp_source to "
                            "'receive' and know that camera latency is then invisible.",
    FrameReason.FUTURE: "Camera stamps lie ahead of this node's clock. Synchronise the computers (chrony), or start "
                        "everything with the same use_sim_time.",
    FrameReason.STALE: "Camera frames arrive too old. Synchronise the computers (chrony), lighten the network (compressed "
                       "images), or check use_sim_time.",
    FrameReason.REPEATED: "The camera driver sends the same stamp again. Check for two publishers on the image topic.",
    FrameReason.WENT_BACK: "Camera stamps go back. Check for two publishers on the image topic, or a driver that "
                           "re-synchronises its clock.",
    FrameReason.FROZEN: "The camera sends the same picture with new stamps. Restart its driver; uncover the lens; for a "
                        "drawn picture without noise set frozen_after to 0.",
}
NO_FRAMES_REMEDY = ("No camera frame arrives. Check the driver, the topic name (remap image), image_transport, ROS_DOMAIN_ID "
                    "and the discovery range.")
LOSS_REMEDY = ("Camera frames are lost on the way. Best-effort raw images do not fit the shared memory of Fast DDS: use the "
               "profile config/fastdds.xml on both sides (FASTRTPS_DEFAULT_PROFILES_FILE), compressed images "
               "(image_transport: compressed), or a reliable publisher.")
COMPRESSED_LOSS_REMEDY = ("Camera frames are lost on the way although they are compressed: the network or this computer is overloaded. "
                          "Lower the camera's rate, use a reliable publisher, or leave a core free.")

RECENT_S = 2.0
"""A refused frame is the camera's state for so long; the counts keep it for ever."""

CLOCK_BACK_S = 0.1
"""A clock that went back by less is two callbacks that read it in one order and came in another."""


@dataclass(frozen=True)
class FrameLimits:
    """What a frame must hold to be used. Raises ConfigurationError when made with numbers that make no sense."""

    max_age_s: float = 0.6  # from the camera stamp to now
    max_ahead_s: float = 0.1  # a stamp this far in the future is forgiven: clocks differ a little, /clock comes in steps
    stamp_source: str = "header"  # "header": the camera's stamp; "receive": the time at which the frame came here
    frozen_after: int = 10  # so many equal pictures in a row are a frozen camera; 0 switches the check off
    loss_to_warn: float = 0.2  # lost fraction above which frames are called lost
    silence_s: float = 1.0  # no frame for so long is called no frames
    window: int = 60  # frames that the statistics look back on
    compressed: bool = False  # frames are JPEG or PNG files; it decides which remedy for lost frames is right

    def __post_init__(self) -> None:
        if self.stamp_source not in ("header", "receive"):
            raise ConfigurationError(f"stamp_source is {self.stamp_source!r}; taken are 'header' and 'receive'.")
        if not (self.max_age_s > 0 and self.max_ahead_s >= 0 and self.silence_s > 0):
            raise ConfigurationError(f"max_age_s {self.max_age_s} and silence_s {self.silence_s} must be above 0, "
                                     f"max_ahead_s {self.max_ahead_s} must not be below 0.")
        if not (self.frozen_after >= 0 and self.window >= 3 and 0 < self.loss_to_warn <= 1):
            raise ConfigurationError(f"frozen_after {self.frozen_after} must be 0 or more, window {self.window} 3 or more, "
                                     f"loss_to_warn {self.loss_to_warn} above 0 and at most 1.")


@dataclass(frozen=True)
class FrameVerdict:
    """One frame: whether a policy may see it, the stamp it counts as (ROS clock) and its age when it came [s]."""

    reason: FrameReason
    stamp_ns: int
    age_s: float

    @property
    def usable(self) -> bool:
        """Whether the frame may be shown to a policy."""
        return self.reason is FrameReason.FRESH


@dataclass(frozen=True)
class FrameStatistics:
    """The camera as diagnostics show it, over the last frames. Numbers are None while too few frames came."""

    received: int  # since start
    refused: Mapping[FrameReason, int]  # since start, without FRESH
    rate_hz: float | None  # frames that came per second of the node's clock
    spacing_s: float | None  # median distance of camera stamps
    lost_fraction: float | None  # of the frames that the stamps say were taken
    age_s: float | None  # median age at arrival
    silent_s: float | None  # since the last frame came; None when none ever came
    clock_jumps: int  # times that the clock went back
    healthy: bool
    remedy: str  # what is wrong and what to do; empty when healthy


class _Memory:
    """What a judge remembers of the last frames, in one piece so that it can be forgotten at once."""

    def __init__(self, window: int) -> None:
        self.stamps_ns: deque[int] = deque(maxlen=window)  # of frames whose stamps rise, stale and frozen ones too
        self.arrivals_ns: deque[int] = deque(maxlen=window)  # of the same frames
        self.ages_s: deque[float] = deque(maxlen=window)  # of the same frames
        self.refused: tuple[FrameReason, int] | None = None  # the newest refused frame's reason, and when it came
        self.newest_stamp_ns = 0
        self.last_arrival_ns: int | None = None
        self.now_ns: int | None = None
        self.mark: int | None = None
        self.equal_in_a_row = 0

    def forget_rhythm(self) -> None:
        self.stamps_ns.clear()
        self.arrivals_ns.clear()
        self.ages_s.clear()


class FrameJudge:
    """Judges each frame by its stamp, before anything is decoded, and remembers enough to say how the camera does.

    The newest frame wins: a frame that is not newer than the newest one is refused. When the node's clock goes back (a
    recording that starts again) the judge forgets the frames before it, so that the new ones are not refused.
    Any thread may call it: the camera and the diagnostics callbacks run on different ones.
    """

    def __init__(self, limits: FrameLimits | None = None) -> None:
        self.limits = limits or FrameLimits()
        self._received = 0
        self._clock_jumps = 0
        self._counts: Counter[FrameReason] = Counter()
        self._seen = _Memory(self.limits.window)
        self._lock = threading.Lock()

    def judge(self, stamp_ns: int, now_ns: int, data: Any = None) -> FrameVerdict:
        """The verdict on one frame that came at `now_ns`. data: its undecoded bytes, sampled for the frozen check."""
        with self._lock:
            self._notice_clock(now_ns)
            if self.limits.stamp_source == "receive":
                stamp_ns = now_ns
            age_s = (now_ns - stamp_ns) / 1e9
            reason = self._reason(stamp_ns, age_s, data)
            self._received += 1
            self._counts[reason] += 1
            if reason is not FrameReason.FRESH:
                self._seen.refused = (reason, now_ns)
            silent_s = self._silent_s(now_ns)
            self._seen.last_arrival_ns = now_ns
            if reason not in (FrameReason.ZERO_STAMP, FrameReason.FUTURE, FrameReason.REPEATED, FrameReason.WENT_BACK):
                if silent_s is not None and silent_s > self.limits.silence_s:
                    self._seen.forget_rhythm()  # a camera that was away is not a camera that loses frames
                self._seen.newest_stamp_ns = stamp_ns
                self._seen.stamps_ns.append(stamp_ns)
                self._seen.arrivals_ns.append(now_ns)
                self._seen.ages_s.append(age_s)
            return FrameVerdict(reason, stamp_ns, age_s)

    def statistics(self, now_ns: int) -> FrameStatistics:
        """How the camera does at `now_ns`."""
        with self._lock:
            self._notice_clock(now_ns)
            spacing_s, lost_fraction = estimate_loss(list(self._seen.stamps_ns))
            silent_s = self._silent_s(now_ns)
            remedy = self._remedy(now_ns, silent_s, lost_fraction)
            return FrameStatistics(
                received=self._received,
                refused={reason: self._counts[reason] for reason in REMEDIES if self._counts[reason]},
                rate_hz=_rate_hz(list(self._seen.arrivals_ns)),
                spacing_s=spacing_s,
                lost_fraction=lost_fraction,
                age_s=statistics.median(self._seen.ages_s) if self._seen.ages_s else None,
                silent_s=silent_s,
                clock_jumps=self._clock_jumps,
                healthy=not remedy,
                remedy=remedy,
            )

    def _reason(self, stamp_ns: int, age_s: float, data: Any) -> FrameReason:
        if stamp_ns <= 0:
            return FrameReason.ZERO_STAMP
        if age_s < -self.limits.max_ahead_s:
            return FrameReason.FUTURE
        if stamp_ns <= self._seen.newest_stamp_ns:
            return FrameReason.REPEATED if stamp_ns == self._seen.newest_stamp_ns else FrameReason.WENT_BACK
        frozen = self._is_frozen(data)  # looked at for stale frames too: the row must not be cut by one late frame
        if age_s > self.limits.max_age_s:
            return FrameReason.STALE
        return FrameReason.FROZEN if frozen else FrameReason.FRESH

    def _is_frozen(self, data: Any) -> bool:
        if data is None or not self.limits.frozen_after:
            return False
        mark = sample_mark(data)
        self._seen.equal_in_a_row = self._seen.equal_in_a_row + 1 if mark == self._seen.mark else 1
        self._seen.mark = mark
        return self._seen.equal_in_a_row >= self.limits.frozen_after

    def _silent_s(self, now_ns: int) -> float | None:
        return None if self._seen.last_arrival_ns is None else (now_ns - self._seen.last_arrival_ns) / 1e9

    def _remedy(self, now_ns: int, silent_s: float | None, lost_fraction: float | None) -> str:
        if silent_s is None or silent_s > self.limits.silence_s:
            return NO_FRAMES_REMEDY
        if self._seen.refused is not None and now_ns - self._seen.refused[1] <= RECENT_S * 1e9:
            return REMEDIES[self._seen.refused[0]]
        if lost_fraction is not None and lost_fraction > self.limits.loss_to_warn:
            return COMPRESSED_LOSS_REMEDY if self.limits.compressed else LOSS_REMEDY
        return ""

    def _notice_clock(self, now_ns: int) -> None:
        if self._seen.now_ns is not None and now_ns < self._seen.now_ns - CLOCK_BACK_S * 1e9:
            self._clock_jumps += 1
            self._seen = _Memory(self.limits.window)
        self._seen.now_ns = now_ns if self._seen.now_ns is None else max(now_ns, self._seen.now_ns)


def sample_mark(data: Any) -> int:
    """A number that differs, as good as always, between two pictures of a living camera; looks at about 8000 bytes."""
    flat = np.frombuffer(data, dtype=np.uint8)
    # Counting bytes and not pixels, so that all channels and columns are met: an odd stride shares no factor with a row.
    return zlib.crc32(flat[:: flat.size // 8192 | 1].tobytes(), flat.size)


def estimate_loss(stamps_ns: list[int]) -> tuple[float | None, float | None]:
    """Median stamp distance [s] and the fraction of frames that the stamps say are missing; None with under 3 stamps.

    The camera's period is taken from the short distances; each longer one counts for the whole periods that it spans,
    so that jitter alone is never called loss. A camera of which never two frames in a row come looks slow, not lossy.
    """
    if len(stamps_ns) < 3:
        return None, None
    distances = np.diff(np.array(stamps_ns, dtype=np.int64)) / 1e9
    spacing_s = float(np.median(distances))
    spans = np.maximum(1, np.rint(distances / np.quantile(distances, 0.1)))
    period_s = np.median(distances / spans)  # the first guess is a short one: look again with the middle of all
    spans = np.maximum(1, np.rint(distances / period_s))
    return spacing_s, float(1 - len(spans) / spans.sum())


def _rate_hz(arrivals_ns: list[int]) -> float | None:
    if len(arrivals_ns) < 2 or arrivals_ns[-1] <= arrivals_ns[0]:
        return None
    return (len(arrivals_ns) - 1) * 1e9 / (arrivals_ns[-1] - arrivals_ns[0])
