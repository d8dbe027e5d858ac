"""What the package must know about a robot: its profile and the limits nobody may exceed.

Comes in: a mapping with the content of `config/robots/<robot>.yaml` (read by `ros/` or `cli/`). Goes out: a RobotProfile whose
every value was checked. There is no value for "unlimited", and a profile that is malformed anywhere is refused as a whole.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

from openvla_ros.errors import ConfigurationError

LIMIT_RANGES: Mapping[str, tuple[float, float]] = {
    "max_step_m": (0.001, 0.2),
    "max_step_rad": (0.005, 1.0),
    "max_speed_m_s": (0.01, 2.0),
    "max_speed_rad_s": (0.05, 6.0),
    "max_acceleration_m_s2": (0.1, 50.0),
    "max_acceleration_rad_s2": (0.5, 250.0),
    "max_lead_m": (0.005, 0.3),
    "max_lead_rad": (0.02, 1.0),
}
"""What a profile may ask for at all. Wider than any arm this package is meant for; a slip of a decimal point falls outside."""

BOX_RANGE_M = (-2.0, 2.0)
"""Where the faces of a workspace box and the start poses may lie: beyond the reach of every arm this package is meant for."""

GRIPPER_RANGE_M = (0.0, 0.2)
"""Where a finger joint may be. A hand opens by less than 20 cm for each finger; a position in millimetres falls outside."""

ANGLE_RANGE_RAD = (-2.0 * math.pi, 2.0 * math.pi)
"""Where joints at rest and the angles of start poses may be: one turn either way. Angles in degrees mostly fall outside."""

MAX_EFFORT = 5000.0
"""Largest usual effort of a joint, in the unit of its driver. The strongest motors of Interbotix stall below 5000 mA, and arms that
say Nm stay far below; above it the effort rule could never act."""

CAMERA_RANGES: Mapping[str, tuple[float, float]] = {
    "width": (16, 8192), "height": (16, 8192), "fx": (1.0, 100_000.0), "fy": (1.0, 100_000.0), "cx": (-8192, 16_384), "cy": (-8192, 16_384)}
"""What a camera may say about its picture [px]."""

CAMERA_PLACE_M = (-10.0, 10.0)
"""Where a camera may stand, in the base frame [m]."""

OUTPUTS = ("interbotix", "trajectory", "servo_twist", "servo_pose")
"""How commands reach an arm; `ros/outputs` has one file for each.

interbotix: joint positions for the driver of Interbotix. trajectory: JointTrajectory, as ros2_control takes. servo_twist:
TwistStamped in m/s and rad/s, as MoveIt Servo takes with `speed_units`. servo_pose: PoseStamped, as MoveIt Servo takes on Jazzy.
"""

JOINT_OUTPUTS = ("interbotix", "trajectory")
"""Those that command joints, and so need joint states and inverse kinematics."""

GRIPPERS = ("joint_trajectory", "interbotix_single", "none")
"""How an opening reaches the gripper.

joint_trajectory: the finger joint in metres. interbotix_single: the Interbotix driver's commands/joint_single.
"""

ROS_NAME = re.compile(r"[A-Za-z_~/][A-Za-z0-9_/]*")


@dataclass(frozen=True)
class Box:
    """Where the end effector's origin may be, in the base frame: [low, high] along each axis [m]."""

    x: tuple[float, float]
    y: tuple[float, float]
    z: tuple[float, float]

    def __post_init__(self) -> None:
        for name in ("x", "y", "z"):
            low, high = _numbers(getattr(self, name), f"box {name}", 2)
            if not BOX_RANGE_M[0] <= low < high <= BOX_RANGE_M[1]:
                raise ConfigurationError(f"box {name} is [{low:g}, {high:g}], expected a low and a higher face between "
                                         f"{BOX_RANGE_M[0]:g} and {BOX_RANGE_M[1]:g} m.")
            object.__setattr__(self, name, (low, high))

    @property
    def low_m(self) -> tuple[float, float, float]:
        """The lower faces along x, y, z."""
        return self.x[0], self.y[0], self.z[0]

    @property
    def high_m(self) -> tuple[float, float, float]:
        """The upper faces along x, y, z."""
        return self.x[1], self.y[1], self.z[1]


