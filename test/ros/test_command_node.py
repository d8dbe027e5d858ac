"""command_node as a process of its own, spoken to over DDS as a policy, an operator and an arm would."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from scipy.spatial.transform import Rotation

pytest.importorskip("rclpy", reason="needs ROS")
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from openvla_msgs.msg import ActionChunk as ActionChunkMessage
from openvla_msgs.msg import CommandReport
from openvla_msgs.srv import SetDriver
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool, Float64, String
from std_srvs.srv import Trigger

from openvla_ros.action.command import ZERO, Motion, Phase, Twist, advanced
from openvla_ros.action.kinematics import Kinematics
from openvla_ros.action.pose import from_rpy
from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, Pose
from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, SECOND_NS, to_chunk_message, to_ns, to_time
from openvla_ros.ros.outputs.servo_pose import LastPose
from openvla_ros.ros.profile import read_robot, read_urdf

pytestmark = pytest.mark.ros

DEADLINE_S = 20.0
QUIET_S = 0.4
"""How long silence is listened to; a dozen ticks."""
WX250S = read_robot("wx250s")
AGE_S = 1.0
"""max_observation_age_s of these tests: room for a busy machine."""
TICK_S, RAMP_S, ZEROS_S = 1 / 30, 0.1, 0.5
HOLD, POLICY, HUMAN = SetDriver.Request.HOLD, SetDriver.Request.POLICY, SetDriver.Request.HUMAN


class World(Node):
    """Policy, operator, arm and clock in the test's own process."""

    def __init__(self, context: rclpy.Context, namespace: str, call: Callable[[Any, Any], Any]) -> None:
        super().__init__("world", context=context, namespace=namespace)
        self.call = call
        self.twists: list[TwistStamped] = []
        self.reports: list[CommandReport] = []
        self.drivers: list[str] = []
        self.health: dict[str, DiagnosticStatus] = {}
        self.create_subscription(TwistStamped, "delta_twist_cmds", self._on_twist, 100)
        self.create_subscription(CommandReport, "command_report", self.reports.append, 100)
        self.create_subscription(String, "driver", lambda message: self.drivers.append(message.data), LATCHED)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.requests = self.create_publisher(Bool, "emergency_stop_request", LATCHED)
        self.clock = self.create_publisher(Clock, "/clock", 10)
        self.chunks: Any = None
        self.set_driver = self.create_client(SetDriver, "set_driver")
        self.stop = self.create_client(Trigger, "emergency_stop")
        self.reset = self.create_client(Trigger, "reset_stop")
        self.parameters = self.create_client(SetParameters, "command_node/set_parameters")
        self.start = self.create_client(Trigger, "go_to_start")
        self.hand = self.create_publisher(TwistStamped, "teleop/delta_twist_cmds", NEWEST_RELIABLE)
        self.grips = self.create_publisher(Float64, "teleop/gripper", NEWEST_RELIABLE)
        self.joy = self.create_publisher(Joy, "joy", NEWEST_RELIABLE)
        self.enables = self.create_publisher(Bool, "enable", NEWEST_RELIABLE)
        self.sequence = 0
        self.sim_ns: int | None = None
        self.kinematics = Kinematics(read_urdf("wx250s", WX250S), "wx250s/ee_gripper_link", WX250S.arm.joints)
        self.joints, self.blocked, self.mute = np.zeros(6), False, False
        self.efforts = [0.0] * 6
        self.place(0.15)
        self.states = self.create_publisher(JointState, "joint_states", 10)
        self.create_timer(0.02, self.say_joints)

    def place(self, x_m: float, z_m: float = 0.15) -> None:
        """Put the arm somewhere, as nobody commanded it."""
        pose = from_rpy(np.array([x_m, 0.0, z_m]), np.array([0.0, 1.5707963, 0.0]))
        solution = self.kinematics.inverse(pose, np.array([0.0, -0.3, 0.5, 0.0, 1.3, 0.0]), np.inf)
        assert solution.reached
        self.joints = solution.positions

    @property
    def pose(self) -> Pose:
        return self.kinematics.forward(self.joints)

    def _on_twist(self, message: TwistStamped) -> None:
        """The arm follows each twist for a tick."""
        self.twists.append(message)
        linear, angular = message.twist.linear, message.twist.angular
        twist = Twist(np.array([linear.x, linear.y, linear.z]), np.array([angular.x, angular.y, angular.z]))
        if twist.moving and not self.blocked:
            self.joints = self.kinematics.inverse(advanced(self.pose, twist, TICK_S), self.joints).positions

    def say_joints(self, **change: Any) -> None:
        """Joint states as the driver says them, in an order of their own."""
        if not self.mute:
            names, positions = list(reversed(WX250S.arm.joints)), [float(value) for value in self.joints[::-1]]
            state = JointState(name=["left_finger", *names], position=[0.02, *positions], effort=[0.0, *reversed(self.efforts)])
            state.header.stamp = self.get_clock().now().to_msg()
            self.states.publish(state)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.health |= {status.name: status for status in message.status}

    def value(self, key: str, name: str = "/command_node: driver") -> str:
        status = self.health.get(name, DiagnosticStatus())
        return next((pair.value for pair in status.values if pair.key == key), "")

    def until(self, good: Callable[[], Any], what: str, heard: Sequence[str] = ()) -> None:
        """Wait until something holds. Fails after DEADLINE_S, and tells the newest of what was heard."""
        end = time.monotonic() + DEADLINE_S
        while not good():
            assert time.monotonic() < end, (f"waited {DEADLINE_S} s for: {what}; drivers {self.drivers[-3:]}, reasons "
                                            f"{[report.stop_reason for report in self.reports[-3:]]}, heard {heard[-1:]}")
            time.sleep(0.005)

    def choose(self, driver: int) -> SetDriver.Response:
        return self.call(self.set_driver, SetDriver.Request(driver=driver))

    def start_policy(self) -> None:
        """Publish chunks from now on, and be given the arm."""
        if self.chunks is None:
            self.chunks = self.create_publisher(ActionChunkMessage, "action_chunk", NEWEST_RELIABLE)
        self.until(self.chunks.get_subscription_count, "command_node to be found")  # what is said before is lost
        refusals: list[str] = []

        def accepted() -> bool:
            answer = self.choose(POLICY)
            refusals.append(answer.reason)
            return bool(answer.success)

        self.until(accepted, "POLICY to be accepted", refusals)

    def now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds) if self.sim_ns is None else self.sim_ns

    def send(self, *steps: Sequence[float], age_s: float = 0.0, session: int = 7, sequence: int | None = None,
             frame_id: str = "wx250s/base_link", fault: str = "") -> int:
        """Publish a chunk; returns its observation stamp."""
        self.sequence += 1
        stamp_ns = self.now_ns() - round(age_s * SECOND_NS)
        chunk = ActionChunk(tuple(map(Action.from_vector, steps)), 0.2, stamp_ns, fault=fault)
        identity = ChunkIdentity(session, 1, self.sequence if sequence is None else sequence)
        self.chunks.publish(to_chunk_message(chunk, identity, frame_id))
        return stamp_ns

    def move(self, session: int = 7) -> int:
        """Set the arm moving with a long chunk, to where there is more room; returns the observation stamp."""
        count, sign = len(self.twists), 1.0 if self.pose.position_m[0] < 0.275 else -1.0
        stamp_ns = self.send(*[[sign * FULL[0], *FULL[1:]]] * 10, session=session)
        self.until(lambda: any(speed(twist) > 0.1 for twist in self.twists[count:]), "the arm to move")
        return stamp_ns

    def push(self, *velocity: float) -> None:
        """One message of a teleop."""
        message = TwistStamped()
        message.header.stamp, message.header.frame_id = self.get_clock().now().to_msg(), "wx250s/base_link"
        message.twist.linear.x, message.twist.linear.y, message.twist.linear.z = velocity
        self.hand.publish(message)

    def press(self, deflection: float, *buttons: int, age_s: float = 0.0) -> None:
        """One message of a joystick: its left stick and what is pressed."""
        message = Joy(axes=[0.0, deflection, *[0.0] * 6], buttons=[int(number in buttons) for number in range(11)])
        message.header.stamp = to_time(self.get_clock().now().nanoseconds - round(age_s * SECOND_NS))
        self.joy.publish(message)

    def keep(self, act: Callable[[], None], good: Callable[[], Any], what: str) -> None:
        """Do something 50 times per second until something holds."""
        def again() -> Any:
            act()
            time.sleep(0.015)
            return good()

        self.until(again, what)

    def see(self, driver: str) -> None:
        """Wait until this is the driver that was announced last."""
        self.until(lambda: self.drivers[-1:] == [driver], f"the driver {driver}")

    def rest(self, reason: str) -> list[CommandReport]:
        """Wait for a report with this reason and until the arm is sent zeros; returns the reports with it."""
        count = len(self.reports) - 1
        self.until(lambda: any(reason in report.stop_reason for report in self.reports[count:]), reason)
        self.until(lambda: speed(self.twists[-1]) == 0.0, "zeros")
        return [report for report in self.reports[count:] if reason in report.stop_reason]

    def silence(self) -> None:
        """Wait until no command came for QUIET_S, and check that the last was zero."""
        count, since = len(self.twists), time.monotonic()
        while time.monotonic() - since < QUIET_S:
            if len(self.twists) != count:
                count, since = len(self.twists), time.monotonic()
            time.sleep(0.01)
        assert not self.twists or speed(self.twists[-1]) == 0.0


