"""Robot profiles for the pilot of a replay, with the kinematics of their arm. Needs no ROS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from openvla_ros.action.kinematics import Kinematics
from openvla_ros.errors import ConfigurationError
from openvla_ros.robot import RobotProfile, from_mapping
from openvla_ros.share import share_folder


@dataclass(frozen=True)
class ReplayRobot:
    """A profile, and the kinematics of its arm where it has one."""

    profile: RobotProfile
    kinematics: Kinematics | None


def read_robot(robot: str) -> ReplayRobot:
    """The profile `config/robots/<robot>.yaml`, or the file itself when `robot` is a path that ends in .yaml.

    Raises ConfigurationError, and DependencyMissing when the arm needs pinocchio and it is not there.
    """
    folder = share_folder() / "config" / "robots"
    path = Path(robot).expanduser() if robot.endswith((".yaml", ".yml")) else folder / f"{robot}.yaml"
    try:
        profile = from_mapping(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))
        urdf = "" if profile.arm is None or not profile.arm.urdf else (path.parent / profile.arm.urdf).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        known = ", ".join(sorted(entry.stem for entry in folder.glob("*.yaml")))
        raise ConfigurationError(f"robot {robot!r} cannot be read: {error}. There are {known}, or name a .yaml file.") from error
    if profile.arm is None:
        return ReplayRobot(profile, None)
    if not urdf:
        raise ConfigurationError(f"robot {robot!r} names no URDF, so its pose cannot be computed offline. Write its file into the profile.")
    return ReplayRobot(profile, Kinematics(urdf, profile.arm.ee_link, profile.arm.joints,
                                           profile.base_frame if f'"{profile.base_frame}"' in urdf else ""))