@dataclass(frozen=True)
class Limits:
    """What the safety rules enforce, in the robot's base frame. Raises ConfigurationError when made with anything odd."""

    max_step_m: float  # longest translation of one step, as a vector [m]
    max_step_rad: float  # largest rotation of one step [rad]
    max_speed_m_s: float  # fastest translation of the end effector [m/s]
    max_speed_rad_s: float  # fastest rotation of the end effector [rad/s]
    max_acceleration_m_s2: float  # of soft stops, of a human's motion, and from one step to the next [m/s^2]
    max_acceleration_rad_s2: float  # the same for the rotation [rad/s^2]
    max_lead_m: float  # furthest that the target may be ahead of the measured pose [m]
    max_lead_rad: float  # the same for the rotation [rad]
    box: Box  # where the end effector may go

    def __post_init__(self) -> None:
        for name, (low, high) in LIMIT_RANGES.items():
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:  # NaN too
                raise ConfigurationError(f"limit '{name}' is {value!r}, expected a number from {low:g} to {high:g}.")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.box, Box):
            raise ConfigurationError(f"limit 'box' is {self.box!r}, expected x, y and z with [low, high] each.")
        for step, speed, acceleration, unit in (
                (self.max_step_m, self.max_speed_m_s, self.max_acceleration_m_s2, "m"),
                (self.max_step_rad, self.max_speed_rad_s, self.max_acceleration_rad_s2, "rad")):
            if acceleration * self.shortest_step_s < step / self.shortest_step_s:
                raise ConfigurationError(f"the limits do not fit together: a step of {step:g} {unit} in {self.shortest_step_s:g} s starts "
                                         f"from rest with {step / self.shortest_step_s**2:g} {unit}/s^2, allowed are {acceleration:g}. "
                                         "Raise the acceleration, or lower the step.")
            if acceleration * 1.0 < speed:
                raise ConfigurationError(f"the limits do not fit together: {acceleration:g} {unit}/s^2 needs more than 1 s to stop from "
                                         f"{speed:g} {unit}/s. Raise the acceleration, or lower the speed.")

    @property
    def shortest_step_s(self) -> float:
        """A step of the largest allowed size may not be played faster than this [s]; shorter steps are refused."""
        return max(self.max_step_m / self.max_speed_m_s, self.max_step_rad / self.max_speed_rad_s)

    @property
    def longest_ramp_s(self) -> float:
        """Duration of a soft stop from full speed [s]."""
        return max(self.max_speed_m_s / self.max_acceleration_m_s2, self.max_speed_rad_s / self.max_acceleration_rad_s2)


@dataclass(frozen=True)
class Camera:
    """A camera that stands still beside the arm, as a pinhole. Raises ConfigurationError.

    Its pose is that of its optical frame in the robot's base frame (REP 103: x right, y down, z forward), as hand-eye calibration
    gives it. Lens distortion is not described: points near the rim of a wide lens lie a few pixels off. Nothing commands an arm by it.
    """

    width: int  # size of the picture that the numbers below belong to [px]
    height: int
    fx: float  # focal lengths [px]
    fy: float
    cx: float  # where the axis meets the picture [px]
    cy: float
    position_m: tuple[float, ...]  # [3]
    quaternion_xyzw: tuple[float, ...]  # [4], normalised here

    def __post_init__(self) -> None:
        for name, (low, high) in CAMERA_RANGES.items():
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:  # NaN too
                raise ConfigurationError(f"camera key '{name}' is {value!r}, expected a number of pixels from {low:g} to {high:g}.")
        object.__setattr__(self, "position_m", _numbers(self.position_m, "camera key 'position_m'", 3))
        _check_range("camera key 'position_m'", self.position_m, CAMERA_PLACE_M, "m")
        quaternion = _numbers(self.quaternion_xyzw, "camera key 'quaternion_xyzw'", 4)
        length = math.hypot(*quaternion)
        if not 0.9 <= length <= 1.1:
            raise ConfigurationError(f"camera key 'quaternion_xyzw' has length {length:.3g}, expected 1: x, y, z, w of a rotation.")
        object.__setattr__(self, "quaternion_xyzw", tuple(number / length for number in quaternion))


