"""The ROS side of a teleop: publishes what a human asks for, calls command_node's services, and knows how it is doing."""

from __future__ import annotations

import math
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import Pose, TwistStamped
from openvla_msgs.msg import CommandReport
from openvla_msgs.srv import SetDriver
from rclpy.duration import Duration
from rclpy.exceptions import InvalidNamespaceException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_msgs.msg import Float64, String
from std_srvs.srv import Trigger

from openvla_ros.action.teleop import TeleopRequest
from openvla_ros.contract import FloatArray
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, SECOND_NS, to_ns
from openvla_ros.ros.convert_command import to_twist_message

DRIVERS = {"HOLD": SetDriver.Request.HOLD, "POLICY": SetDriver.Request.POLICY, "HUMAN": SetDriver.Request.HUMAN}

SILENT_S = 2.0
"""command_node reports at least every 0.5 s; after this long without a report it is taken for dead."""

CLOCKS_APART_S = 0.5
"""Stamps further off than this will be refused as old, or as coming from the future."""


@dataclass(frozen=True)
class Status:
    """What is known of command_node now. Empty and None: not known."""

    driver: str = ""
    stop_reason: str = ""
    dry_run: bool | None = None
    rules: tuple[str, ...] = ()  # of the newest report
    measured: FloatArray | None = None  # [7] x y z [m] and quaternion x y z w in the base frame
    target: FloatArray | None = None
    base_frame: str = ""
    trouble: str = ""  # why nothing can be driven from here, with what to do


class TeleopLink:
    """A node that spins on a thread of its own from construction to `close`. Answers come as futures: poll `done()`."""

    def __init__(self, namespace: str, sim_time: bool) -> None:
        """Joins ROS with the environment of this process. namespace: that of command_node. Raises ConfigurationError for a wrong one."""
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        try:
            self._node = Node(f"openvla_ros_teleop_{os.getpid()}", namespace=namespace or None,
                              parameter_overrides=[Parameter("use_sim_time", value=sim_time)])
        except InvalidNamespaceException as error:
            rclpy.try_shutdown()
            raise ConfigurationError(f"namespace {namespace!r} is not one of ROS: {error}. Expected such as /left_arm.") from error
        self._driver = ""
        self._report: tuple[CommandReport, float, float] | None = None  # with its time of arrival and how old its stamp was [s]
        self._node.create_subscription(String, "driver", self._on_driver, LATCHED)
        self._node.create_subscription(CommandReport, "command_report", self._on_report, 10)
        self._twists = self._node.create_publisher(TwistStamped, "teleop/delta_twist_cmds", NEWEST_RELIABLE)
        self._grippers = self._node.create_publisher(Float64, "teleop/gripper", NEWEST_RELIABLE)
        self._set_driver = self._node.create_client(SetDriver, "set_driver")
        self._triggers = {name: self._node.create_client(Trigger, name) for name in ("emergency_stop", "reset_stop")}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="teleop_link", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def _on_driver(self, message: String) -> None:
        self._driver = message.data

    def _on_report(self, message: CommandReport) -> None:
        apart_s = (self._node.get_clock().now().nanoseconds - to_ns(message.header.stamp)) / SECOND_NS
        self._report = (message, monotonic(), apart_s)

    @property
    def place(self) -> str:
        """Where this looks for command_node, for people."""
        namespace = self._node.get_namespace().rstrip("/")
        return f"{namespace}/command_node in ROS domain {os.environ.get('ROS_DOMAIN_ID') or 0}"

    def status(self) -> Status:
        """What is known now."""
        if self._report is None:
            return Status(driver=self._driver, trouble=self._trouble())
        report = self._report[0]
        return Status(
            driver=self._driver, stop_reason=report.stop_reason, dry_run=report.dry_run, rules=tuple(report.rules),
            measured=_numbers(report.measured_pose) if report.measured_pose_valid else None,
            target=_numbers(report.target_pose) if report.target_pose_valid else None,
            base_frame=report.header.frame_id, trouble=self._trouble())

    def _trouble(self) -> str:
        if self._report is None or not self._driver:
            return f"no command_node is heard: looked for {self.place}. Start it, or check --namespace and ROS_DOMAIN_ID."
        silent_s = monotonic() - self._report[1]
        if silent_s > SILENT_S:
            return f"command_node is silent since {silent_s:.0f} s. Start it again, or check the network."
        others = [info.node_name for info in self._node.get_publishers_info_by_topic(self._twists.topic_name)
                  if info.node_name != self._node.get_name()]
        if others:
            return (f"{self._twists.topic_name} has another publisher: {', '.join(others)}. End it: only one hand may drive. "
                    "(A process that was killed is forgotten after about 20 s.)")
        if abs(self._report[2]) > CLOCKS_APART_S:
            return (f"the clocks of this computer and of command_node differ by {self._report[2]:.1f} s. Synchronise them (chrony), "
                    "or give --sim-time where command_node uses simulated time.")
        return ""

    def send(self, request: TeleopRequest) -> None:
        """Publish a request with a stamp of now, in the base frame of command_node. Nothing before that frame is known."""
        if self._report is None:
            return
        now_ns, frame_id = self._node.get_clock().now().nanoseconds, self._report[0].header.frame_id
        self._twists.publish(to_twist_message(request.twist, now_ns, frame_id))
        if request.gripper is not None:
            self._grippers.publish(Float64(data=request.gripper))

    def choose(self, driver: str) -> Future | None:
        """Ask for one of DRIVERS. The answer has `success` and `reason`. None: the service is not there."""
        return self._call(self._set_driver, SetDriver.Request(driver=DRIVERS[driver]))

    def trigger(self, name: str) -> Future | None:
        """Call "emergency_stop" or "reset_stop". The answer has `success` and `message`. None: the service is not there."""
        return self._call(self._triggers[name], Trigger.Request())

    def flush(self) -> None:
        """Wait briefly until what was sent has arrived."""
        self._twists.wait_for_all_acked(Duration(seconds=0.2))

    def close(self) -> None:
        """Leave ROS. Call it once, from the thread that made this."""
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        rclpy.try_shutdown()

    @staticmethod
    def _call(client: Any, request: Any) -> Future | None:
        return client.call_async(request) if client.service_is_ready() else None


def _numbers(pose: Pose) -> FloatArray | None:
    place, turn = pose.position, pose.orientation
    numbers = np.array([place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w])
    usable = all(map(math.isfinite, numbers)) and abs(np.linalg.norm(numbers[3:]) - 1.0) < 0.01
    return numbers if usable else None
