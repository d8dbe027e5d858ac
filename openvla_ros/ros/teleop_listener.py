"""What the human's devices say: joystick, twists, gripper. Messages in, TeleopRequests out; the pilot judges them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from geometry_msgs.msg import TwistStamped
from rclpy.node import Node
from sensor_msgs.msg import Joy
from std_msgs.msg import Float64

from openvla_ros.action.command import Twist
from openvla_ros.action.teleop import Joystick, JoystickMap, TeleopRequest
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.convert import NEWEST_RELIABLE, to_ns
from openvla_ros.share import share_folder

Heard = Callable[[str, TeleopRequest, "int | None", "str | None"], None]
"""device, request, stamp_ns and frame_id where the message carries them."""


def read_joystick(name: str) -> JoystickMap:
    """The map `config/joy/<name>.yaml`, or the file itself when `name` is a path that ends in .yaml. Raises ConfigurationError."""
    folder = share_folder() / "config" / "joy"
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        known = ", ".join(sorted(entry.stem for entry in folder.glob("*.yaml")))
        raise ConfigurationError(f"joystick map {path} cannot be read: {error}. There are {known}.") from error
    return JoystickMap.from_mapping(content, str(path))


class TeleopListener:
    """Listens to all devices at once; which of them counts is the pilot's business."""

    def __init__(self, node: Node, joystick: JoystickMap | None, heard: Heard) -> None:
        self._heard = heard
        self._joystick = Joystick(joystick) if joystick else None
        node.create_subscription(TwistStamped, "teleop/delta_twist_cmds", self._on_twist, NEWEST_RELIABLE)
        node.create_subscription(Float64, "teleop/gripper", self._on_gripper, NEWEST_RELIABLE)
        if joystick:
            node.create_subscription(Joy, "joy", self._on_joy, NEWEST_RELIABLE)

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        twist = Twist(np.array([linear.x, linear.y, linear.z]), np.array([angular.x, angular.y, angular.z]))
        self._heard("twist", TeleopRequest(twist, deadman=True), to_ns(message.header.stamp), message.header.frame_id)

    def _on_gripper(self, message: Float64) -> None:
        self._heard("gripper", TeleopRequest(gripper=float(message.data), deadman=True), None, None)

    def _on_joy(self, message: Joy) -> None:
        assert self._joystick is not None
        self._heard("joy", self._joystick.read(message.axes, message.buttons), to_ns(message.header.stamp), None)