NO_POSES: Mapping[str, tuple[float, ...]] = MappingProxyType({})


@dataclass(frozen=True)
class Arm:
    """The joints of an arm, whose states it publishes on `joint_states`.

    Only what is left out is left out: an `effort`, `sleep` or `start_poses` that is there but empty raises ConfigurationError.
    """

    joints: tuple[str, ...]  # from base to hand; their order is the order of every list of joints
    ee_link: str  # the link whose pose is commanded and measured
    urdf: str = ""  # file beside the profile; empty: only what comes on `robot_description`
    effort: tuple[float, ...] = ()  # usual largest effort of each joint, in the unit of joint_states; empty: no effort rule
    sleep: tuple[float, ...] = ()  # joint positions at rest in the cradle [rad]; empty: it has none
    start_poses: Mapping[str, tuple[float, ...]] = field(default_factory=lambda: NO_POSES)  # name -> x, y, z [m], fixed-axis rpy [rad]

    def __post_init__(self) -> None:
        names = self.joints
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) and name for name in names) or (
                len(set(names)) != len(names)):
            raise ConfigurationError(f"arm key 'joints' is {names!r}, expected a list of different joint names.")
        object.__setattr__(self, "joints", tuple(names))
        for name in ("ee_link", "urdf"):
            if not isinstance(getattr(self, name), str) or not (getattr(self, name) or name == "urdf"):
                raise ConfigurationError(f"arm key '{name}' is {getattr(self, name)!r}, expected a text.")
        for name in ("effort", "sleep"):
            if getattr(self, name) != ():  # what a file holds is never a tuple
                object.__setattr__(self, name, _numbers(getattr(self, name), f"arm key '{name}'", len(names)))
        if not all(0.0 < value <= MAX_EFFORT for value in self.effort):
            raise ConfigurationError(f"arm key 'effort' is {self.effort}, expected numbers above 0 and at most {MAX_EFFORT:g}.")
        _check_range("arm key 'sleep'", self.sleep, ANGLE_RANGE_RAD, "rad")
        if self.start_poses is not NO_POSES:
            object.__setattr__(self, "start_poses", _start_poses(self.start_poses))


@dataclass(frozen=True)
class OutputProfile:
    """One way to reach this arm. settings: what only that output knows; its file in `ros/outputs` checks them."""

    command_topic: str  # relative, so that robots live in namespaces; remap it for another consumer
    gripper: str  # one of GRIPPERS, described under `grippers`
    settings: Mapping[str, object]

    def __post_init__(self) -> None:
        _check_name("command_topic", self.command_topic)
        if self.gripper not in GRIPPERS:
            raise ConfigurationError(f"output key 'gripper' is {self.gripper!r}, expected one of {', '.join(GRIPPERS)}.")