FULL = [0.05, 0, 0, 0, 0, 0, 1.0]


def speed(twist: TwistStamped) -> float:
    linear, angular = twist.twist.linear, twist.twist.angular
    return math.hypot(linear.x, linear.y, linear.z) + math.hypot(angular.x, angular.y, angular.z)


@pytest.fixture
def meet(ros_domain_id: int, ask_service: Callable[[Any, Any], Any]) -> Iterator[Callable[..., World]]:
    """Make the world, in a namespace if wanted; it spins in a thread of its own."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain_id)
    executor = SingleThreadedExecutor(context=context)
    nodes: list[World] = []

    def make(namespace: str = "") -> World:
        nodes.append(World(context, namespace, ask_service))
        executor.add_node(nodes[-1])
        thread.start()
        return nodes[-1]

    thread = threading.Thread(target=executor.spin, daemon=True)
    yield make
    executor.shutdown()
    if nodes:
        thread.join()
        nodes[0].destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def start(ros_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start command_node with parameters; it is killed at the end of the test if it still lives."""
    started: list[subprocess.Popen[str]] = []

    def launch(*arguments: str, **parameters: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "openvla_ros.ros.command_node", "--ros-args", *arguments]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
        if shutil.which("timeout"):
            command = ["timeout", "-k", "5", "120", *command]
        log = (tmp_path / f"command_node_{len(started)}.log").open("w")
        started.append(subprocess.Popen(command, env=ros_environment, stdout=log, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield launch
    for process in started:
        if process.poll() is None:
            process.terminate()  # timeout passes it on; SIGKILL would leave the node behind
            process.wait(15)


def test_a_chunk_becomes_the_right_twists_then_zeros_then_silence(meet, start) -> None:
    world = meet()
    process = start(output="servo_twist", max_observation_age_s=AGE_S)
    world.until(lambda: world.drivers == ["HOLD"], "HOLD on the latched topic")
    assert not world.choose(POLICY).success
    world.until(lambda: world.choose(POLICY).reason == "nobody publishes /action_chunk. Start the policy first.", "the joint states")
    assert "driver 9 is unknown" in world.choose(9).reason
    time.sleep(QUIET_S)
    assert world.twists == [], "commands before a driver was chosen"

    world.start_policy()
    world.see("POLICY")
    time.sleep(QUIET_S)
    assert world.twists == [], "commands before the first chunk"
    observed_ns = world.send([0.02, -0.03, 0.01, 0.1, -0.05, 0.02, 0.996], age_s=0.1)
    world.rest("older than")
    world.silence()
    heard_ns, stamps = world.now_ns(), [to_ns(twist.header.stamp) for twist in world.twists]
    assert {twist.header.frame_id for twist in world.twists} == {"wx250s/base_link"}
    assert stamps == sorted(set(stamps)) and observed_ns < stamps[0] and stamps[-1] < heard_ns
    middle = world.twists[2].twist  # tick 3 of 6, wholly inside the step
    assert [middle.linear.x, middle.linear.y, middle.linear.z] == pytest.approx([0.1, -0.15, 0.05])
    turn = Rotation.from_euler("xyz", [0.1, -0.05, 0.02]).as_rotvec() / 0.2
    assert [middle.angular.x, middle.angular.y, middle.angular.z] == pytest.approx(turn)

    gaps_s = np.diff(stamps) / SECOND_NS
    covered_m = sum(twist.twist.linear.x * gap_s for twist, gap_s in zip(world.twists, gaps_s, strict=False))
    worst_late_s = max(gaps_s.max() - TICK_S, TICK_S - gaps_s.min())
    assert abs(covered_m - 0.02) <= 0.1 * worst_late_s + 1e-6, "the integral of the twists is the delta"
    assert gaps_s.max() < 0.1, "no hole that MoveIt Servo would take for the end"
    spoken_s = (stamps[-1] - observed_ns) / SECOND_NS
    assert AGE_S + ZEROS_S - 2 * TICK_S - worst_late_s < spoken_s < AGE_S + ZEROS_S + TICK_S + worst_late_s

    (report,) = [report for report in world.reports if report.step_started]
    assert (report.session, report.generation, report.sequence) == (7, 1, world.sequence)
    assert to_ns(report.observation_stamp) == observed_ns and report.header.frame_id == "wx250s/base_link"
    assert report.driver == CommandReport.POLICY and report.stop_reason == "" and report.rules == [] and report.action_scale == 1.0
    assert report.sent == report.requested and report.sent.translation.y == -0.03 and report.sent.gripper == 0.996
    assert not (report.dry_run or report.proposal_valid or report.intervention)
    assert report.target_pose_valid and report.measured_pose_valid
    measured, target = report.measured_pose.position, report.target_pose.position
    assert [measured.x, measured.y, measured.z] == pytest.approx([0.15, 0.0, 0.15], abs=1e-4)
    assert [target.x - measured.x, target.y, target.z - measured.z] == pytest.approx([0.02 / 6, -0.03 / 6, 0.01 / 6], abs=1e-6)
    assert world.pose.position_m == pytest.approx([0.17, -0.03, 0.16], abs=1e-3)
    world.until(lambda: world.drivers[-1] == "HOLD", "HOLD after an expiry without an end")
    assert world.choose(HOLD).success

    # Limits and settings change only while nothing drives.
    def change(name: str, value: float) -> Any:
        parameter = Parameter(name, value=value).to_parameter_msg()
        return world.call(world.parameters, SetParameters.Request(parameters=[parameter])).results[0]
    assert change("action_scale", 0.5).successful
    assert "from 0 to 1" in change("action_scale", 1.5).reason
    assert "starting the node again" in change("rate_hz", 60.0).reason
    assert "starting the node again" in change("use_sim_time", True).reason
    world.start_policy()
    assert "while the driver is HOLD" in change("action_scale", 1.0).reason
    count = len(world.twists)
    world.send([0.3, 0.4, 0, 0, 0, 0, 1.0])
    world.until(lambda: len(world.twists) > count + 3, "a scaled, clamped step")
    linear = world.twists[count + 2].twist.linear
    assert [linear.x, linear.y] == pytest.approx([0.15, 0.2])  # (0.15, 0.2) m is longer than 0.05 m
    report = next(report for report in reversed(world.reports) if report.step_started)
    assert report.rules == ["step_clamp_translation"] and report.action_scale == 0.5
    assert report.sent.translation.x == pytest.approx(0.03) and report.requested.translation.x == 0.3
    world.until(lambda: world.value("count_step_clamp_translation") == "1", "the count in diagnostics")
    assert float(world.value("tick_late_p99_ms")) >= 0.0

    world.move()
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0
    world.silence()
    world.see("HOLD")
    world.until(lambda: world.reports[-1].stop_reason == "command_node is leaving", "the last report")


@pytest.mark.parametrize("priority", [10, 0])
def test_only_the_thread_that_ticks_is_real_time_where_that_is_permitted(meet, start, priority: int) -> None:
    world = meet()
    process = start(robot="wx250s_replay", realtime_priority=priority)
    world.until(lambda: world.value("scheduling") not in ("", "normal: no tick yet"), "the scheduling in diagnostics")
    node = next((child for child in psutil.Process(process.pid).children(recursive=True) if "python" in child.name()),
                psutil.Process(process.pid))  # where there is a `timeout` it is the parent
    policies = [os.sched_getscheduler(int(path.name)) & ~os.SCHED_RESET_ON_FORK for path in Path(f"/proc/{node.pid}/task").iterdir()]
    permitted = world.value("scheduling") == "SCHED_FIFO 10"
    assert policies.count(os.SCHED_FIFO) == (1 if permitted else 0) and set(policies) <= {os.SCHED_FIFO, os.SCHED_OTHER}
    assert len(policies) > 2
    if not priority:
        assert world.value("scheduling") == "normal"
    elif not permitted:
        assert world.value("scheduling").startswith("normal: SCHED_FIFO 10 ")


def test_what_stops_the_arm(meet, start) -> None:
    """One fault after the other, each in the middle of motion. Where a bound is stated, stamps are held against it."""
    world = meet()
    start(output="servo_twist", max_observation_age_s=AGE_S)
    world.start_policy()

    # The policy goes silent in the middle of a chunk.
    observed_ns = world.move()
    world.rest("allowed 0 to 1 s")
    world.silence()
    ages_s = [((to_ns(twist.header.stamp) - observed_ns) / SECOND_NS, speed(twist)) for twist in world.twists]
    world.until(lambda: world.value("count_age") == "1", "the count in diagnostics")
    late_s = float(world.value("tick_late_max_ms")) / 1000
    assert all(v <= 0.25 + 1e-9 for _, v in ages_s)
    assert not any(v for age_s, v in ages_s if age_s > AGE_S + TICK_S + RAMP_S + late_s)
    assert max(v for age_s, v in ages_s if age_s > AGE_S + TICK_S + late_s) < 0.25 - 1e-3

    # What the policy sends is a stop, or wrong: soft stop, and the driver stays.
    for steps, change, rule, reason in (
            ([], {"fault": "instruction cleared"}, "", "the policy stopped the arm: instruction cleared"),
            ([[0.01, math.nan, 0, 0, 0, 0, 1]], {}, "finite", "NaN or infinity in 1 of 1 steps"),
            ([FULL], {"frame_id": "world"}, "frame", "chunk is in frame 'world', this arm takes 'wx250s/base_link'")):
        if world.drivers[-1] == "HOLD":
            world.start_policy()
        world.move()
        world.send(*steps, **change)
        reports = world.rest(reason)
        assert reports[0].rules == ([rule] if rule else []) and reports[0].driver == CommandReport.POLICY

    # Going back in order: dropped, counted, and the motion goes on.
    world.start_policy()
    count = len(world.reports)
    world.move()
    world.send(FULL, sequence=1)
    world.until(lambda: any(report.rules == ["order"] for report in world.reports[count:]), "the drop to be reported")
    dropped = next(report for report in world.reports[count:] if report.rules == ["order"])
    assert dropped.stop_reason == "" and dropped.driver == CommandReport.POLICY

    # A restarted policy, and a second one: HOLD until a human chooses POLICY again.
    world.send(FULL, session=8)
    world.rest("another start of the policy")
    world.see("HOLD")
    world.start_policy()
    world.move(session=8)
    second = world.create_publisher(ActionChunkMessage, "action_chunk", NEWEST_RELIABLE)
    world.rest("/action_chunk has 2 publishers: world, world")
    world.see("HOLD")
    assert "Leave one running" in world.choose(POLICY).reason
    world.executor.create_task(world.destroy_publisher, second)

    # The policy leaves and another takes its place: whichever of the two is noticed first, POLICY is over.
    world.start_policy()
    world.move(session=8)
    world.executor.create_task(world.destroy_publisher, world.chunks)
    world.chunks = world.create_publisher(ActionChunkMessage, "action_chunk", NEWEST_RELIABLE)
    world.until(lambda: "publish" in world.reports[-1].stop_reason, "the end of POLICY without the policy it was chosen for")
    world.see("HOLD")

    # Somebody else commands the arm.
    world.start_policy()
    world.move(session=8)
    rival = world.create_publisher(TwistStamped, "delta_twist_cmds", 10)
    world.rest("/delta_twist_cmds has another publisher: /world")
    world.see("HOLD")
    assert "only one may command the arm" in world.choose(POLICY).reason
    world.executor.create_task(world.destroy_publisher, rival)

    # Emergency stops, by service and by topic: no ramp, latched, and a reset moves nothing.
    for by_topic in (False, True):
        world.start_policy()
        world.move(session=8)
        count = len(world.twists)
        if by_topic:
            world.requests.publish(Bool(data=True))
        else:
            assert world.call(world.stop, Trigger.Request()).success
        world.see("STOPPED")
        world.silence()
        assert {round(speed(twist), 6) for twist in world.twists[count:]} <= {0.25, 0.0}, "an emergency stop does not ramp"
        assert "reset_stop" in world.choose(POLICY).reason and "reset_stop" in world.choose(HOLD).reason
        if by_topic:
            refusal = world.call(world.reset, Trigger.Request())
            assert not refusal.success and "Publish false there first" in refusal.message
            world.requests.publish(Bool(data=False))
        count = len(world.twists)
        world.until(lambda: world.call(world.reset, Trigger.Request()).success, "the reset to be accepted")
        world.see("HOLD")
        time.sleep(QUIET_S)
        assert len(world.twists) == count, "a reset moves nothing"


def test_one_publisher_of_stop_requests_does_not_undo_what_another_repeats(meet, start) -> None:
    world = meet()
    start(output="servo_twist", dry_run=True)
    other = world.create_publisher(Bool, "emergency_stop_request", 10)
    world.until(lambda: other.get_subscription_count() and world.requests.get_subscription_count(), "command_node to listen")
    refusals: list[str] = []

    def insist() -> None:
        world.requests.publish(Bool(data=True))
        world.see("STOPPED")
        other.publish(Bool(data=False))
        time.sleep(0.02)
        answer = world.call(world.reset, Trigger.Request())
        assert not answer.success
        refusals.append(answer.message)

    world.keep(insist, lambda: any("was true less than 1 s ago" in refusal for refusal in refusals), "the false to be heard")
    world.keep(insist, lambda: len(refusals) > 10, "more of the same")
    other.publish(Bool(data=False))
    world.until(lambda: world.call(world.reset, Trigger.Request()).success, "the reset after a second without any true")


def test_simulated_time(meet, start) -> None:
    """A recording's clock drives the arm; when it stops or goes back, so does the arm."""
    world = meet()
    world.sim_ns = 1_700_000_000 * SECOND_NS
    running = threading.Event()

    def play() -> None:
        while not done.wait(0.01):
            if running.is_set():
                world.sim_ns += 10_000_000
                world.clock.publish(Clock(clock=to_time(world.sim_ns)))

    done, player = threading.Event(), threading.Thread(target=play)
    player.start()
    try:
        start(robot="wx250s_replay", use_sim_time=True, max_observation_age_s=AGE_S)
        world.until(lambda: world.drivers == ["HOLD"], "HOLD although no clock runs")
        world.chunks = world.create_publisher(ActionChunkMessage, "action_chunk", NEWEST_RELIABLE)
        world.until(lambda: world.choose(POLICY).reason == "simulated time does not run. Start what publishes /clock, or its "
                    "playback.", "the refusal that names the clock")
        running.set()
        world.start_policy()
        world.move()
        assert to_ns(world.twists[-1].header.stamp) <= world.sim_ns

        running.clear()
        world.rest("clock stands still")
        world.see("HOLD")
        assert to_ns(world.twists[-1].header.stamp) == world.sim_ns
        world.silence()
        world.until(lambda: world.health["/command_node: driver"].level == DiagnosticStatus.WARN, "the warning")

        running.set()
        world.start_policy()
        world.move()
        world.sim_ns -= 30 * SECOND_NS
        world.rest("the ROS clock jumped back by")
        world.see("HOLD")
    finally:
        done.set()
        player.join()


def test_hand_and_policy(meet, start) -> None:
    """A teleop takes over in the middle of the policy's motion, hands back, and is stopped."""
    world = meet()
    start(output="servo_twist", max_observation_age_s=AGE_S, joy="xbox")
    world.until(lambda: world.hand.get_subscription_count() and world.joy.get_subscription_count(), "command_node to listen")
    world.start_policy()
    world.move()
    count = len(world.twists)
    world.keep(lambda: world.push(0.0, 0.1, 0.0), lambda: world.drivers[-1] == "HUMAN" and world.twists[-1].twist.linear.y == 0.1,
               "the hand to move the arm")
    velocities = np.array([[twist.twist.linear.x, twist.twist.linear.y, twist.twist.linear.z] for twist in world.twists[count - 1:]])
    assert np.linalg.norm(np.diff(velocities, axis=0), axis=1).max() <= 2.5 * TICK_S + 1e-6, "a bump at the switch"

    # The policy goes on proposing; what it says is told, and not played.
    world.send([0.01, 0.02, 0.03, 0, 0, 0, 1.0])
    world.keep(lambda: world.push(0.0, 0.1, 0.0), lambda: world.reports[-1].proposal_valid, "the proposal in the report")
    report = world.reports[-1]
    assert report.driver == CommandReport.HUMAN and report.intervention and report.proposal.translation.y == 0.02
    world.keep(lambda: world.push(0.0, 0.1, 0.0), lambda: world.reports[-1].sent.translation.y == pytest.approx(0.02),
               "the human's steps in the report")
    assert not any(report.step_started for report in world.reports if report.driver == CommandReport.HUMAN)

    # The teleop dies: the arm stops within 0.2 s, one tick and the ramp; the policy does not come back by itself.
    last_ns = world.now_ns()
    world.rest("the teleop went silent")
    world.silence()
    moving = [to_ns(twist.header.stamp) for twist in world.twists if speed(twist)]
    assert moving[-1] - last_ns <= (0.2 + TICK_S + 0.1 / 2.5 + float(world.value("tick_late_max_ms")) / 1000 + 0.05) * SECOND_NS
    world.see("HUMAN")

    # Wrong frame: nothing moves.
    wrong = TwistStamped()
    wrong.header.stamp, wrong.header.frame_id, wrong.twist.linear.x = world.get_clock().now().to_msg(), "world", 0.1
    world.hand.publish(wrong)
    world.until(lambda: "frame 'world'" in world.reports[-1].stop_reason, "the reason")

    # Back to the policy, and the joystick: a stick without the deadman does nothing, with it it drives; B stops everything.
    world.start_policy()
    world.see("POLICY")
    world.move()
    for _ in range(10):
        world.press(1.0)
        time.sleep(0.02)
    assert world.drivers[-1] == "POLICY"
    world.keep(lambda: world.press(1.0, 5), lambda: world.drivers[-1] == "HUMAN" and speed(world.twists[-1]) == pytest.approx(0.1),
               "the joystick to move the arm")
    world.press(1.0, 5, 1, age_s=3.0)  # a stop is taken at any age
    world.see("STOPPED")
    world.silence()
    assert world.call(world.reset, Trigger.Request()).success
    world.press(0.0)
    world.until(lambda: world.choose(HUMAN).success, "HUMAN by service")
    world.see("HUMAN")
    count = len(world.drivers)

    # No other wish is granted to a message that is old, from the future, or without a stamp.
    world.send([0.01, 0, 0, 0, 0, 0, 1.0])  # a policy is there, so only the age stands in the way
    for age_s in (1.0, -5.0, world.now_ns() / SECOND_NS):
        for button in (6, 2):  # back and X
            assert world.choose(HOLD).success and world.choose(HUMAN).success
            world.until(lambda: "the teleop's message" not in world.reports[-1].stop_reason, "another reason")

            def stale(age_s: float = age_s, button: int = button) -> None:
                world.press(0.0, age_s=age_s)
                time.sleep(0.02)
                world.press(0.0, button, age_s=age_s)

            world.keep(stale, lambda: "the teleop's message was stamped" in world.reports[-1].stop_reason, "the age in the report")
    world.press(0.0)
    time.sleep(0.02)
    world.press(0.0, 2)  # X
    world.until(lambda: len(world.drivers) > count + 12, "HOLD by the button")
    assert world.drivers[count:] == ["HOLD", "HUMAN"] * 6 + ["HOLD"]


def test_the_arm_and_its_surroundings(meet, start) -> None:
    """What the joint states say stops the arm; and the way to the start pose."""
    world = meet()
    start(output="servo_twist", max_observation_age_s=AGE_S)
    world.until(lambda: world.reports and world.reports[-1].measured_pose_valid, "the joint states to be heard")

    # go_to_start moves the arm there, slowly; POLICY ends it.
    answer = world.call(world.start, Trigger.Request())
    assert answer.success and "'bridge'" in answer.message
    parameter = Parameter("max_joint_state_age_s", value=2.0).to_parameter_msg()
    changed = world.call(world.parameters, SetParameters.Request(parameters=[parameter])).results[0]
    assert not changed.successful and "on its way to the start pose" in changed.reason
    world.until(lambda: any("at the start pose 'bridge'" in report.stop_reason for report in world.reports), "the arrival")
    assert world.pose.position_m == pytest.approx([0.3, 0.0, 0.15], abs=0.004)
    assert max(map(speed, world.twists)) < 0.05 * 1.01 + 0.25 * 1.01
    world.start_policy()
    assert "works in HOLD only" in world.call(world.start, Trigger.Request()).message

    # Joint states cease.
    world.move()
    world.mute = True
    silent_ns = world.now_ns()
    world.rest("the newest joint states are")
    world.see("HOLD")
    world.silence()
    moving = [to_ns(twist.header.stamp) for twist in world.twists if speed(twist)]
    assert moving[-1] - silent_ns <= (0.25 + TICK_S + RAMP_S + float(world.value("tick_late_max_ms")) / 1000 + 0.05) * SECOND_NS
    assert "joint states are" in world.choose(POLICY).reason and "joint states are" in world.choose(HUMAN).reason
    world.mute = False

    # The arm does not follow, and is given up after a second at its leash.
    world.place(0.2)
    world.start_policy()
    world.blocked = True

    def insist() -> None:
        world.send(*[[0.02, 0, 0, 0, 0, 0, 1.0]] * 4)
        time.sleep(0.1)

    world.keep(insist, lambda: "does not follow" in world.reports[-1].stop_reason, "the arm to be given up")
    world.see("HOLD")
    world.blocked = False

    # It pushes too hard.
    world.start_policy()
    world.move()
    world.efforts = [0.0, 1711.0, 0.0, 0.0, 0.0, 0.0]
    world.rest("shoulder pushes with 1711, allowed 1710")
    world.see("HOLD")
    assert "still pushes too hard" in world.choose(POLICY).reason
    world.efforts = [0.0] * 6

    # It stands outside the box: a policy may not drive, a hand may.
    world.place(0.3, -0.03)
    world.until(lambda: "outside the workspace: z is -0.030 m" in world.choose(POLICY).reason, "POLICY to be refused")
    assert world.choose(HUMAN).success and world.choose(HOLD).success


def test_the_urdf_of_robot_description(meet, start, tmp_path: Path, checkout: Path) -> None:
    """A robot of another name, in its namespace; the profile names no URDF, so one must come."""
    content = yaml.safe_load((checkout / "config" / "robots" / "wx250s.yaml").read_text())
    del content["arm"]["urdf"]
    profile = tmp_path / "mine.yaml"
    profile.write_text(yaml.safe_dump(content))
    world = meet("/left")
    start("-r", "__ns:=/left", robot=profile, output="servo_twist", base_frame="left/base_link", max_observation_age_s=AGE_S)
    world.until(lambda: world.choose(HUMAN).reason.startswith("no URDF of the arm is there"), "the refusal")
    described = world.create_publisher(String, "robot_description", LATCHED)
    urdf = read_urdf("wx250s", WX250S).replace("wx250s/", "left/")
    described.publish(String(data=urdf.replace('name="elbow"', 'name="knee"')))
    world.until(lambda: "robot_description cannot be used: joint names are waist" in world.choose(HUMAN).reason, "what is wrong with it")
    described.publish(String(data=urdf))
    world.until(lambda: world.choose(HUMAN).success, "the URDF to be taken")
    world.until(lambda: world.reports[-1].measured_pose_valid, "the measured pose")
    measured = world.reports[-1].measured_pose.position
    assert [measured.x, measured.y, measured.z] == pytest.approx([0.15, 0.0, 0.15], abs=1e-4)


def test_the_enable_heartbeat(meet, start) -> None:
    world = meet()
    start(output="servo_twist", max_observation_age_s=AGE_S, require_enable=True)
    world.until(lambda: "the enable heartbeat is missing" in world.choose(HUMAN).reason, "the refusal")
    beat = world.create_timer(0.1, lambda: world.enables.publish(Bool(data=True)))
    world.start_policy()
    world.move()
    beat.cancel()
    world.rest("the enable heartbeat is missing")
    world.see("HOLD")


def test_dry_run_in_a_namespace_with_a_parameter_file(meet, start, checkout: Path, tmp_path: Path) -> None:
    file = tmp_path / "command_node.yaml"
    file.write_text((checkout / "config" / "command_node.yaml").read_text().replace("action_scale: 1.0 ", "action_scale: 0.5"))
    world = meet("/left")
    late = world.create_publisher(Bool, "emergency_stop_request", QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    world.requests.publish(Bool(data=True))  # latched, before the node is there
    start("-r", "__ns:=/left", "--params-file", str(file), dry_run=True, max_observation_age_s=AGE_S)
    world.until(lambda: world.drivers[-1:] == ["STOPPED"], "the latched request to be heard")
    world.requests.publish(Bool(data=False))
    world.until(lambda: world.call(world.reset, Trigger.Request()).success, "the reset")
    world.start_policy()
    assert world.get_publishers_info_by_topic("/left/delta_twist_cmds") == []
    world.send(FULL)
    world.until(lambda: any(report.step_started for report in world.reports), "the step to be reported")
    report = next(report for report in world.reports if report.step_started)
    assert report.dry_run and report.action_scale == 0.5 and report.sent.translation.x == 0.025
    world.until(lambda: world.value("dry_run", "/left/command_node: driver") == "True", "diagnostics with the namespace")
    late.publish(Bool(data=True))
    world.until(lambda: world.drivers[-1] == "STOPPED", "a best-effort request to be heard")
    assert world.twists == []


def test_servo_pose_says_no_pose_at_rest_but_the_last() -> None:
    """A pose that the arm has left meanwhile, as by hand in HOLD, would set it moving from an emergency stop."""
    def pose(x_m: float) -> Pose:
        return from_rpy(np.array([x_m, 0.0, 0.15]), np.zeros(3))

    last, tick_ns = LastPose(), round(TICK_S * SECOND_NS)
    there, elsewhere = pose(0.2), pose(0.3)
    assert last.next(Motion(ZERO, there), 0) is None, "nothing was said yet"
    assert last.next(Motion(ZERO, there, phase=Phase.MOVING), tick_ns) is there
    assert last.next(Motion(ZERO, elsewhere), 2 * tick_ns) is there
    assert last.next(Motion(ZERO, elsewhere, phase=Phase.RAMP), 3 * tick_ns) is elsewhere
    for tick in range(4, 20):
        assert last.next(Motion(ZERO, there), tick * tick_ns) is elsewhere
    for tick in range(50, 60):
        assert last.next(Motion(ZERO, there), tick * tick_ns) is None, "after a silence Servo holds where the arm is"
    assert last.next(Motion(ZERO, there, phase=Phase.MOVING), 60 * tick_ns) is there
    assert last.next(Motion(ZERO, None, phase=Phase.MOVING), 61 * tick_ns) is None


@pytest.mark.parametrize(("arguments", "words"), [
    (["-p", "robot:=ur5e"], "no robot profile 'ur5e'; there are .*wx250s, wx250s_replay"),
    (["-p", "use_sim_time:=true"], "profile 'wx250s' is a real arm"),
    (["-p", "rate_hz:=5", "-p", "actoin_scale:=0.1"], "unknown parameter 'actoin_scale'; this node takes robot, .*'rate_hz' is 5"),
])
def test_a_wrong_configuration_ends_the_node_with_a_reason(ros_environment: dict[str, str], arguments: list[str], words: str) -> None:
    node = subprocess.run([sys.executable, "-m", "openvla_ros.ros.command_node", "--ros-args", *arguments], env=ros_environment,
                          capture_output=True, text=True, timeout=60, check=False)
    assert node.returncode == 2
    assert re.search(words, node.stderr), node.stderr


def test_runs_without_torch(ros_environment: dict[str, str]) -> None:
    """On a machine without torch: here every import of it fails."""
    code = ("import sys; sys.modules.update(torch=None, transformers=None); import openvla_ros.ros.command_node; "
            "print(sorted({name.split('.')[0] for name in sys.modules} & {'cv2', 'PIL', 'rosbags', 'mujoco'}))")
    child = subprocess.run([sys.executable, "-c", code], env=ros_environment, capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.strip() == "[]"
