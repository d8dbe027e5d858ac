"""simulation_node as a process: its topics and their rates in simulated time, what it does with good, absurd and wrong trajectories."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS")
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from openvla_msgs.srv import ResetScene
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from visualization_msgs.msg import MarkerArray

from openvla_ros.observation.assemble import sample_mark
from openvla_ros.ros import simulation_node
from openvla_ros.ros.convert import LATCHED, to_duration, to_ns
from openvla_ros.ros.profile import read_robot, read_urdf
from openvla_ros.ros.scene_markers import from_markers
from openvla_ros.simulation.camera import Camera
from openvla_ros.simulation.scene import layout
from openvla_ros.simulation.tabletop import ARM_JOINTS, Tabletop

pytestmark = pytest.mark.ros

DEADLINE_S = 60.0
EVERYTHING = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
REST = [0.0, -0.3, 0.2, 0.0, 1.4, 0.0]


class World(Node):
    """Hears everything, and plays the controllers' client."""

    def __init__(self, context: rclpy.Context, call: Callable[[Any, Any], Any]) -> None:
        super().__init__("world", context=context)
        self.call = call
        self.heard_s = math.inf  # when the simulation was there [steady time]
        self.clocks: list[int] = []
        self.states: list[JointState] = []
        self.images: list[Image] = []
        self.scenes: list[MarkerArray] = []
        self.urdf = ""
        self.health: dict[str, DiagnosticStatus] = {}
        self.create_subscription(Clock, "/clock", lambda message: self.clocks.append(to_ns(message.clock)), EVERYTHING)
        self.create_subscription(JointState, "joint_states", self.states.append, EVERYTHING)
        self.create_subscription(Image, "image", self.images.append, EVERYTHING)
        self.create_subscription(MarkerArray, "simulation/objects", self.scenes.append, EVERYTHING)
        self.create_subscription(String, "robot_description", lambda message: setattr(self, "urdf", message.data), LATCHED)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_health, 10)
        self.arm = self.create_publisher(JointTrajectory, "arm_controller/joint_trajectory", EVERYTHING)
        self.gripper = self.create_publisher(JointTrajectory, "gripper_controller/joint_trajectory", EVERYTHING)
        self.resets = self.create_client(ResetScene, "simulation_node/reset_scene")
        self.parameters = self.create_client(SetParameters, "simulation_node/set_parameters")

    def _on_health(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.health[status.name.partition(": ")[2]] = status

    def positions(self) -> np.ndarray:
        return np.array(self.states[-1].position)

    def value(self, part: str, key: str) -> str:
        status = self.health.get(part)
        return next((pair.value for pair in status.values if pair.key == key), "") if status else ""

    def until(self, condition: Callable[[], Any], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"waited {DEADLINE_S} s for {what}; {[status.message for status in self.health.values()]}"
            time.sleep(0.01)

    def pass_time(self, seconds: float) -> None:
        until_ns = self.clocks[-1] + round(seconds * 1e9)
        self.until(lambda: self.clocks[-1] >= until_ns, f"{seconds} s of simulated time")

    def arrive(self, positions: list[float], at: slice = slice(0, 6), within: float = 5e-3) -> None:
        self.until(lambda: np.allclose(self.positions()[at], positions, atol=within), f"joints at {positions}")

    def reset(self, seed: int) -> ResetScene.Response:
        response: ResetScene.Response = self.call(self.resets, ResetScene.Request(seed=seed))
        self.pass_time(0.1)
        return response

    def go(self, *points: tuple[float, list[float]], names: tuple[str, ...] = ARM_JOINTS, publisher: Any = None) -> None:
        (publisher or self.arm).publish(JointTrajectory(joint_names=list(names), points=[
            JointTrajectoryPoint(positions=positions, time_from_start=to_duration(time_s)) for time_s, positions in points]))


def command(*parameters: str) -> list[str]:
    words = [word for parameter in parameters for word in ("-p", parameter)]
    return [sys.executable, "-m", "openvla_ros.ros.simulation_node", "--ros-args", *words]


@pytest.fixture(scope="module")
def environment(hold_domain: Callable[[], AbstractContextManager[int]], clean_environment: dict[str, str],
                tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with hold_domain() as domain, pytest.MonkeyPatch.context() as patch:
        own = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
        for name, value in own.items():
            patch.setenv(name, value)
        yield clean_environment | own | {"ROS_LOG_DIR": str(tmp_path_factory.mktemp("ros_log")), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def process(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    with (tmp_path_factory.mktemp("simulation") / "log").open("wb") as log:
        guarded = ["timeout", "-k", "5", "200", *command("seed:=3", "real_time_factor:=4.0")]
        child = subprocess.Popen(guarded, env=environment, stdout=log, stderr=log)
    yield child
    if child.poll() is None:
        child.terminate()
        child.wait(20)


@pytest.fixture(scope="module")
def running(process: subprocess.Popen[bytes], ask_service: Callable[[Any, Any], Any]) -> Iterator[World]:
    context = rclpy.Context()
    rclpy.init(context=context)
    world, executor = World(context, ask_service), SingleThreadedExecutor(context=context)
    executor.add_node(world)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    world.until(lambda: world.clocks and world.states and world.images and world.scenes and world.urdf and len(world.health) == 3
                and world.arm.get_subscription_count() and world.gripper.get_subscription_count(), "everything to be heard")
    world.heard_s = time.monotonic()
    yield world
    executor.shutdown()
    thread.join()
    world.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def world(running: World) -> World:
    """A fresh scene, nothing heard of earlier ones."""
    assert running.reset(3).success
    for heard in (running.clocks, running.states, running.images, running.scenes):
        del heard[:-1]
    return running


def stamps_ns(messages: list[Any]) -> list[int]:
    return [to_ns(message.header.stamp) for message in messages]


def urdf_limits(kind: str) -> dict[str | None, float]:
    """Of each joint, as the URDF says."""
    root = ElementTree.fromstring(read_urdf("wx250s_sim", read_robot("wx250s_sim")))
    limits = {joint.get("name"): joint.find("limit") for joint in root.iter("joint")}
    return {name: float(limit.get(kind, "nan")) for name, limit in limits.items() if limit is not None}


def test_every_topic_comes_at_its_rate_in_simulated_time(world: World) -> None:
    world.pass_time(4.0)
    assert set(np.diff(world.clocks)) <= {8_000_000, 16_000_000, 24_000_000}  # depth 1: a reader that was late sees the newest
    for messages, rate_hz in ((world.states, 62.5), (world.images, 25.0)):
        spacing_s = np.diff(stamps_ns(messages)) / 1e9
        assert np.median(spacing_s) == pytest.approx(1.0 / rate_hz) and spacing_s.min() > 0.4 / rate_hz
    spacing_s = np.diff([to_ns(scene.markers[0].header.stamp) for scene in world.scenes]) / 1e9
    assert np.median(spacing_s) == pytest.approx(0.05, abs=0.004)
    offered = {topic: world.get_publishers_info_by_topic(topic)[0].qos_profile.reliability
               for topic in ("image", "overview/image", "joint_states", "simulation/objects", "/clock", "robot_description")}
    assert set(offered.values()) == {ReliabilityPolicy.RELIABLE}


def test_pictures_and_states_are_what_they_say(world: World) -> None:
    world.pass_time(0.2)
    image, state = world.images[-1], world.states[-1]
    assert (image.encoding, image.height, image.width, image.step, len(image.data)) == ("rgb8", 128, 128, 384, 128 * 384)
    picture = np.frombuffer(image.data, np.uint8).reshape(128, 128, 3).astype(int)
    apart = np.abs(picture - Camera(128, 128).picture(Tabletop(3)))
    assert np.median(apart) == 0 and (apart.max(axis=2) > 8).mean() < 0.01, "what the camera sees of the same scene in this process"
    assert tuple(state.name) == (*ARM_JOINTS, "left_finger", "right_finger")
    assert len(state.position) == len(state.velocity) == len(state.effort) == 8
    assert abs(to_ns(image.header.stamp) - to_ns(state.header.stamp)) < 1e8 and image.header.frame_id
    assert world.urdf == read_urdf("wx250s_sim", read_robot("wx250s_sim"))


def test_no_picture_is_equal_to_the_one_before_although_nothing_moves(world: World) -> None:
    """policy_node would take them for those of a frozen camera."""
    world.until(lambda: len(world.images) > 10, "pictures")
    pictures = [bytes(image.data) for image in world.images[:10]]
    marks = [sample_mark(picture) for picture in pictures]
    assert all(one != other for one, other in itertools.pairwise(marks)), "also for who looks at a part of them only"
    apart = [np.abs(np.frombuffer(one, np.uint8).astype(int) - np.frombuffer(other, np.uint8)).sum()
             for one, other in itertools.pairwise(pictures[2:])]
    assert max(apart) <= 7, "three bits of noise in one byte, and no more"


def test_it_holds_before_the_first_and_after_the_last_trajectory(world: World) -> None:
    start = world.positions()
    world.pass_time(1.0)
    np.testing.assert_allclose(world.positions(), start, atol=1e-4)
    world.go((0.5, REST), (1.0, REST))
    world.arrive(REST)
    world.pass_time(2.0)
    np.testing.assert_allclose(world.positions()[:6], REST, atol=5e-3)


def test_the_fingers_follow_their_own_controller(world: World) -> None:
    for wanted in (0.02, 0.03):
        world.go((0.1, [wanted]), names=("left_finger",), publisher=world.gripper)
        world.arrive([wanted, -wanted], slice(6, 8), 5e-4)


def test_absurd_targets_meet_the_limits_of_the_joints(world: World) -> None:
    limits = Tabletop().arm_ranges_rad
    world.go((0.01, [100.0, -0.3, 0.2, 0.0, 1.4, -100.0]))
    world.arrive([3.14, -3.14], slice(0, 6, 5), 0.03)
    world.pass_time(0.5)
    states = np.array([state.position[:6] for state in world.states])
    assert (states > limits[:, 0] - 0.02).all() and (states < limits[:, 1] + 0.02).all()
    speeds = np.abs([state.velocity[:6] for state in world.states]).max()
    assert 2.0 < speeds < 1.3 * simulation_node.MAX_SPEED_RAD_S  # a servo rings a little around its ramp
    world.until(lambda: "asked for more than they can: waist, wrist_rotate" in world.health["arm"].message, "a word about it")
    world.until(lambda: "waist" in world.value("arm", "joints_at_limit"), "the joint's name")


@pytest.mark.parametrize(("positions", "names", "said"), [
    ([math.nan] * 6, ARM_JOINTS, "expected 6 finite numbers"),
    ([0.0] * 5, ARM_JOINTS[:5], "trajectory for the joints waist, shoulder, elbow, forearm_roll, wrist_angle, expected"),
])
def test_a_wrong_trajectory_is_refused_said_and_changes_nothing(world: World, positions: list[float], names: tuple[str, ...],
                                                                said: str) -> None:
    before = int(world.value("arm", "count_arm_refused") or 0)
    world.go((0.6, REST))
    world.go((0.1, positions), names=names)
    world.until(lambda: int(world.value("arm", "count_arm_refused") or 0) == before + 1, "the count")
    assert world.health["arm"].level == DiagnosticStatus.WARN and said in world.health["arm"].message
    world.arrive(REST)
    world.go((0.1, REST))
    world.until(lambda: world.health["arm"].level == DiagnosticStatus.OK, "forgiveness after a good one")


def test_a_reset_puts_everything_in_its_place_although_a_trajectory_plays(world: World) -> None:
    world.go((5.0, REST))
    world.pass_time(1.0)
    answer = world.reset(11)
    assert answer.success and answer.colours == list(layout(11).colours) and answer.reason == ""
    count = len(world.scenes)
    world.pass_time(1.0)  # the trajectory is forgotten: it would have gone on
    state, expected = from_markers(world.scenes[-1], 1.0), Tabletop(11).state()
    assert len(world.scenes) > count and sorted(state.blocks) == sorted(expected.blocks)
    for name in state.blocks:
        np.testing.assert_allclose(state.blocks[name], expected.blocks[name], atol=1e-3)
    np.testing.assert_allclose(state.tool_m, expected.tool_m, atol=1e-3)
    np.testing.assert_allclose(state.plate_m, expected.plate_m, atol=1e-9)
    assert world.clocks == sorted(world.clocks), "time goes on"
    world.until(lambda: world.value("simulation", "seed") == "11", "the seed in the diagnostics")
    same = [world.reset(seed).colours for seed in (4, 11)][1]
    assert same == answer.colours


def test_pressed_on_the_table_it_collides_and_pushes_no_harder_than_its_motors_can(world: World) -> None:
    world.go((0.6, [0.0, 1.2, 0.3, 0.0, 0.2, 0.0]))
    world.until(lambda: "on table" in world.health["arm"].message, "a word about it")
    assert int(world.value("arm", "count_collisions")) > 0
    efforts, allowed = np.abs([state.effort[:6] for state in world.states]).max(axis=0), urdf_limits("effort")
    assert (efforts <= [1.001 * allowed[name] for name in ARM_JOINTS]).all() and efforts.max() > 0.5


def test_the_real_time_factor_may_change_while_it_runs_and_the_rest_may_not(world: World) -> None:
    def ask(name: str, value: Any) -> Any:
        parameters = [Parameter(name, value=value).to_parameter_msg()]
        return world.call(world.parameters, SetParameters.Request(parameters=parameters)).results[0]

    assert ask("real_time_factor", 2.0).successful
    world.until(lambda: world.value("simulation", "real_time_factor") == "2", "another factor")
    assert ask("real_time_factor", 4.0).successful
    refused = ask("real_time_factor", 0.0)
    assert not refused.successful and "expected a number from 0.05 to 20" in refused.reason
    refused = ask("image_rate_hz", 10.0)
    assert not refused.successful and "only by starting the node again" in refused.reason


def test_beside_another_clock_it_does_not_start_and_stands_still(world: World, environment: dict[str, str]) -> None:
    second = subprocess.run(command(), env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode in (1, 2), second.stderr  # 1: it had begun before it found the other
    assert re.search("/clock is published by (/simulation_node|another node) already.*ROS_DOMAIN_ID", second.stderr), second.stderr
    young_until_s = world.heard_s + simulation_node.YOUNG_S + 1.0
    world.until(lambda: time.monotonic() > young_until_s, "a simulation that is no newcomer any more, and stays when a rival appears")
    rival = world.create_publisher(Clock, "/clock", 1)
    world.until(lambda: re.search("stands still: /clock is published by .*/world", world.health["simulation"].message), "an error")
    assert world.health["simulation"].level == DiagnosticStatus.ERROR
    stood_ns = world.clocks[-1]
    said = len(world.health["simulation"].values) and world.value("simulation", "time_s")
    world.executor.create_task(world.destroy_publisher, rival)
    world.until(lambda: world.clocks[-1] > stood_ns + 500_000_000, "time to go on")
    assert float(said) == pytest.approx(stood_ns / 1e9, abs=0.1)


@pytest.mark.parametrize(("parameters", "said"), [
    (("image_width:=4", "speed:=2"), r"unknown parameter 'speed'.*'image_width' is 4, expected an integer from 32 to 1024"),
    (("robot:=wx250s",), "has the output 'interbotix'; the simulated arm listens to joint trajectories"),
])
def test_wrong_parameters_are_refused(environment: dict[str, str], parameters: tuple[str, ...], said: str) -> None:
    other = environment | {"ROS_DOMAIN_ID": str((int(environment["ROS_DOMAIN_ID"]) + 1) % 101)}
    child = subprocess.run(command(*parameters), env=other, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 2 and re.search(said, child.stderr), child.stderr


def test_the_limits_of_speed_are_those_of_the_urdf() -> None:
    speeds = urdf_limits("velocity")
    assert {speeds[name] for name in ARM_JOINTS} == {simulation_node.MAX_SPEED_RAD_S}
    assert speeds["left_finger"] == simulation_node.MAX_SPEED_M_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_with_zero(environment: dict[str, str], hold_domain: Callable[[], AbstractContextManager[int]], tmp_path: Path,
                             number: signal.Signals) -> None:
    with hold_domain() as domain, (tmp_path / "log").open("w+") as log:
        child = subprocess.Popen(command(), env=environment | {"ROS_DOMAIN_ID": str(domain)}, stdout=log, stderr=log)
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=domain)
        node = Node("waiting", context=context)
        try:
            end = time.monotonic() + DEADLINE_S
            while not node.count_publishers("/clock"):
                assert time.monotonic() < end and child.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.05)
            os.kill(child.pid, number)
            assert child.wait(20) == 0, (tmp_path / "log").read_text()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            node.destroy_node()
            rclpy.shutdown(context=context)