@dataclass(frozen=True)
class GripperProfile:
    """One way to reach the gripper. An opening of 0 is `closed`, 1 is `open`; settings: what only that way knows."""

    command_topic: str
    joint: str  # the finger joint, under which its position comes in joint_states
    closed: float  # position of that joint [m]
    open: float  # position of that joint [m]
    settings: Mapping[str, object]

    def __post_init__(self) -> None:
        _check_name("command_topic", self.command_topic)
        _check_name("joint", self.joint)
        closed, opened = _numbers((self.closed, self.open), "gripper keys 'closed' and 'open'", 2)
        if closed == opened:
            raise ConfigurationError(f"gripper keys 'closed' and 'open' are both {closed:g}, expected two different positions.")
        _check_range("gripper keys 'closed' and 'open'", (closed, opened), GRIPPER_RANGE_M, "m")

    def opening(self, position: float) -> float:
        """How far it is open at a position of the joint: 0 closed .. 1 open, cut to that."""
        return min(1.0, max(0.0, (position - self.closed) / (self.open - self.closed)))


@dataclass(frozen=True)
class RobotProfile:
    """One robot. `real`: commands move hardware, so simulated time is refused unless nothing is sent."""

    name: str
    real: bool
    base_frame: str  # frame of the deltas and of the commands: x forward, y left, z up at the arm's base
    output: str  # the one that is used: one of OUTPUTS, described under `outputs`
    outputs: Mapping[str, OutputProfile]
    grippers: Mapping[str, GripperProfile]
    limits: Limits
    arm: Arm | None  # None: it has no joint states; rules that need the measured pose are left out, and so are outputs in joints
    camera: Camera | None = None  # for pictures in reports only; None: not calibrated

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        _check_name("base_frame", self.base_frame)
        if not isinstance(self.real, bool):
            raise ConfigurationError(f"profile key 'real' is {self.real!r}, expected true or false.")
        for kind, (described, known) in {"outputs": (self.outputs, OUTPUTS), "grippers": (self.grippers, GRIPPERS[:-1])}.items():
            if unknown := sorted(set(described) - set(known)):
                raise ConfigurationError(f"profile key '{kind}' has {unknown}, expected some of {', '.join(known)}.")
        if not isinstance(self.output, str) or self.output not in self.outputs:
            raise ConfigurationError(f"output {self.output!r} is not described in this profile, expected one of "
                                     f"{', '.join(self.outputs) or 'none'}.")
        for name, output in self.outputs.items():
            if output.gripper != "none" and output.gripper not in self.grippers:
                raise ConfigurationError(f"output {name!r} has the gripper {output.gripper!r}, which is not described under 'grippers'.")
        if self.arm is None and (self.real or self.output != "servo_twist"):
            raise ConfigurationError("profile key 'arm' is none: that is for recordings with the output servo_twist. A real arm, and every "
                                     "other output, needs its joint states. Describe its joints.")

    @property
    def command_topic(self) -> str:
        """Where the output that is used publishes, before remapping."""
        return self.outputs[self.output].command_topic

    @property
    def gripper(self) -> GripperProfile | None:
        """The gripper of the output that is used."""
        return self.grippers.get(self.outputs[self.output].gripper)

    def through(self, output: str) -> RobotProfile:
        """The same robot behind another of its outputs. Raises ConfigurationError when it has no such output."""
        return replace(self, output=output)


def from_mapping(mapping: object, source: str) -> RobotProfile:
    """A profile out of a parsed file; `source` names the file in errors.

    Keys are the fields of RobotProfile, Limits, Arm, Camera, OutputProfile and GripperProfile. `arm: none` says that there are no
    joint states. Optional: `base_frame`, which defaults to `<name>/base_link` as Interbotix names it, `grippers`, `camera`, and what
    Arm has a default for. Raises ConfigurationError for a missing or unknown key and for a wrong value.
    """
    try:
        top = _keys(mapping, RobotProfile, optional=("base_frame", "grippers", "camera"), where="profile")
        limits = _keys(top.pop("limits"), Limits, optional=(), where="limits")
        limits["box"] = Box(**_keys(limits["box"], Box, optional=(), where="box"))  # type: ignore[arg-type]
        arm = top.pop("arm")
        outputs = {str(name): OutputProfile(**_with_settings(entry, OutputProfile, f"output {name!r}"))  # type: ignore[arg-type]
                   for name, entry in _mapping(top.pop("outputs"), "outputs").items()}
        grippers = {str(name): GripperProfile(**_with_settings(entry, GripperProfile, f"gripper {name!r}"))  # type: ignore[arg-type]
                    for name, entry in _mapping(top.pop("grippers", {}), "grippers").items()}
        camera = Camera(**_keys(top.pop("camera"), Camera, optional=(), where="camera")) if "camera" in top else None  # type: ignore[arg-type]
        top.setdefault("base_frame", f"{top['name']}/base_link")
        return RobotProfile(
            limits=Limits(**limits), camera=camera, outputs=MappingProxyType(outputs), grippers=MappingProxyType(grippers),  # type: ignore[arg-type]
            arm=None if arm == "none" else Arm(**_keys(arm, Arm, optional=ARM_OPTIONAL, where="arm")), **top)  # type: ignore[arg-type]
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error


