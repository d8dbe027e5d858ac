"""What the package must know about a robot: its profile and the limits nobody may exceed.

Comes in: a mapping with the content of `config/robots/<robot>.yaml` (read by `ros/` or `cli/`). Goes out: a RobotProfile whose
every value was checked. There is no value for "unlimited", and a profile that is malformed anywhere is refused as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from openvla_ros.errors import ConfigurationError

LIMIT_RANGES: Mapping[str, tuple[float, float]] = {
    "max_step_m": (0.001, 0.2),
    "max_step_rad": (0.005, 1.0),
    "max_speed_m_s": (0.01, 2.0),
    "max_speed_rad_s": (0.05, 6.0),
    "stop_m_s2": (0.1, 50.0),
    "stop_rad_s2": (0.5, 250.0),
}
"""What a profile may ask for at all. Wider than any arm this package is meant for; a slip of a decimal point falls outside."""

OUTPUTS = ("servo_twist",)
"""How commands reach the arm. servo_twist: TwistStamped in m/s and rad/s, as MoveIt Servo takes with `speed_units`."""

ROS_NAME = re.compile(r"[A-Za-z_~/][A-Za-z0-9_/]*")


@dataclass(frozen=True)
class Limits:
    """What the safety rules enforce, in the robot's base frame. Raises ConfigurationError when made with anything odd."""

    max_step_m: float  # longest translation of one step, as a vector [m]
    max_step_rad: float  # largest rotation of one step, norm of the fixed-axis rpy [rad]
    max_speed_m_s: float  # fastest translation of the end effector [m/s]
    max_speed_rad_s: float  # fastest rotation of the end effector [rad/s]
    stop_m_s2: float  # deceleration of a soft stop, translation [m/s^2]
    stop_rad_s2: float  # deceleration of a soft stop, rotation [rad/s^2]

    def __post_init__(self) -> None:
        for name, (low, high) in LIMIT_RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:  # NaN too
                raise ConfigurationError(f"limit '{name}' is {value!r}, expected a number from {low:g} to {high:g}.")
            object.__setattr__(self, name, float(value))

    @property
    def shortest_step_s(self) -> float:
        """A step of the largest allowed size may not be played faster than this [s]; shorter steps are refused."""
        return max(self.max_step_m / self.max_speed_m_s, self.max_step_rad / self.max_speed_rad_s)

    @property
    def longest_ramp_s(self) -> float:
        """Duration of a soft stop from full speed [s]."""
        return max(self.max_speed_m_s / self.stop_m_s2, self.max_speed_rad_s / self.stop_rad_s2)


@dataclass(frozen=True)
class RobotProfile:
    """One robot. `real`: commands move hardware, so simulated time is refused unless nothing is sent."""

    name: str
    real: bool
    base_frame: str  # frame of the deltas and of the commands: x forward, y left, z up at the arm's base
    output: str  # one of OUTPUTS
    command_topic: str  # relative, so that robots live in namespaces; remap it for another consumer
    limits: Limits

    def __post_init__(self) -> None:
        for field in ("name", "base_frame", "command_topic"):
            value = getattr(self, field)
            if not isinstance(value, str) or not ROS_NAME.fullmatch(value):
                raise ConfigurationError(f"profile key '{field}' is {value!r}, expected a name such as 'wx250s/base_link'.")
        if not isinstance(self.real, bool):
            raise ConfigurationError(f"profile key 'real' is {self.real!r}, expected true or false.")
        if self.output not in OUTPUTS:
            raise ConfigurationError(f"profile key 'output' is {self.output!r}, expected one of {', '.join(OUTPUTS)}.")


def from_mapping(mapping: object, source: str) -> RobotProfile:
    """A profile out of a parsed file; `source` names the file in errors.

    Keys are the fields of RobotProfile and Limits; all are required except `base_frame`, which defaults to
    `<name>/base_link` as Interbotix names it. Raises ConfigurationError for a missing or unknown key and for a wrong value.
    """
    try:
        top = _keys(mapping, RobotProfile, optional=("base_frame",), where="profile")
        limits = Limits(**_keys(top.pop("limits"), Limits, optional=(), where="limits"))  # type: ignore[arg-type]
        top.setdefault("base_frame", f"{top['name']}/base_link")
        return RobotProfile(limits=limits, **top)  # type: ignore[arg-type]
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error


def _keys(mapping: object, wanted: type, optional: tuple[str, ...], where: str) -> dict[str, object]:
    names = [field.name for field in fields(wanted)]
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(f"{where} is {type(mapping).__name__}, expected a mapping with {', '.join(names)}.")
    unknown = sorted(str(key) for key in mapping if key not in names)
    missing = [name for name in names if name not in mapping and name not in optional]
    if unknown or missing:
        raise ConfigurationError(f"{where} has unknown keys {unknown} and lacks {missing}; it takes {', '.join(names)}.")
    return dict(mapping)
