"""Robot profiles out of their files. Needs no ROS, only YAML, which `robot.py` must not know."""

from __future__ import annotations

from pathlib import Path

import yaml

from openvla_ros.errors import ConfigurationError
from openvla_ros.robot import RobotProfile, from_mapping
from openvla_ros.share import share_folder


def read_robot(robot: str) -> RobotProfile:
    """The profile `config/robots/<robot>.yaml`, or the file itself when `robot` is a path that ends in .yaml.

    Raises ConfigurationError: no such profile (lists those there are), not YAML, or anything that RobotProfile refuses.
    """
    path = profile_path(robot)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"robot profile {path} cannot be read: {error}") from error
    return from_mapping(content, str(path))


def read_urdf(robot: str, profile: RobotProfile) -> str:
    """The URDF that the profile names, which lies beside it; empty where it names none. Raises ConfigurationError."""
    if profile.arm is None or not profile.arm.urdf:
        return ""
    path = profile_path(robot).parent / profile.arm.urdf
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the URDF of robot profile {robot!r} cannot be read: {error}") from error


def profile_path(robot: str) -> Path:
    """The file of a profile, by its name or its own path. Raises ConfigurationError, with the names there are."""
    if robot.endswith((".yaml", ".yml")):
        return Path(robot).expanduser()
    folder = share_folder() / "config" / "robots"
    known = sorted(entry.stem for entry in folder.glob("*.yaml"))
    if robot not in known:
        raise ConfigurationError(f"no robot profile {robot!r}; there are {', '.join(known)}. "
                                 "Name one of them or the path of a .yaml file.")
    return folder / f"{robot}.yaml"
