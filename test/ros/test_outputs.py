"""command_node and each of its outputs, played over DDS into stand-ins that obey the documented rules of the real consumers.

What is measured is what the arm did, from its joint states: displacement, speed, and the time it takes to stop. The stand-ins are
processes of their own (see stand_ins/); where interbotix_xs_msgs and moveit_msgs are not installed, cut-down ones with the same names and
fields are built first. Nothing here has been run against the real Servo, ros2_control or Interbotix driver.
"""

from __future__ import annotations

import math
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="needs ROS")
pytest.importorskip("pinocchio", reason="needs pinocchio (pip install pin)")
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from openvla_msgs.msg import ActionChunk as ActionChunkMessage
from openvla_msgs.msg import CommandReport
from openvla_msgs.srv import SetDriver
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, Int8, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from openvla_ros.action.gripper import FULL_PWM
from openvla_ros.action.kinematics import Kinematics
from openvla_ros.contract import Action, ActionChunk, ChunkIdentity
from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, SECOND_NS, to_chunk_message, to_duration, to_ns, to_time
from openvla_ros.ros.profile import read_robot

pytestmark = pytest.mark.ros

STAND_INS = Path(__file__).parent / "stand_ins"
DEADLINE_S = 30.0
QUIET_S = 0.4
STEP_M, STEP_S = 0.03, 0.2
AGE_S, TICK_S = 0.6, 1 / 30  # defaults of command_node
JOINT_STATES_S = 0.01
SAME_M = 2e-4
"""An arm that is nearer than this to where it comes to rest has come to rest."""


class Case(NamedTuple):
    """An output, the stand-in of its consumer, and what the consumer adds to the time it takes to stop."""

    output: str
    stand_in: str
    downstream_s: float
    tolerance_m: float  # from the target to where the arm comes to rest; a consumer of twists adds them up in cycles of its own
    robot: str = "wx250s"
    settings: Mapping[str, object] = {}
    arguments: Sequence[str] = ()


SERVO_CYCLE_S, SERVO_LATENCY_S, CONTROLLER_CYCLE_S = 0.02, 0.1, 0.02
READY = "[0.0, -0.785398, 0.0, -2.356194, 0.0, 1.570796, 0.785398]"
CASES = {
    "interbotix": Case("interbotix", "interbotix_driver", 0.25, 5e-4),  # the profile time of the motors
    "trajectory": Case("trajectory", "trajectory_controllers", 0.105 + 2 * CONTROLLER_CYCLE_S, 1e-3),  # the smoothing of the trajectories
    "servo_twist_jazzy": Case("servo_twist", "servo", SERVO_LATENCY_S + 2 * SERVO_CYCLE_S, 1e-2, settings={"servo": "jazzy"}),
    "servo_twist_auto": Case("servo_twist", "servo", SERVO_LATENCY_S + 2 * SERVO_CYCLE_S, 1e-2),
    "servo_twist_humble": Case("servo_twist", "servo", 2 * SERVO_CYCLE_S, 1e-2, settings={"servo": "humble"},
                               arguments=("-p", "distro:=humble")),
    "servo_pose": Case("servo_pose", "servo", SERVO_LATENCY_S + 2 * SERVO_CYCLE_S, 5e-4),
    "fr3": Case("servo_twist", "servo", SERVO_LATENCY_S + 2 * SERVO_CYCLE_S, 1e-2, robot="fr3",
                arguments=("-p", "robot:=fr3", "-p", f"start:={READY}")),
}


