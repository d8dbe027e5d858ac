"""Keys of a keyboard in, what a human asks of the arm out: each press is one bounded jog. Pure: bytes and time are arguments.

A terminal tells neither that a key is held nor that it was let go, so a held key is no deadman. A jog therefore ends by itself,
and what the keyboard repeats meanwhile is dropped, not queued: when the hand leaves the key, the arm stops within one jog.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from openvla_ros.action.command import ZERO, Twist
from openvla_ros.action.teleop import DIRECTIONS, TeleopRequest
from openvla_ros.errors import ConfigurationError

JOG_S = 0.2
"""Duration of a jog, that of a policy's step: the velocity is the step divided by it."""

GRIPPER_S = 0.6
"""How long an opening is asked for: a gripper at its rate limit of 2/s travels its whole way in 0.5 s."""

ZEROS_S = 0.3
"""How long zeros follow a jog, before silence."""

STALE_S = 0.3
"""Keys that waited longer to be read (a stopped or starved process) move nothing: the human who pressed them has seen nothing happen."""

MILLIMETRES = (1.0, 2.0, 5.0, 10.0, 20.0)
DEGREES = (1.0, 2.0, 5.0, 10.0)
"""Steps that the keys choose from; the first and the last are the bounds for options too."""

MOVES = {
    "w": ("x", 1), "s": ("x", -1), "a": ("y", 1), "d": ("y", -1), "r": ("z", 1), "f": ("z", -1),
    "u": ("roll", -1), "o": ("roll", 1), "i": ("pitch", 1), "k": ("pitch", -1), "j": ("yaw", 1), "l": ("yaw", -1),
    "up": ("x", 1), "down": ("x", -1), "left": ("y", 1), "right": ("y", -1),
}
"""Key -> direction (of action.teleop.DIRECTIONS) and sign, about the base axes: x forward, y left, z up."""

OPENINGS = {"c": 0.0, "v": 1.0}

ESCAPE = "escape"
ARROWS = {"A": "up", "B": "down", "C": "right", "D": "left"}


def spell(data: bytes) -> tuple[str, ...]:
    """The keys behind the bytes of one read from a terminal: characters, arrows by name, and "escape".

    An escape that no known arrow follows is the escape key; what stands behind it in the same read is then left out, since the
    sequences of other keys contain letters. Bytes that are no ASCII are left out.
    """
    text = data.decode("ascii", errors="ignore")
    keys: list[str] = []
    while text:
        key, text = text[0], text[1:]
        if key == "\x1b":
            if text[:1] not in ("[", "O") or text[1:2] not in ARROWS or not text[1:2]:
                return (*keys, ESCAPE)
            key, text = ARROWS[text[1]], text[2:]
        keys.append(key)
    return tuple(keys)


@dataclass(frozen=True)
class StepSize:
    """How far one press goes. Raises ConfigurationError outside 1..20 mm and 1..10 degrees."""

    translation_mm: float = 5.0
    rotation_deg: float = 5.0

    def __post_init__(self) -> None:
        for value, ladder, unit in ((self.translation_mm, MILLIMETRES, "mm"), (self.rotation_deg, DEGREES, "degrees")):
            if not ladder[0] <= value <= ladder[-1]:  # NaN too
                raise ConfigurationError(f"a step of {value:g} {unit} is not taken; give {ladder[0]:g} to {ladder[-1]:g} {unit} per press.")

    def longer(self, rungs: int) -> StepSize:
        """The next larger translation of the ladder, or with -1 the next smaller; it stays at the ends."""
        return replace(self, translation_mm=_climb(self.translation_mm, MILLIMETRES, rungs))

    def wider(self, rungs: int) -> StepSize:
        """The same for the rotation."""
        return replace(self, rotation_deg=_climb(self.rotation_deg, DEGREES, rungs))


@dataclass(frozen=True)
class Jog:
    """One key press: the request that holds from start_s until end_s."""

    key: str
    request: TeleopRequest
    start_s: float
    end_s: float


class Jogger:
    """Plays one jog at a time. Times are seconds of any clock that does not jump, such as time.monotonic()."""

    def __init__(self, size: StepSize | None = None) -> None:
        self.size = size or StepSize()
        self._jog: Jog | None = None
        self._next: str = ""  # another key, pressed while the jog ran: the newest one follows
        self._zeros_until_s = -math.inf

    def press(self, key: str, now_s: float) -> bool:
        """A key of MOVES or OPENINGS. False when it was dropped: the same key again while its jog runs is its repetition."""
        running = self.running(now_s)
        if running is None:
            self._start(key, now_s)
        elif key != running.key:
            self._next = key
        return running is None or key != running.key

    def running(self, now_s: float) -> Jog | None:
        """The jog of this time; one that waited starts where the one before ended, or now if it was asked too late."""
        if self._jog is not None and now_s >= self._jog.end_s:
            self._jog, key, self._next = None, self._next, ""
            if key:
                self._start(key, now_s)
        return self._jog

    def request(self, now_s: float) -> TeleopRequest | None:
        """What is to be sent now; None: nothing. Zeros follow a jog for ZEROS_S."""
        if (jog := self.running(now_s)) is not None:
            return jog.request
        return TeleopRequest(deadman=True) if now_s < self._zeros_until_s else None

    def cancel(self, now_s: float) -> None:
        """No jog runs or waits any more. Zeros follow if something moved, or had just moved."""
        if self._jog is not None:
            self._zeros_until_s = now_s + ZEROS_S
        self._jog, self._next = None, ""

    def until_s(self, now_s: float, longest_s: float) -> float:
        """How long to wait for the next request [s]: until the running jog ends, at most `longest_s`. So a jog is never longer."""
        jog = self.running(now_s)
        return longest_s if jog is None else min(longest_s, jog.end_s - now_s)

    def _start(self, key: str, now_s: float) -> None:
        if key in OPENINGS:
            request, duration_s = TeleopRequest(ZERO, OPENINGS[key], deadman=True), GRIPPER_S
        else:
            request, duration_s = TeleopRequest(self._velocity(key), deadman=True), JOG_S
        self._jog = Jog(key, request, now_s, now_s + duration_s)
        self._zeros_until_s = self._jog.end_s + ZEROS_S

    def _velocity(self, key: str) -> Twist:
        direction, sign = MOVES[key]
        values = np.zeros(len(DIRECTIONS))
        index = DIRECTIONS.index(direction)
        step = self.size.translation_mm / 1000 if index < 3 else math.radians(self.size.rotation_deg)
        values[index] = sign * step / JOG_S
        return Twist(values[:3].copy(), values[3:].copy())


def _climb(value: float, ladder: tuple[float, ...], rungs: int) -> float:
    if rungs > 0:
        return next((rung for rung in ladder if rung > value), ladder[-1])
    return next((rung for rung in reversed(ladder) if rung < value), ladder[0])
