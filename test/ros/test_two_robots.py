"""Two robots in two namespaces of one ROS domain: four nodes as processes, and neither robot hears the other's policy, hand or stop."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS")
import rclpy
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from openvla_msgs.msg import ActionChunk, CommandReport
from openvla_msgs.srv import SetDriver
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from openvla_ros.ros.convert import LATCHED

pytestmark = pytest.mark.ros

DEADLINE_S, QUIET_S = 30.0, 0.4


class Robot(Node):
    """Camera, operator and arm of one robot, in its namespace."""

    def __init__(self, context: rclpy.Context, name: str, call: Callable[[Any, Any], Any]) -> None:
        super().__init__("world", context=context, namespace=f"/{name}")
        self.call = call
        self.name = name
        self.twists: list[TwistStamped] = []
        self.chunks: list[ActionChunk] = []
        self.reports: list[CommandReport] = []
        self.drivers: list[str] = []
        self.create_subscription(TwistStamped, "delta_twist_cmds", self.twists.append, 1000)
        self.create_subscription(ActionChunk, "action_chunk", self.chunks.append, 100)
        self.create_subscription(CommandReport, "command_report", self.reports.append, 1000)
        self.create_subscription(String, "driver", lambda message: self.drivers.append(message.data), LATCHED)
        self.camera = self.create_publisher(Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE))
        self.create_publisher(String, "instruction", LATCHED).publish(String(data=f"open the {name} drawer"))
        self.lifecycle = self.create_client(ChangeState, "policy_node/change_state")
        self.set_driver = self.create_client(SetDriver, "set_driver")
        self.stop = self.create_client(Trigger, "emergency_stop")
        self.state = self.create_client(GetState, "policy_node/get_state")  # the last reader that is made here: see `begin`
        self._pictures = np.random.default_rng(len(name))
        self.create_timer(1 / 15, self._film)

    def _film(self) -> None:
        message = Image(height=48, width=64, encoding="rgb8", step=192)
        message.data = self._pictures.integers(0, 255, 48 * 64 * 3, dtype=np.uint8).tobytes()
        message.header.stamp = self.get_clock().now().to_msg()
        self.camera.publish(message)

    def until(self, good: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not good():
            assert time.monotonic() < end, (f"{self.name}: waited {DEADLINE_S} s for: {what}; drivers {self.drivers[-3:]}, reasons "
                                            f"{[report.stop_reason for report in self.reports[-3:]]}")
            time.sleep(0.01)

    def begin(self) -> None:
        """Configure and activate the policy."""
        self.call(self.state, GetState.Request())  # from then on policy_node's answers come: a transition cannot be asked for twice
        for number in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            answer = self.lifecycle.call_async(ChangeState.Request(transition=Transition(id=number)))
            self.until(answer.done, "a transition")
            assert answer.result().success
        self.until(lambda: any(chunk.steps for chunk in self.chunks), "chunks")

    def drive(self) -> None:
        self.until(lambda: self.call(self.set_driver, SetDriver.Request(driver=SetDriver.Request.POLICY)).success, "POLICY")
        self.goes_on()

    def goes_on(self) -> None:
        """Motion that comes after this call."""
        count = len(self.twists)
        self.until(lambda: any(speed(twist) > 0.02 for twist in self.twists[count:]), "the arm to move")


def speed(twist: TwistStamped) -> float:
    return math.hypot(twist.twist.linear.x, twist.twist.linear.y, twist.twist.linear.z)


@pytest.fixture
def robots(ros_domain_id: int, ros_environment: dict[str, str], tmp_path: Path,
           ask_service: Callable[[Any, Any], Any]) -> Iterator[tuple[Robot, Robot]]:
    """The worlds of `left` and `right`, with a command_node and a policy_node of their own each, as launch files would start them."""
    children = []
    for name in ("left", "right"):
        for module, own in (("command_node", "robot:=wx250s_replay"), ("policy_node", "checkpoint:=scripted")):
            parameters = [own, f"base_frame:={name}/base_link", "max_observation_age_s:=1.0"]
            command = [sys.executable, "-m", f"openvla_ros.ros.{module}", "--ros-args", "-r", f"__ns:=/{name}"]
            guard = ["timeout", "-k", "5", "120"] if shutil.which("timeout") else []
            log = (tmp_path / f"{name}_{module}.log").open("w")
            children.append(subprocess.Popen([*guard, *command, *(word for parameter in parameters for word in ("-p", parameter))],
                                             env=ros_environment, stdout=log, stderr=subprocess.STDOUT))
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain_id)
    executor = SingleThreadedExecutor(context=context)
    worlds = Robot(context, "left", ask_service), Robot(context, "right", ask_service)
    for world in worlds:
        executor.add_node(world)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield worlds
    for child in children:
        child.terminate()  # timeout passes it on
    executor.shutdown()
    thread.join()
    for world in worlds:
        world.destroy_node()
    rclpy.try_shutdown(context=context)
    assert [child.wait(20) for child in children] == [0] * 4


def test_two_robots_do_not_hear_each_other(robots: tuple[Robot, Robot]) -> None:
    left, right = robots
    left.begin()
    right.begin()

    # One is given the arm: the other stays silent, although its policy speaks.
    left.drive()
    right.until(lambda: bool(right.drivers), "the latched driver")
    assert right.drivers == ["HOLD"] and right.twists == []
    right.drive()

    # Each is moved by its own policy, in its own frame, after its own instruction.
    for robot in robots:
        (session,) = {chunk.session for chunk in robot.chunks}
        assert {chunk.instruction for chunk in robot.chunks if chunk.steps} == {f"open the {robot.name} drawer"}
        assert {report.session for report in robot.reports if report.step_started} == {session}
        assert {twist.header.frame_id for twist in robot.twists} == {f"{robot.name}/base_link"}
    assert left.chunks[0].session != right.chunks[0].session

    # A stop of one is none of the other.
    assert left.call(left.stop, Trigger.Request()).success
    left.until(lambda: left.drivers[-1] == "STOPPED", "STOPPED")
    right.goes_on()
    right.goes_on()
    count = len(left.twists)
    time.sleep(QUIET_S)
    assert not any(speed(twist) for twist in left.twists[count:])
    assert right.drivers == ["HOLD", "POLICY"]