ARM_OPTIONAL = ("urdf", "effort", "sleep", "start_poses")


def _mapping(value: object, where: str) -> Mapping[object, object]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where} is {type(value).__name__}, expected a mapping.")
    return value


def _keys(mapping: object, wanted: type, optional: tuple[str, ...], where: str) -> dict[str, object]:
    names = [entry.name for entry in fields(wanted)]
    if not isinstance(mapping, Mapping):
        raise ConfigurationError(f"{where} is {type(mapping).__name__}, expected a mapping with {', '.join(names)}.")
    unknown = sorted(str(key) for key in mapping if key not in names)
    missing = [name for name in names if name not in mapping and name not in optional]
    if unknown or missing:
        raise ConfigurationError(f"{where} has unknown keys {unknown} and lacks {missing}; it takes {', '.join(names)}.")
    return dict(mapping)


def _with_settings(mapping: object, wanted: type, where: str) -> dict[str, object]:
    """The fields of `wanted`, and everything else as its `settings`."""
    names = [entry.name for entry in fields(wanted) if entry.name != "settings"]
    content = _mapping(mapping, where)
    own = _keys({key: value for key, value in content.items() if key in names}, wanted, optional=("settings",), where=where)
    return {**own, "settings": MappingProxyType({str(key): value for key, value in content.items() if key not in names})}


def _check_name(key: str, value: object) -> None:
    if not isinstance(value, str) or not ROS_NAME.fullmatch(value):
        raise ConfigurationError(f"profile key '{key}' is {value!r}, expected a name such as 'wx250s/base_link'.")


def _start_poses(poses: object) -> Mapping[str, tuple[float, ...]]:
    if not isinstance(poses, Mapping) or not poses or not all(isinstance(name, str) and name for name in poses):
        raise ConfigurationError(f"arm key 'start_poses' is {poses!r}, expected names with six numbers each; leave it out for none.")
    checked = {name: _numbers(pose, f"start pose {name!r}", 6) for name, pose in poses.items()}
    for name, pose in checked.items():
        _check_range(f"start pose {name!r}", pose[:3], BOX_RANGE_M, "m")
        _check_range(f"start pose {name!r}", pose[3:], ANGLE_RANGE_RAD, "rad")
    return MappingProxyType(checked)


def _check_range(what: str, values: tuple[float, ...], allowed: tuple[float, float], unit: str) -> None:
    if not all(allowed[0] <= value <= allowed[1] for value in values):
        found = ", ".join(f"{value:g}" for value in values)
        raise ConfigurationError(f"{what} has {found}, expected {allowed[0]:g} to {allowed[1]:g} {unit}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(value: object, what: str, count: int) -> tuple[float, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)) or len(value) != count or not all(
            _is_number(number) and abs(number) <= sys.float_info.max for number in value):  # not so NaN, nor an int too long for a float
        raise ConfigurationError(f"{what} is {value!r}, expected {count} numbers.")
    return tuple(float(number) for number in value)