class World(Node):
    """Policy, operator and observer in the test's own process."""

    def __init__(self, context: rclpy.Context, robot: str, call: Callable[[Any, Any], Any]) -> None:
        super().__init__("world", context=context)
        self.call = call
        self.profile = read_robot(robot)
        urdf = (Path(__file__).parents[2] / "config" / "robots" / self.profile.arm.urdf).read_text()
        self.kinematics = Kinematics(urdf, self.profile.arm.ee_link, self.profile.arm.joints, self.profile.base_frame)
        self.states: list[JointState] = []
        self.reports: list[CommandReport] = []
        self.refusals: list[str] = []
        self.events: list[str] = []
        self.pwm: list[float] = []
        self.drivers: list[str] = []
        self.late_ms = 0.0
        self.create_subscription(JointState, "joint_states", self.states.append, 1000)
        self.create_subscription(CommandReport, "command_report", self.reports.append, 1000)
        self.create_subscription(String, "refusals", lambda message: self.refusals.append(message.data), 100)
        self.create_subscription(String, "events", lambda message: self.events.append(message.data), 100)
        self.create_subscription(Float64, "pwm", lambda message: self.pwm.append(message.data), 1000)
        self.create_subscription(String, "driver", lambda message: self.drivers.append(message.data), LATCHED)
        self.create_subscription(DiagnosticArray, "/diagnostics", self.on_diagnostics, 10)
        self.chunks = self.create_publisher(ActionChunkMessage, "action_chunk", NEWEST_RELIABLE)
        self.set_driver = self.create_client(SetDriver, "set_driver")
        self.stop = self.create_client(Trigger, "emergency_stop")
        self.sequence = 0

    def on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            for pair in status.values:
                if pair.key == "tick_late_max_ms":
                    self.late_ms = max(self.late_ms, float(pair.value))

    def until(self, good: Callable[[], Any], what: str, heard: Sequence[object] = ()) -> None:
        end = time.monotonic() + DEADLINE_S
        while not good():
            assert time.monotonic() < end, (f"waited {DEADLINE_S} s for: {what}; drivers {self.drivers[-3:]}, "
                                            f"reasons {[report.stop_reason for report in self.reports[-3:]]}, heard {heard[-1:]}")
            time.sleep(0.005)

    def ask_for_policy(self) -> str:
        """Empty when it was given, else the reason why not."""
        answer = self.call(self.set_driver, SetDriver.Request(driver=SetDriver.Request.POLICY))
        return "" if answer.success else answer.reason

    def start_policy(self) -> list[str]:
        """Ask until POLICY is given; returns the refusals on the way."""
        self.until(self.chunks.get_subscription_count, "command_node to be found")
        reasons: list[str] = []

        def given() -> bool:
            reasons.append(self.ask_for_policy())
            time.sleep(0.02)
            return not reasons[-1]

        self.until(given, "POLICY to be given", reasons)
        return reasons[:-1]

    def start_policy_again(self) -> None:
        """From HOLD, so that an observation that expired before does not end it."""
        assert self.call(self.set_driver, SetDriver.Request(driver=SetDriver.Request.HOLD)).success
        self.start_policy()

    def refused(self, pattern: str) -> None:
        """Ask until POLICY is refused for this reason."""
        self.until(self.chunks.get_subscription_count, "command_node to be found")
        reasons: list[str] = []

        def seen() -> bool:
            reasons.append(self.ask_for_policy())
            time.sleep(0.02)
            assert reasons[-1], "POLICY was given"
            return re.search(pattern, reasons[-1]) is not None

        self.until(seen, f"a refusal that says {pattern!r}", reasons)

    def send(self, *steps: Sequence[float]) -> int:
        """Publish a chunk that was observed now; returns its stamp."""
        self.sequence += 1
        stamp_ns = int(self.get_clock().now().nanoseconds)
        chunk = ActionChunk(tuple(map(Action.from_vector, steps)), STEP_S, stamp_ns)
        self.chunks.publish(to_chunk_message(chunk, ChunkIdentity(7, 1, self.sequence), self.profile.base_frame))
        return stamp_ns

    def grip(self, opening: float) -> None:
        """Steps that only move the gripper: its opening changes only while a step plays, and at a limited rate."""
        for _ in range(4):
            self.send(step(0.0, gripper=opening))
            time.sleep(STEP_S)

    def track(self, since: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Stamps [s] and positions [n, 3] of the end effector, from the joint states."""
        states = [state for state in self.states[since:] if self.profile.arm.joints[0] in state.name]
        order = [states[0].name.index(name) for name in self.profile.arm.joints]
        stamps_s = np.array([to_ns(state.header.stamp) for state in states]) / SECOND_NS
        return stamps_s, np.array([self.kinematics.forward(np.array(state.position)[order]).position_m for state in states])

    def hand(self) -> np.ndarray:
        """Newest position of the end effector."""
        return self.track(-1)[1][-1]

    def finger(self) -> float:
        return float(self.states[-1].position[self.states[-1].name.index("left_finger")])

    def rest(self) -> None:
        """Wait until the arm has not moved for QUIET_S."""
        def still() -> bool:
            stamps_s, positions = self.track(-100)
            recent = positions[stamps_s > stamps_s[-1] - QUIET_S]
            return stamps_s[-1] - stamps_s[0] > QUIET_S and np.ptp(recent, axis=0).max() < SAME_M / 10

        self.until(lambda: len(self.states) > 100 and still(), "the arm to rest")

    def lateness_s(self) -> float:
        """How late this machine was in this run: a tick of command_node, and a cycle of the stand-in."""
        stamps_s, _ = self.track()
        return self.late_ms / 1e3 + max(0.0, float(np.diff(stamps_s).max()) - JOINT_STATES_S)


@pytest.fixture
def start(ros_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command; it is killed at the end of the test if it still lives."""
    started: list[subprocess.Popen[str]] = []

    def launch(command: Sequence[str]) -> subprocess.Popen[str]:
        bounded = ["timeout", "-k", "5", "120", *command] if shutil.which("timeout") else list(command)
        log = (tmp_path / f"process_{len(started)}.log").open("w")
        started.append(subprocess.Popen(bounded, env=ros_environment, stdout=log, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield launch
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        process.wait(10)


@pytest.fixture
def meet(ros_domain_id: int, ask_service: Callable[[Any, Any], Any]) -> Iterator[Callable[..., World]]:
    """Make the world; it spins in a thread of its own."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain_id)
    executor = SingleThreadedExecutor(context=context)
    thread = threading.Thread(target=executor.spin, daemon=True)
    nodes: list[World] = []

    def make(robot: str) -> World:
        nodes.append(World(context, robot, ask_service))
        executor.add_node(nodes[0])
        thread.start()
        return nodes[0]

    yield make
    executor.shutdown()
    if nodes:
        thread.join()
        nodes[0].destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def play(start: Callable[..., Any], meet: Callable[[str], World], sourced: Callable[..., list[str]], checkout: Path,
         tmp_path: Path) -> Callable[..., World]:
    """The world with a case's command_node and stand-in running; `arguments` are more of the stand-in's, None: without it."""

    def begin(case: Case, arguments: Sequence[str] | None = ()) -> World:
        folder = checkout / "config" / "robots"
        content = yaml.safe_load((folder / f"{case.robot}.yaml").read_text())
        content["output"] = case.output
        described = content["outputs"][case.output]
        if case.output == "servo_twist":
            described["command_topic"] = "servo_node/delta_twist_cmds"
        described |= case.settings
        if case.stand_in == "servo":
            described["gripper"] = "none"  # Servo moves no gripper
        (tmp_path / "robot.yaml").write_text(yaml.safe_dump(content))
        shutil.copy(folder / content["arm"]["urdf"], tmp_path)
        if arguments is not None:
            start(sourced(sys.executable, STAND_INS / f"{case.stand_in}.py", "--ros-args", *case.arguments, *arguments))
        world = meet(case.robot)
        world.command = start(sourced(sys.executable, "-m", "openvla_ros.ros.command_node", "--ros-args", "-p",
                                      f"robot:={tmp_path / 'robot.yaml'}"))
        return world

    return begin


def step(dx: float = STEP_M, gripper: float = 1.0) -> list[float]:
    return [dx, 0.0, 0.0, 0.0, 0.0, 0.0, gripper]


@pytest.mark.parametrize("name", [name for name in CASES if name != "servo_twist_auto"])
def test_steps_reach_the_arm_and_it_stops_in_time(name: str, play: Callable[..., World], record_property: Callable[..., None]) -> None:
    case = CASES[name]
    world = play(case)
    world.until(lambda: len(world.states) > 50, "joint states")
    world.start_policy()
    _, before = world.track()
    assert np.ptp(before, axis=0).max() < SAME_M  # taking over moves nothing

    begun_s, since = time.monotonic(), len(world.states) - 1
    for number in range(5):
        time.sleep(max(0.0, begun_s + number * STEP_S - time.monotonic()))
        world.send(step())
    world.until(lambda: sum(report.step_started for report in world.reports) == 5, "five steps")
    world.rest()
    stamps_s, positions = world.track(since)
    speed_m_s = STEP_M / STEP_S
    travelled, target = positions[-1] - before[-1], world.reports[-1].target_pose.position
    assert travelled == pytest.approx([5 * STEP_M, 0.0, 0.0], abs=6e-3 + speed_m_s * world.lateness_s())  # a late tick shortens a step
    assert positions[-1] == pytest.approx([target.x, target.y, target.z], abs=case.tolerance_m)
    for window_s in (0.4, 1.0):  # never faster than steps come
        later = np.searchsorted(stamps_s, stamps_s + window_s)
        # From stamp to stamp, which is a little longer than the window.
        ahead_m = [np.linalg.norm(positions[end] - positions[begin]) - speed_m_s * (stamps_s[end] - stamps_s[begin])
                   for begin, end in enumerate(later) if end < len(positions)]
        assert max(ahead_m) <= speed_m_s * (2 * SERVO_CYCLE_S + world.lateness_s()) + SAME_M

    # The camera stops: a long chunk is played until its observation is too old.
    world.start_policy_again()
    since, stamp_ns = len(world.states) - 1, world.send(*[step(-STEP_M)] * 10)
    world.until(lambda: np.linalg.norm(world.hand() - positions[-1]) > STEP_M, "the arm to move")
    world.rest()
    limits = world.profile.limits
    stopped_s = last_motion_s(world, since) - stamp_ns / SECOND_NS
    bound_s = AGE_S + TICK_S + limits.longest_ramp_s + case.downstream_s + JOINT_STATES_S
    record_property("stop_s", round(stopped_s, 3))
    print(f"{name}: at rest {stopped_s:.3f} s after the last observation; bound {bound_s:.3f} s, machine late {world.lateness_s():.3f} s")
    assert AGE_S - TICK_S < stopped_s <= bound_s + world.lateness_s()

    # An emergency stop in the middle of a step.
    world.start_policy_again()
    since, start_m = len(world.states) - 1, world.hand()
    world.send(*[step()] * 10)
    world.until(lambda: np.linalg.norm(world.hand() - start_m) > STEP_M, "the arm to move")
    assert world.call(world.stop, Trigger.Request()).success
    world.until(lambda: world.reports[-1].driver == CommandReport.STOPPED, "STOPPED")
    told_ns = next(to_ns(report.header.stamp) for report in world.reports if report.driver == CommandReport.STOPPED)
    world.rest()
    emergency_s = last_motion_s(world, since) - told_ns / SECOND_NS
    record_property("emergency_stop_s", round(emergency_s, 3))
    print(f"{name}: at rest {emergency_s:.3f} s after an emergency stop; bound {TICK_S + case.downstream_s:.3f} s")
    assert emergency_s <= TICK_S + case.downstream_s + JOINT_STATES_S + world.lateness_s()
    assert world.refusals == []  # no trajectory was one that a controller refuses


def last_motion_s(world: World, since: int) -> float:
    """Stamp of the last joint states that are not yet those of the arm at rest."""
    stamps_s, positions = world.track(since)
    moving = np.flatnonzero(np.linalg.norm(positions - positions[-1], axis=1) > SAME_M)
    return float(stamps_s[moving[-1]])


# ---------------------------------------------------------------------- what must be set up before the arm may move


def test_interbotix_sets_the_profile_by_registers_and_presses_the_gripper(play: Callable[..., World]) -> None:
    world = play(CASES["interbotix"])
    world.until(lambda: world.states, "joint states")
    assert any("not ready yet" in reason for reason in world.start_policy())
    world.until(lambda: len(world.events) >= 2, "the registers", world.events)
    assert world.events == ["arm Profile_Velocity 250", "arm Profile_Acceleration 100"]  # and no mode was changed

    obstacle = world.create_publisher(Float64, "obstacle", 1)
    opened_m = world.profile.grippers["interbotix_single"].open
    world.grip(1.0)
    world.until(lambda: world.finger() > opened_m - 0.0015, "the gripper to open")
    assert max(world.pwm) > 100.0  # positive opens
    assert world.finger() < opened_m + 0.0015  # it eased before the end

    obstacle.publish(Float64(data=0.025))
    world.grip(0.0)
    world.until(lambda: world.pwm[-1] == -FULL_PWM, "the fingers to press", world.pwm)
    assert world.finger() == pytest.approx(0.025, abs=1e-4)
    assert world.call(world.set_driver, SetDriver.Request(driver=SetDriver.Request.HOLD)).success
    pressed = len(world.pwm)
    time.sleep(QUIET_S)
    assert world.pwm[-1] == -FULL_PWM and len(world.pwm) == pressed  # what is held is not dropped; the motor keeps its last value

    world.command.send_signal(signal.SIGTERM)
    assert world.command.wait(10) == 0
    world.until(lambda: world.pwm[-1] == 0.0, "the force to end with the node", world.pwm)


def test_interbotix_refuses_what_would_not_follow(play: Callable[..., World]) -> None:
    """Four things are wrong at first, and are put right one after the other."""
    world = play(CASES["interbotix"], ["-p", "arm_mode:=velocity", "-p", "profile_type:=velocity", "-p", "torque:=false",
                                       "-p", "gripper_mode:=current"])
    parameters = world.create_client(SetParameters, "xs_sdk/set_parameters")
    for name, right, reason in (
            ("arm_mode", "position", r"mode 'velocity' .* expected 'position' and 'time'.* would drop the arm"),
            ("profile_type", "time", r"profile type 'velocity'.*mode_configs:=config/interbotix/wx250s_modes.yaml"),
            ("torque", True, "torque of the arm is off"),
            ("gripper_mode", "pwm", "gripper is in mode 'current', expected 'pwm' or 'linear_position'")):
        world.refused(reason)
        if name != "gripper_mode":
            assert world.events == []  # of an arm that is not right nothing is set
        answer = world.call(parameters, SetParameters.Request(parameters=[Parameter(name, value=right).to_parameter_msg()]))
        assert all(result.successful for result in answer.results)
    world.start_policy()


def at_rest(world: World) -> JointState:
    state = JointState(name=list(world.profile.arm.joints), position=[0.0, -0.4, 0.3, 0.0, 1.6, 0.0])
    state.header.stamp = world.get_clock().now().to_msg()
    return state


@pytest.mark.parametrize(("name", "halt", "harmless"), [("servo_twist_auto", 5, 4), ("servo_twist_humble", 4, 5), ("servo_pose", 2, 6)])
def test_a_halt_that_servo_reports_ends_policy(name: str, halt: int, harmless: int, play: Callable[..., World]) -> None:
    """The same code means another thing on Humble and on Jazzy."""
    world = play(CASES[name])
    statuses = world.create_publisher(Int8, "servo_node/pretend_status", 1)
    world.until(lambda: world.states, "the stand-in")
    world.start_policy()
    if name == "servo_twist_auto":
        time.sleep(QUIET_S)
        world.start_policy()  # had Servo been found late, POLICY would have ended
    world.until(statuses.get_subscription_count, "the stand-in to listen")
    statuses.publish(Int8(data=harmless))
    time.sleep(QUIET_S)
    assert world.drivers[-1] == "POLICY"
    statuses.publish(Int8(data=halt))
    world.until(lambda: world.drivers[-1] == "HOLD", "HOLD")
    world.until(lambda: f"MoveIt Servo reports status {halt}" in world.reports[-1].stop_reason, "the reason")
    world.refused("MoveIt Servo reports status")
    statuses.publish(Int8(data=0))
    world.start_policy()


@pytest.mark.parametrize(("name", "reason"), [
    ("interbotix", r"get_robot_info is not there\. Start the Interbotix driver"),
    ("servo_twist_jazzy", r"servo_node/switch_command_type is not there\. Start MoveIt Servo \(jazzy\)"),
    ("servo_twist_humble", r"servo_node/start_servo is not there\. Start MoveIt Servo \(humble\)"),
    ("trajectory", "nobody listens on /arm_controller/joint_trajectory"),
])
def test_nobody_drives_while_the_consumer_is_away(name: str, reason: str, play: Callable[..., World]) -> None:
    world = play(CASES[name], None)
    publisher = world.create_publisher(JointState, "joint_states", 10)
    world.create_timer(0.02, lambda: publisher.publish(at_rest(world)))
    world.refused(reason)


def test_another_publisher_of_trajectories_is_an_obstacle(play: Callable[..., World]) -> None:
    world = play(CASES["trajectory"])
    rival = world.create_publisher(JointTrajectory, "gripper_controller/joint_trajectory", 1)
    world.refused("another publisher: /world")
    world.executor.create_task(world.destroy_publisher, rival)
    world.start_policy()


def test_trajectory_opens_the_gripper_in_metres(play: Callable[..., World]) -> None:
    world = play(CASES["trajectory"])
    world.until(lambda: world.states, "joint states")
    world.start_policy()
    for opening, finger_m in ((1.0, 0.037), (0.0, 0.015)):
        world.grip(opening)
        world.until(lambda wanted=finger_m: abs(world.finger() - wanted) < 1e-4, f"the finger at {finger_m}")
    assert world.refusals == []


# ---------------------------------------------------------------------- without the messages, and the stand-ins themselves


@pytest.mark.skipif(find_spec("interbotix_xs_msgs") is not None, reason="interbotix_xs_msgs is installed here")
@pytest.mark.parametrize(("output", "package"), [("interbotix", "interbotix_xs_msgs"), ("servo_pose", "moveit_msgs")])
def test_an_output_without_its_messages_says_what_to_install(output: str, package: str, ros_environment: dict[str, str],
                                                             checkout: Path, tmp_path: Path) -> None:
    folder = checkout / "config" / "robots"
    content = yaml.safe_load((folder / "wx250s.yaml").read_text()) | {"output": output}
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(content))
    shutil.copy(folder / "wx250s.urdf", tmp_path)
    command = [sys.executable, "-m", "openvla_ros.ros.command_node", "--ros-args", "-p", f"robot:={tmp_path / 'robot.yaml'}"]
    ended = subprocess.run(command, env=ros_environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert f"{package}, which is not installed" in ended.stderr and "choose another output" in ended.stderr


def test_the_stand_in_for_servo_says_no(start: Callable[..., Any], meet: Callable[[str], World], sourced: Callable[..., list[str]]) -> None:
    """Twists are dropped before the switch, when their stamp is old, and in another frame; with all three right the arm moves."""
    start(sourced(sys.executable, STAND_INS / "servo.py", "--ros-args", "-p", "distro:=humble"))
    world = meet("wx250s")
    twists = world.create_publisher(TwistStamped, "servo_node/delta_twist_cmds", 1)
    world.until(lambda: world.states and twists.get_subscription_count(), "the stand-in")
    _, before = world.track()

    def moved_m(age_s: float, frame_id: str) -> float:
        for _ in range(15):
            message = TwistStamped()
            message.header.frame_id = frame_id
            message.header.stamp = to_time(world.get_clock().now().nanoseconds - round(age_s * SECOND_NS))
            message.twist.linear.x = 0.2
            twists.publish(message)
            time.sleep(0.02)
        world.rest()
        return float(world.track(-1)[1][-1][0] - before[-1][0])

    assert moved_m(0.0, "wx250s/base_link") == pytest.approx(0.0, abs=1e-9)  # it was not started
    assert world.call(world.create_client(Trigger, "servo_node/start_servo"), Trigger.Request()).success
    assert moved_m(0.11, "wx250s/base_link") == pytest.approx(0.0, abs=1e-9)
    assert moved_m(0.0, "world") == pytest.approx(0.0, abs=1e-9)
    assert moved_m(0.0, "wx250s/base_link") > 0.03


def test_the_stand_in_for_the_controllers_says_no(start: Callable[..., Any], meet: Callable[[str], World]) -> None:
    """A trajectory that ends in the past, whose times do not grow, or that does not end at rest is refused as a whole."""
    start([sys.executable, str(STAND_INS / "trajectory_controllers.py")])
    world = meet("wx250s")
    trajectories = world.create_publisher(JointTrajectory, "arm_controller/joint_trajectory", 10)
    world.until(lambda: world.states and trajectories.get_subscription_count(), "the stand-in")
    joints = list(world.profile.arm.joints)
    where = [0.1, -0.4, 0.3, 0.0, 1.6, 0.0]

    def point(time_s: float, velocity: float = 0.0) -> JointTrajectoryPoint:
        return JointTrajectoryPoint(positions=where, velocities=[velocity] * 6, time_from_start=to_duration(time_s))

    past = JointTrajectory(joint_names=joints, points=[point(0.5)])
    past.header.stamp = to_time(world.get_clock().now().nanoseconds - SECOND_NS)
    wrong = {"in the past": past, "do not grow": JointTrajectory(joint_names=joints, points=[point(0.2), point(0.2)]),
             "ends with velocity": JointTrajectory(joint_names=joints, points=[point(0.2, 0.1)]),
             "joints": JointTrajectory(joint_names=joints[:5], points=[point(0.2)])}
    for number, (reason, message) in enumerate(wrong.items(), 1):
        trajectories.publish(message)
        world.until(lambda count=number: len(world.refusals) == count, reason)
        assert reason in world.refusals[-1]
    world.rest()
    assert math.isclose(world.states[-1].position[0], 0.0)
    trajectories.publish(JointTrajectory(joint_names=joints, points=[point(0.2)]))
    world.until(lambda: abs(world.states[-1].position[0] - 0.1) < 1e-6, "the arm to follow")
