"""What a human asks of the arm, whatever the device, and how a joystick says it.

Comes in: the axes and buttons of a `sensor_msgs/Joy`, as plain numbers, and a mapping out of `config/joy/<device>.yaml`. Goes out:
a TeleopRequest. Time is not looked at: how long a request holds (a button that is no longer heard of) is the pilot's business,
and so are the limits of the arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from openvla_ros.action.command import ZERO, Twist
from openvla_ros.contract import FloatArray
from openvla_ros.errors import ConfigurationError

DIRECTIONS = ("x", "y", "z", "roll", "pitch", "yaw")
"""Along and about the base axes: x forward, y left, z up. The order of a twist."""

SCALE_RANGES = {**dict.fromkeys(DIRECTIONS[:3], (0.001, 0.5)), **dict.fromkeys(DIRECTIONS[3:], (0.01, 2.5))}
"""Speed at full deflection that a map may ask for, without its sign: m/s, rad/s."""

MAX_INDEX = 63
"""Largest number of an axis or button that a map may name."""


class Wish(Enum):
    """Who shall drive. The values are the events of `handoff.NEXT`."""

    NONE = ""
    TAKE_OVER = "take_over"
    RESUME = "resume"
    HOLD = "hold"
    STOP = "emergency_stop"


@dataclass(frozen=True)
class TeleopRequest:
    """What the human asks for now. Values may be anything but of the wrong shape: the safety chain judges them.

    A device without a deadman (a stream of twists) counts as held while it is heard. fault: why the device was not understood;
    then nothing moves, and only STOP can still be wished.
    """

    twist: Twist = ZERO
    gripper: float | None = None  # wanted opening, 0 closed .. 1 open; None: nothing is asked of it
    deadman: bool = False  # the human's hand is on the device
    wish: Wish = Wish.NONE
    fault: str = ""

    @property
    def active(self) -> bool:
        """The human, with the deadman held, asks for a motion: what counts as touching the teleop. NaN counts."""
        return self.deadman and (self.twist.moving or self.gripper is not None)


@dataclass(frozen=True)
class Stick:
    """One axis of a joystick and the speed at its full deflection; the sign turns it round."""

    axis: int
    scale: float  # m/s for x, y, z; rad/s for roll, pitch, yaw


@dataclass(frozen=True)
class JoystickMap:
    """Which axis and button means what. Numbers count from 0, as in sensor_msgs/Joy.

    Raises ConfigurationError when made with anything odd: an unknown direction, one axis or button for two things, a speed
    outside SCALE_RANGES, a deadzone outside 0..0.5. Deadman and stop must be there, and at least one direction.
    """

    deadman: int  # held: motion and gripper are taken
    stop: int  # pressed: emergency stop
    sticks: Mapping[str, Stick]  # by name out of DIRECTIONS
    deadzone: float = 0.1  # part of the deflection around the middle that means zero; speed grows from 0 at its edge
    open: int | None = None  # the gripper's buttons are held, with the deadman
    close: int | None = None
    take_over: int | None = None  # these three act when they are pressed, whatever the deadman
    resume: int | None = None
    hold: int | None = None

    def __post_init__(self) -> None:
        buttons = {name: getattr(self, name) for name in BUTTONS if getattr(self, name) is not None}
        for name in REQUIRED_BUTTONS:
            if name not in buttons:
                raise ConfigurationError(f"joystick map has no button '{name}'. Choose one: without it nobody may drive.")
        _check_numbers("button", buttons)
        if not self.sticks or not set(self.sticks) <= set(DIRECTIONS):
            raise ConfigurationError(f"joystick map has the directions {sorted(map(str, self.sticks))}, expected one or more of "
                                     f"{', '.join(DIRECTIONS)}.")
        _check_numbers("axis", {name: stick.axis for name, stick in self.sticks.items()})
        for name, stick in self.sticks.items():
            low, high = SCALE_RANGES[name]
            if not _is_number(stick.scale) or not low <= abs(stick.scale) <= high:  # NaN too
                raise ConfigurationError(f"joystick scale of {name!r} is {stick.scale!r}, expected {low:g} to {high:g} "
                                         f"{'m/s' if name in DIRECTIONS[:3] else 'rad/s'}, or the same with a minus.")
        if not _is_number(self.deadzone) or not 0.0 <= self.deadzone <= 0.5:
            raise ConfigurationError(f"joystick deadzone is {self.deadzone!r}, expected 0 to 0.5 of the full deflection.")

    @staticmethod
    def from_mapping(mapping: object, source: str) -> JoystickMap:
        """A map out of a parsed file; `source` names the file in errors. Raises ConfigurationError.

        Keys: `deadzone`, `buttons` (names of BUTTONS -> number), `axes` (names of DIRECTIONS -> {axis, scale}).
        """
        try:
            top = _keys(mapping, "joystick map", ("buttons", "axes", "deadzone"))
            buttons = _keys(top["buttons"], "buttons", REQUIRED_BUTTONS, BUTTONS)
            sticks = {name: Stick(**_keys(stick, f"axis {name!r}", ("axis", "scale")))  # type: ignore[arg-type]
                      for name, stick in _keys(top["axes"], "axes", (), DIRECTIONS).items()}
            return JoystickMap(sticks=sticks, deadzone=top["deadzone"], **buttons)  # type: ignore[arg-type]
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}: {error}") from error

    def misfit(self, axes: Sequence[float], buttons: Sequence[int]) -> str:
        """Why this device is not the one the map is for, or empty."""
        used = [stick.axis for stick in self.sticks.values()]
        pressed = [number for name in BUTTONS if (number := getattr(self, name)) is not None]
        if len(axes) <= max(used) or len(buttons) <= max(pressed):
            return (f"the joystick has {len(axes)} axes and {len(buttons)} buttons, the map reads axis {max(used)} and button "
                    f"{max(pressed)}. Choose the map of this device.")
        bad = [index for index in used if not math.isfinite(axes[index])]
        return f"the joystick's axes {bad} are NaN or infinite. Check its driver." if bad else ""

    def velocity(self, axes: Sequence[float]) -> Twist:
        """The twist of these axes, which must fit (see `misfit`). Values beyond -1..1 count as full deflection."""
        values = np.zeros(len(DIRECTIONS))
        for index, name in enumerate(DIRECTIONS):
            if name in self.sticks:
                stick = self.sticks[name]
                values[index] = stick.scale * self._deflection(axes[stick.axis])
        return Twist(_part(values, 0), _part(values, 3))

    def _deflection(self, value: float) -> float:
        beyond = min(1.0, abs(value)) - self.deadzone
        return math.copysign(beyond / (1.0 - self.deadzone), value) if beyond > 0.0 else 0.0


REQUIRED_BUTTONS = ("deadman", "stop")
BUTTONS = (*REQUIRED_BUTTONS, "open", "close", "take_over", "resume", "hold")
WISHES = {"hold": Wish.HOLD, "take_over": Wish.TAKE_OVER, "resume": Wish.RESUME}
"""In the order of caution: of several buttons pressed at once the first counts."""


@dataclass
class Joystick:
    """A map, and what must be remembered between two messages of one device. Make another one when the device changes.

    A deadman that is held from the very first message on does not count until it was seen released: a stuck button is no hand.
    Likewise a button that is already pressed then wishes nothing. The stop button counts in every message.
    """

    map: JoystickMap
    _released: bool = field(default=False, init=False)
    _before: frozenset[str] | None = field(default=None, init=False)

    def read(self, axes: Sequence[float], buttons: Sequence[int]) -> TeleopRequest:
        """What one `sensor_msgs/Joy` asks for. Never raises: what does not fit is a request with a fault, and moves nothing."""
        pressed = frozenset(name for name in BUTTONS if self._is_pressed(name, buttons))
        before, self._before = self._before, pressed
        if fault := self.map.misfit(axes, buttons):
            self._released = False
            return TeleopRequest(wish=Wish.STOP if "stop" in pressed else Wish.NONE, fault=fault)
        self._released = self._released or "deadman" not in pressed
        if "stop" in pressed:
            return TeleopRequest(wish=Wish.STOP)
        fresh = pressed - before if before is not None else frozenset()
        wish = next((wish for name, wish in WISHES.items() if name in fresh), Wish.NONE)
        if "deadman" not in pressed or not self._released:
            return TeleopRequest(wish=wish)
        gripper = None
        if ("open" in pressed) != ("close" in pressed):
            gripper = 1.0 if "open" in pressed else 0.0
        return TeleopRequest(self.map.velocity(axes), gripper, deadman=True, wish=wish)

    def _is_pressed(self, name: str, buttons: Sequence[int]) -> bool:
        number = getattr(self.map, name)
        return number is not None and number < len(buttons) and bool(buttons[number])


def _part(values: FloatArray, start: int) -> FloatArray:
    return values[start:start + 3].copy()


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_numbers(kind: str, numbers: Mapping[str, object]) -> None:
    taken: dict[object, str] = {}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_INDEX:
            raise ConfigurationError(f"joystick {kind} of {name!r} is {number!r}, expected a whole number from 0 to {MAX_INDEX}.")
        if number in taken:
            raise ConfigurationError(f"joystick {kind} {number} is both {taken[number]!r} and {name!r}. Give each its own.")
        taken[number] = name


def _keys(mapping: object, where: str, required: tuple[str, ...], known: tuple[str, ...] = ()) -> dict[str, object]:
    names = known or required
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(f"{where} is {type(mapping).__name__}, expected a mapping with {', '.join(names)}.")
    unknown = sorted(str(key) for key in mapping if key not in names)
    missing = [name for name in required if name not in mapping]
    if unknown or missing:
        raise ConfigurationError(f"{where} has unknown keys {unknown} and lacks {missing}; it takes {', '.join(names)}.")
    return dict(mapping)
