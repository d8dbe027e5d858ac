"""What the fault scenarios share: real nodes as processes, and a world around them that can be made to fail.

A stop is judged by the stamps of the commands themselves: the stamp of the first zero after the last motion, less the moment that the
arm may count from (an observation's stamp, a report's), against the bound of the design plus the worst lateness of a tick that
command_node itself recorded in the same run. Nothing here measures wall time.

`make test` runs the scenarios that are marked `representative`, `make test-faults` all of them.
"""

from __future__ import annotations

import math
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest

STOPS = pytest.StashKey[list["Stop"]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STOPS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only `-m` with the word faults brings all scenarios; whatever else is chosen, the representative ones come."""
    if "faults" in config.option.markexpr:
        return
    here = Path(__file__).parent
    left = [item for item in items if here in item.path.parents and not item.get_closest_marker("representative")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(autouse=True)
def said_stops(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a scenario measured goes along with its report, also from one pytest worker to the one that writes the summary."""
    stops = request.config.stash[STOPS]
    before = len(stops)
    yield
    request.node.user_properties += [("stop", list(stop)) for stop in stops[before:]]


class Stop(NamedTuple):
    """How long the arm went on, and how long it was allowed to [s]."""

    output: str
    kind: str  # what the time counts from
    scenario: str
    stop_s: float
    bound_s: float
    late_s: float  # worst lateness of a tick in this run


try:
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
    from geometry_msgs.msg import TwistStamped
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState
    from openvla_msgs.msg import ActionChunk as ActionChunkMessage
    from openvla_msgs.msg import CommandReport
    from openvla_msgs.srv import SetDriver
    from rcl_interfaces.srv import SetParameters
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.node import Node
    from rclpy.parameter import Parameter
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import Image, JointState, Joy
    from std_msgs.msg import Bool, String
    from std_srvs.srv import Trigger

    from openvla_ros.action.command import Twist, advanced
    from openvla_ros.action.kinematics import Kinematics
    from openvla_ros.action.pose import from_rpy
    from openvla_ros.contract import Action, ActionChunk, ChunkIdentity
    from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, SECOND_NS, to_chunk_message, to_ns, to_time
    from openvla_ros.ros.profile import read_robot, read_urdf
except ImportError:  # the marker `ros` skips every scenario, with the reason
    Node = object

DEADLINE_S = 20.0
"""How long anything is waited for, on a machine that is busy with other things."""
Ask = Callable[[Any, Any], Any]
"""(client, request) -> answer."""
QUIET_S = 0.4
"""How long silence is listened to; a dozen ticks."""
AGE_S, RESUME_S = 1.0, 0.3
"""max_observation_age_s and resume_within_s of the scenarios: room for a busy machine, and a HOLD that comes soon."""
TICK_S, RAMP_S, ZEROS_S = 1 / 30, 0.105, 0.5
"""Of the profile: 0.25 m/s and 2.5 m/s^2, 1.25 rad/s and 12 rad/s^2, 30 Hz."""
STOP_S = AGE_S + TICK_S + RAMP_S
"""The bound of the design, from the stamp of the observation on."""
FULL = (0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
"""The largest step: the arm moves at its top speed."""
CAMERA_S = 1 / 15


class World(Node):
    """Camera, operator, policy, arm and clock in the test's own process. What a scenario distorts, `settle` puts right again."""

    age_s, stop_s, tick_s, ramp_s, quiet_s, full = AGE_S, STOP_S, TICK_S, RAMP_S, QUIET_S, FULL

    def __init__(self, context: rclpy.Context, namespace: str, stops: list[Stop], call: Ask) -> None:
        super().__init__("world", context=context, namespace=namespace)
        self.call = call
        self.output = "servo_twist"
        self._stops = stops
        self.twists: list[TwistStamped] = []
        self.reports: list[CommandReport] = []
        self.drivers: list[str] = []
        self.heard: list[ActionChunkMessage] = []  # what any policy said
        self.health: dict[str, DiagnosticStatus] = {}
        self.health_ns = 0
        self.create_subscription(TwistStamped, "delta_twist_cmds", self.twists.append, 1000)
        self.create_subscription(CommandReport, "command_report", self.reports.append, 1000)
        self.create_subscription(String, "driver", lambda message: self.drivers.append(message.data), LATCHED)
        self.create_subscription(ActionChunkMessage, "action_chunk", self.heard.append, 100)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.requests = self.create_publisher(Bool, "emergency_stop_request", LATCHED)
        self.operator = self.create_publisher(String, "instruction", LATCHED)
        self.camera = self.create_publisher(Image, "image", QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE))
        self.clock = self.create_publisher(Clock, "/clock", 10)
        self.chunks: Any = None
        self.set_driver = self.create_client(SetDriver, "set_driver")
        self.stop = self.create_client(Trigger, "emergency_stop")
        self.reset = self.create_client(Trigger, "reset_stop")
        self.parameters = self.create_client(SetParameters, "command_node/set_parameters")
        self.lifecycle = self.create_client(ChangeState, "policy_node/change_state")
        self.session, self.sequence = random.getrandbits(63), 0
        self.sim_ns: int | None = None  # simulated time, where there is one
        self.clock_rests, self._player_ends = threading.Event(), threading.Event()
        self._player: threading.Thread | None = None
        self.distort: Callable[[Image], Image | None] | None = None  # what a broken camera makes of a picture; None: it is well
        self.seen_ns = 0  # stamp of the newest good picture, or of the newest good chunk's observation
        self.kinematics: Any = None  # of the arm, where there is one
        self.blocked, self.side_m = False, 0.08
        self.distort_joints: Callable[[JointState], JointState | None] | None = None
        self.joints_ns = 0  # stamp of the newest good joint states
        self._pictures = np.random.default_rng(1)
        self._filming = threading.Event()
        self._film: threading.Thread | None = None

    # ------------------------------------------------------------------ waiting and asking

    def until(self, good: Callable[[], Any], what: str, meanwhile: Callable[[], Any] = lambda: None) -> None:
        end = time.monotonic() + DEADLINE_S
        while not good():
            assert time.monotonic() < end, (
                f"waited {DEADLINE_S} s for: {what}; drivers {self.drivers[-3:]}, "
                f"reasons {[report.stop_reason for report in self.reports[-3:]]}, "
                f"health {[f'{name}: {status.message}' for name, status in self.health.items()]}")
            meanwhile()
            time.sleep(0.005)

    def choose(self, driver: str) -> Any:
        return self.call(self.set_driver, SetDriver.Request(driver=getattr(SetDriver.Request, driver)))

    def change(self, name: str, value: float) -> Any:
        parameter = Parameter(name, value=value).to_parameter_msg()
        return self.call(self.parameters, SetParameters.Request(parameters=[parameter])).results[0]

    def transition(self, name: str) -> None:
        """Until it succeeded. Asked again now and then: a node that was killed is still there for discovery, and answers nothing."""
        request = ChangeState.Request(transition=Transition(id=getattr(Transition, f"TRANSITION_{name}")))
        assert self.lifecycle.wait_for_service(DEADLINE_S)
        futures: list[Any] = []

        def ask() -> None:
            if time.monotonic() - asked[-1] > 2.0:
                futures.append(self.lifecycle.call_async(request))
                asked.append(time.monotonic())

        asked = [0.0]
        self.until(lambda: any(future.done() and future.result().success for future in futures), f"policy_node to {name}", ask)

    def emergency_stop(self) -> None:
        assert self.call(self.stop, Trigger.Request()).success

    def have_arm(self) -> None:
        """An arm behind the twists: it follows each for a tick and says its joints 50 times a second."""
        profile = read_robot("wx250s")
        assert profile.arm is not None
        self.kinematics = Kinematics(read_urdf("wx250s", profile), "wx250s/ee_gripper_link", profile.arm.joints)
        self.joints, self.efforts, self.joint_names = np.zeros(6), [0.0] * 6, list(profile.arm.joints)
        self.place(0.15)
        self.states = self.create_publisher(JointState, "joint_states", 10)
        self.hand = self.create_publisher(TwistStamped, "teleop/delta_twist_cmds", NEWEST_RELIABLE)
        self.joy = self.create_publisher(Joy, "joy", NEWEST_RELIABLE)
        self.create_subscription(TwistStamped, "delta_twist_cmds", self._follow, 1000)
        self.create_timer(0.02, self._say_joints)

    def place(self, x_m: float, z_m: float = 0.15) -> None:
        """Put the arm somewhere, as nobody commanded it; its hand points down. Far from where it was, so that no target is kept."""
        self.side_m = -self.side_m
        pose = from_rpy(np.array([x_m, self.side_m, z_m]), np.array([0.0, math.pi / 2, 0.0]))
        solution = self.kinematics.inverse(pose, np.array([0.0, -0.3, 0.5, 0.0, 1.3, 0.0]), np.inf)
        assert solution.reached
        self.joints = solution.positions

    def _follow(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        twist = Twist(np.array([linear.x, linear.y, linear.z]), np.array([angular.x, angular.y, angular.z]))
        if twist.moving and not self.blocked:
            self.joints = self.kinematics.inverse(advanced(self.kinematics.forward(self.joints), twist, TICK_S), self.joints).positions

    def _say_joints(self) -> None:
        message = JointState(name=self.joint_names, position=self.joints.tolist(), effort=self.efforts)
        message.header.stamp = to_time(self.now_ns())
        distort = self.distort_joints
        if distort is None:
            self.joints_ns = to_ns(message.header.stamp)
            self.states.publish(message)
        elif (broken := distort(message)) is not None:
            self.states.publish(broken)

    def push(self, x_m_s: float, y_m_s: float = 0.0, z_m_s: float = 0.0) -> Any:
        """What a teleop would say now; it may be spoilt before it is published on `hand`."""
        message = TwistStamped()
        message.header.stamp, message.header.frame_id = to_time(self.now_ns()), "wx250s/base_link"
        message.twist.linear.x, message.twist.linear.y, message.twist.linear.z = x_m_s, y_m_s, z_m_s
        return message

    def push_for_ticks(self, ticks: int, *velocity: float) -> None:
        """Push for as long as it takes the arm to be sent so many commands."""
        count = len(self.twists) + ticks
        self.until(lambda: len(self.twists) >= count, "commands", lambda: (self.hand.publish(self.push(*velocity)), time.sleep(0.015)))

    def press(self, deflection: float, deadman: bool) -> int:
        """One message of a joystick, its left stick and its deadman; returns its stamp."""
        message = Joy(axes=[0.0, deflection, *[0.0] * 6], buttons=[int(deadman and number == 5) for number in range(11)])
        stamp_ns = self.now_ns()
        message.header.stamp = to_time(stamp_ns)
        self.joy.publish(message)
        return stamp_ns

    def beat(self) -> None:
        """Say `enable` ten times a second until `heart` is cancelled; `beaten_ns` is when it was said last."""
        enables = self.create_publisher(Bool, "enable", NEWEST_RELIABLE)

        def say() -> None:
            self.beaten_ns = self.now_ns()
            enables.publish(Bool(data=True))

        self.heart = self.create_timer(0.1, say)

    def drive_by(self, act: Callable[[], Any]) -> tuple[int, int]:
        """Have a hand move the arm at a steady 0.1 m/s by doing something 50 times a second."""
        self.settle()
        twists, reports = len(self.twists), len(self.reports)
        self.until(lambda: self.drivers[-1] == "HUMAN" and any(speed(twist) > 0.099 for twist in self.twists[twists:]),
                   "the hand to move the arm", lambda: (act(), time.sleep(0.015)))
        return twists, reports

    def now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds) if self.sim_ns is None else self.sim_ns

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        self.health |= {status.name: status for status in message.status}
        if any("command_node" in status.name for status in message.status):
            self.health_ns = time.monotonic_ns()

    def value(self, key: str) -> str:
        """A number of command_node's newest diagnostics."""
        status = self.health.get(f"{self.get_namespace().rstrip('/')}/command_node: driver", DiagnosticStatus())
        return next((pair.value for pair in status.values if pair.key == key), "")

    def late_s(self) -> float:
        """The worst lateness of a tick so far, as command_node recorded it."""
        asked_ns = time.monotonic_ns()
        self.until(lambda: self.health_ns > asked_ns, "fresh diagnostics of command_node")
        return float(self.value("tick_late_max_ms")) / 1000

    # ------------------------------------------------------------------ what the world does

    def see(self, driver: str) -> None:
        self.until(lambda: self.drivers[-1:] == [driver], f"the driver {driver}")

    def see_report(self, since: int, good: Callable[[CommandReport], bool], what: str) -> CommandReport:
        """The first report since then that is like this."""
        self.until(lambda: any(good(report) for report in self.reports[since:]), what)
        return next(report for report in self.reports[since:] if good(report))

    def see_rule(self, since: int, rule: str) -> CommandReport:
        return self.see_report(since, lambda report: rule in report.rules, f"a report of the rule {rule!r}")

    def film(self) -> None:
        """Publish pictures from now on; stamps and pictures are new each time, as a living camera's are."""
        self._film = threading.Thread(target=self._run_camera, name="camera", daemon=True)
        self._filming.set()
        self._film.start()

    def _run_camera(self) -> None:
        while self._filming.is_set():
            message = self.picture()
            distort = self.distort
            if distort is None:
                self.seen_ns = to_ns(message.header.stamp)
                self.camera.publish(message)
            elif (broken := distort(message)) is not None:
                self.camera.publish(broken)
            time.sleep(CAMERA_S)

    def picture(self) -> Image:
        message = Image(height=48, width=64, encoding="rgb8", step=192)
        message.data = self._pictures.integers(0, 255, 48 * 64 * 3, dtype=np.uint8).tobytes()
        message.header.stamp = to_time(self.now_ns())
        return message

    def say(self, instruction: str) -> None:
        self.operator.publish(String(data=instruction))

    def request_stop(self, wanted: bool) -> None:
        self.requests.publish(Bool(data=wanted))

    def play_clock(self, rate: float = 1.0) -> None:
        """Simulated time from now on, told every 2 ms; it stands still while `clock_rests`, and `sim_ns` may be set."""
        self.sim_ns = 1_700_000_000 * SECOND_NS
        self._player = threading.Thread(target=self._run_clock, args=(rate,), name="clock", daemon=True)
        self._player.start()

    def _run_clock(self, rate: float) -> None:
        before = time.monotonic()
        while not self._player_ends.wait(0.002):
            now = time.monotonic()
            if not self.clock_rests.is_set():
                self.sim_ns += round((now - before) * rate * SECOND_NS)
                self.clock.publish(Clock(clock=to_time(self.sim_ns)))
            before = now

    def speak(self) -> None:
        """Be the policy: have a publisher of chunks."""
        if self.chunks is None:
            self.chunks = self.create_publisher(ActionChunkMessage, "action_chunk", NEWEST_RELIABLE)

    def another_policy(self) -> Any:
        return self.create_publisher(ActionChunkMessage, "action_chunk", NEWEST_RELIABLE)

    def another_commander(self) -> Any:
        return self.create_publisher(TwistStamped, "delta_twist_cmds", 10)

    def chunk(self, *steps: Sequence[float], age_s: float = 0.0, step_s: float = 0.2, frame_id: str = "wx250s/base_link",
              **identity: int) -> Any:
        """The next chunk that a policy would send; its message may be spoilt before it is published."""
        self.sequence += 1
        numbers = {"session": self.session, "generation": 1, "sequence": self.sequence} | identity
        content = ActionChunk(tuple(map(Action.from_vector, steps)), step_s, self.now_ns() - round(age_s * SECOND_NS))
        return to_chunk_message(content, ChunkIdentity(**numbers), frame_id)

    def settle(self) -> None:
        """Whatever the scenario before left: nothing is distorted, the driver is HOLD, and the topic of the arm is silent."""
        self.distort = self.distort_joints = None
        self.request_stop(False)
        if self.kinematics is not None:
            self.blocked, self.efforts = False, [0.0] * 6
            self.place(0.15)

        def holds() -> bool:
            if self.drivers[-1:] == ["STOPPED"]:
                self.call(self.reset, Trigger.Request())
            return bool(self.choose("HOLD").success)

        self.until(holds, "HOLD")
        self.see("HOLD")
        self.silence()

    def resume(self) -> None:
        self.until(lambda: self.choose("POLICY").success, "POLICY to be accepted")
        self.see("POLICY")

    def drive(self) -> tuple[int, int]:
        """Have the policy move the arm; returns how many commands and reports there were before."""
        self.settle()
        twists, reports = len(self.twists), len(self.reports)
        self.resume()
        self.await_motion(twists)
        return twists, reports

    def move(self) -> tuple[int, int]:
        """As `drive`, with a long chunk of our own at top speed; `seen_ns` is its observation's stamp."""
        self.settle()
        self.speak()
        self.until(self.chunks.get_subscription_count, "command_node to be found")
        twists, reports = len(self.twists), len(self.reports)
        self.resume()
        self.send_long()
        self.await_motion(twists, at_least=0.2)
        return twists, reports

    def send_long(self) -> None:
        message = self.chunk(*[FULL] * 20)
        self.seen_ns = to_ns(message.header.stamp)
        self.chunks.publish(message)

    def await_motion(self, since: int, at_least: float = 0.01) -> None:
        self.until(lambda: any(speed(twist) > at_least for twist in self.twists[since:]), "the arm to move")

    # ------------------------------------------------------------------ what the arm was sent

    def silence(self) -> None:
        """Wait until nothing was sent for QUIET_S; the last word was zero."""
        count, since = len(self.twists), time.monotonic()
        end = since + DEADLINE_S
        while time.monotonic() - since < QUIET_S:
            assert time.monotonic() < end, "the topic of the arm does not fall silent"
            if len(self.twists) != count:
                count, since = len(self.twists), time.monotonic()
            time.sleep(0.01)
        assert not self.twists or speed(self.twists[-1]) == 0.0, "the last command before silence moves the arm"

    def moved(self, since: int) -> bool:
        return any(speed(twist) > 0.0 for twist in self.twists[since:])

    def stays(self, driver: str = "HOLD") -> None:
        """Listen for QUIET_S: the driver is this one, and nothing moves."""
        count = len(self.twists)
        time.sleep(QUIET_S)
        assert self.drivers[-1] == driver and not self.moved(count)

    def rest_ns(self, since: int) -> int:
        """The stamp of the first zero after which nothing moved any more. Within limits all the way, and then silence."""
        self.silence()
        sent = self.twists[since:]
        assert all(linear(twist) <= 0.25 + 1e-6 and turning(twist) <= 1.25 + 1e-6 for twist in sent), "faster than the profile allows"
        last = max(index for index, twist in enumerate(sent) if speed(twist) > 0.0)
        return to_ns(sent[last + 1].header.stamp)

    def stops_within(self, bound_s: float, begin_ns: int, since: int, kind: str, scenario: str) -> None:
        """The arm rests at most `bound_s`, and what the latest tick was late, after `begin_ns`. `since`: commands before the scenario."""
        stop = Stop(self.output, kind, scenario, (self.rest_ns(since) - begin_ns) / SECOND_NS, bound_s, self.late_s())
        self._stops.append(stop)
        assert stop.stop_s <= stop.bound_s + stop.late_s, stop

    def stops_by_age(self, since: int, scenario: str) -> None:
        """The design's bound, from the newest observation that was good."""
        self.stops_within(STOP_S, self.seen_ns, since, "the observation's stamp", scenario)

    def stops_softly(self, report: CommandReport, since: int, scenario: str) -> None:
        """The tick that reported the fault already slows down, and the ramp ends in time."""
        self.stops_within(RAMP_S + TICK_S, to_ns(report.header.stamp), since, "the report of the fault", scenario)

    def stops_at_once(self, report: CommandReport, since: int, scenario: str) -> None:
        """Zeros without a ramp, in the very tick that reported it."""
        self.stops_within(0.0, to_ns(report.header.stamp), since, "the report of the stop", scenario)
        assert all(speed(twist) == 0.0 for twist in self.twists[since:] if to_ns(twist.header.stamp) >= to_ns(report.header.stamp))

    def close(self) -> None:
        self._filming.clear()
        self._player_ends.set()
        for thread in (self._film, self._player):
            if thread is not None:
                thread.join()


def linear(twist: TwistStamped) -> float:
    return math.hypot(twist.twist.linear.x, twist.twist.linear.y, twist.twist.linear.z)


def turning(twist: TwistStamped) -> float:
    return math.hypot(twist.twist.angular.x, twist.twist.angular.y, twist.twist.angular.z)


def speed(twist: TwistStamped) -> float:
    return linear(twist) + turning(twist)


class Child:
    """A node as a process, under `timeout` where there is one, so that nothing outlives the suite."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path, prefix: Sequence[str]) -> None:
        guard = ["timeout", "-k", "5", "300"] if shutil.which("timeout") else []
        self.log = log
        with log.open("w") as file:
            self._outer = subprocess.Popen([*prefix, *guard, *command], env=environment, stdout=file, stderr=subprocess.STDOUT)

    @property
    def inner(self) -> psutil.Process:
        """The node itself, under whatever it was started through."""
        process = psutil.Process(self._outer.pid)
        return ([process, *process.children(recursive=True)])[-1]

    def signal(self, number: signal.Signals) -> None:
        self.inner.send_signal(number)

    def wait(self) -> int:
        return self._outer.wait(DEADLINE_S)

    def end(self) -> None:
        if self._outer.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            self.wait()


class Stage:
    """One ROS domain with a world in it, and the nodes that a scenario starts there."""

    def __init__(self, domain_id: int, environment: dict[str, str], folder: Path, stops: list[Stop], call: Ask) -> None:
        self.environment = environment | {"ROS_DOMAIN_ID": str(domain_id), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
                                          "ROS_LOG_DIR": str(folder / "ros_log")}
        self.folder, self._domain_id, self._stops, self._call = folder, domain_id, stops, call
        self._children: list[Child] = []
        self._leave = ExitStack()

    def world(self, namespace: str = "") -> World:
        """A world whose callbacks run in a thread of their own."""
        context = rclpy.Context()
        rclpy.init(context=context, domain_id=self._domain_id)
        world, executor = World(context, namespace, self._stops, self._call), SingleThreadedExecutor(context=context)
        executor.add_node(world)
        thread = threading.Thread(target=executor.spin, name="world", daemon=True)
        thread.start()

        def end() -> None:
            world.close()
            executor.shutdown()
            thread.join()
            world.destroy_node()
            rclpy.try_shutdown(context=context)

        self._leave.callback(end)
        return world

    def start(self, module: str, *arguments: str, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None,
              **parameters: object) -> Child:
        command = [sys.executable, "-m", f"openvla_ros.ros.{module}", "--ros-args", *arguments]
        for name, value in parameters.items():
            command += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
        return self.run(module, command, prefix, environment)

    def run(self, name: str, command: Sequence[str], prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Child:
        """Any command, in this domain."""
        log = self.folder / f"{name}_{len(self._children)}.log"
        self._children.append(Child(command, self.environment | dict(environment or {}), log, prefix))
        return self._children[-1]

    def command_node(self, *arguments: str, **options: Any) -> Child:
        """command_node for an arm without joint states, so that a twist is all there is to it."""
        return self.start("command_node", *arguments, **{"robot": "wx250s_replay", "max_observation_age_s": AGE_S,
                                                         "resume_within_s": RESUME_S} | options)

    def policy_node(self, world: World, *arguments: str, **options: Any) -> Child:
        """policy_node, active, with an instruction; the scripted policy unless said otherwise."""
        child = self.start("policy_node", *arguments, **{"checkpoint": "scripted", "max_observation_age_s": AGE_S} | options)
        world.transition("CONFIGURE")
        world.transition("ACTIVATE")
        return child

    def close(self) -> None:
        for child in self._children:
            child.end()
        self._leave.close()


@pytest.fixture(scope="module")
def stages(hold_domain: Callable[[], AbstractContextManager[int]], clean_environment: dict[str, str],
           tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config, ask_service: Ask) -> Iterator[Callable[[], Stage]]:
    """Make stages, each in a ROS domain of its own. All end with the module."""
    with ExitStack() as stack:
        def make() -> Stage:
            number = stack.enter_context(hold_domain())
            stage = Stage(number, clean_environment, tmp_path_factory.mktemp("stage"), pytestconfig.stash[STOPS], ask_service)
            stack.callback(stage.close)
            return stage

        yield make


@pytest.fixture(scope="module")
def stage(stages: Callable[[], Stage]) -> Stage:
    """The stage that the scenarios of a module share."""
    return stages()


@pytest.fixture
def own_stage(stages: Callable[[], Stage]) -> Iterator[Stage]:
    """A stage of the scenario's own, for one that ends its nodes. It is closed with the scenario."""
    stage = stages()
    yield stage
    stage.close()
