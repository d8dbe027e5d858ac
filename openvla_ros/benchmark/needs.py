"""Says clearly what a measurement lacks on this computer."""

from __future__ import annotations

from importlib.util import find_spec

from openvla_ros.errors import DependencyMissing


def need_ros(what: str) -> None:
    """Raises DependencyMissing where ROS 2 or this package's messages cannot be imported."""
    for package in ("rclpy", "openvla_msgs"):
        if find_spec(package) is None:
            raise DependencyMissing(f"{what} needs ROS 2, and {package} is not importable. Use make setup, or source a ROS workspace in "
                                    "which openvla_msgs is built.")
