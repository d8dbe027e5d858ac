"""Chunks and the operator's wishes in, commands for the arm out, at a fixed rate. Needs no torch, and outlives the policy.

All judgement is in `action/pilot.py`; this node converts, publishes and watches what the pilot cannot see: the ROS graph, the
clock, the parameters. One thread runs every callback; only the farewell comes from another, under the lock.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace

import numpy as np
from openvla_msgs.msg import ActionChunk as ActionChunkMessage
from openvla_msgs.msg import CommandReport
from openvla_msgs.srv import SetDriver
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.utilities import get_rmw_implementation_identifier
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from openvla_ros.action.handoff import Driver, next_driver
from openvla_ros.action.pilot import BY_HAND, TELEOP_AGE_S, WAITING, ZEROS_S, Decision, Inputs, Now, Pilot, Settings
from openvla_ros.action.teleop import TeleopRequest, Wish
from openvla_ros.contract import ReceivedChunk
from openvla_ros.errors import ActionError, ConfigurationError, HandoffRefused, OpenvlaRosError
from openvla_ros.ros.arm_listener import ArmListener
from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, SECOND_NS, from_chunk_message
from openvla_ros.ros.convert_command import to_report
from openvla_ros.ros.diagnostics import ERROR, OK, WARN, Diagnostics, Health
from openvla_ros.ros.lifetime import live
from openvla_ros.ros.outputs import Output, make_output
from openvla_ros.ros.parameters import Parameter, declare, read
from openvla_ros.ros.priority import HIGHEST_REALTIME, be_on_time
from openvla_ros.ros.profile import read_robot, read_urdf
from openvla_ros.ros.teleop_listener import TeleopListener, read_joystick
from openvla_ros.ros.transport import share_no_memory, shares_memory

AT_START = "by starting the node again"
IN_HOLD = "while the driver is HOLD; it holds from the next change to POLICY on"

PARAMETERS = (
    Parameter("robot", "wx250s", "Robot profile with the limits: a name in config/robots or the path of a .yaml file.",
              locked=AT_START),
    Parameter("output", "", "How commands reach the arm; empty: as the profile says. One of those that the profile describes.",
              locked=AT_START),
    Parameter("base_frame", "", "Frame of deltas and commands; empty: as the profile says. Give policy_node the same.",
              locked=AT_START),
    Parameter("rate_hz", 30.0, "Rate of the commands. MoveIt Servo halts when none comes for 0.1 s.", unit="Hz", low=20.0, high=200.0,
              locked=AT_START),
    Parameter("realtime_priority", 10, "SCHED_FIFO priority of the thread that ticks, where the system permits it (CAP_SYS_NICE, or "
              "ulimit -r); else it ticks with normal priority. diagnostics say which. 0: do not ask.", low=0, high=HIGHEST_REALTIME,
              locked=AT_START),
    Parameter("dry_run", False, "Compute and report everything, but have no publisher on the arm's topic.", locked=AT_START),
    Parameter("action_scale", 1.0, "Factor on translation and rotation of the policy's steps, for first runs.", low=0.0, high=1.0,
              locked=IN_HOLD),
    Parameter("max_observation_age_s", 0.6, "The arm stops when the picture behind a step is older. It bounds the stop time.",
              unit="s", low=0.05, high=5.0, locked=IN_HOLD),
    Parameter("resume_within_s", 1.0, "If no fresh chunk comes for this long after the last expired, POLICY falls to HOLD.",
              unit="s", low=0.0, high=5.0, locked=IN_HOLD),
    Parameter("preempt", False, "A new chunk replaces the playing step at once, instead of at its end.", locked=IN_HOLD),
    Parameter("max_joint_state_age_s", 0.25, "Nothing moves while the joint states are older.", unit="s", low=0.02, high=2.0,
              locked=IN_HOLD),
    Parameter("require_enable", False, "Nothing moves unless `enable` says true more often than every 0.5 s.", locked=IN_HOLD),
    Parameter("stuck_after", 25, "A warning after so many steps in a row that move nothing, or are all the same.", low=2, high=10000,
              locked=IN_HOLD),
    Parameter("start_pose", "", "Where go_to_start leads: a name in the profile; empty: its first.", locked=IN_HOLD),
    Parameter("joy", "", "Joystick map: a name in config/joy or the path of a .yaml file; empty: no joystick is listened to.",
              locked=AT_START),
)

ANYBODY = tuple(
    QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=reliability, durability=durability)
    for reliability, durability in (
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL),
        (ReliabilityPolicy.RELIABLE, DurabilityPolicy.VOLATILE),
        (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)))
"""Three subscriptions hear an emergency stop from every kind of publisher, and one that was latched before we came.
A message may then be heard twice, which changes nothing."""

WISHES = {Wish.TAKE_OVER: SetDriver.Request.HUMAN, Wish.RESUME: SetDriver.Request.POLICY, Wish.HOLD: SetDriver.Request.HOLD}

STOP_QUIET_S = 1.0
"""No reset before `emergency_stop_request` was not true for so long: the middleware does not tell two publishers of it apart, so one
that says false must not undo what the other repeats."""

WATCH_S = 0.1
"""How often graph and clock are looked at, in wall time."""

CLOCK_STILL_S = 0.25
"""Simulated time that does not move for so long counts as stopped."""

REPORT_S = 0.5
"""Longest time between two reports."""

FORGOTTEN = "(A process that was killed is forgotten after about 20 s.)"
"""The middleware keeps what ended without a word until its lease is over (Fast DDS: 20 s)."""


def require_fresh(request: TeleopRequest, stamp_ns: int | None, ros_ns: int) -> None:
    """Who drives is changed only by a message of now that was understood; a stop is taken at any age. Raises HandoffRefused."""
    if request.fault:
        raise HandoffRefused(request.fault)
    age_s = None if stamp_ns is None else (ros_ns - stamp_ns) / SECOND_NS
    if age_s is None or not abs(age_s) <= TELEOP_AGE_S:
        stamped = "is without a stamp" if age_s is None else f"was stamped {age_s:.3f} s ago"
        raise HandoffRefused(f"the teleop's message {stamped}, allowed are {TELEOP_AGE_S:g} s. Synchronise the clocks (chrony), and "
                             "press again.")


class CommandNode(Node):  # type: ignore[misc]
    """ROS name `command_node`. Raises OpenvlaRosError when it is made with a wrong parameter or profile."""

    def __init__(self) -> None:
        super().__init__("command_node")
        self.finished = threading.Event()
        declare(self, PARAMETERS, locked=self._locked)
        self.add_on_set_parameters_callback(self._keep)
        values = read(self, PARAMETERS)
        profile = read_robot(str(values["robot"]))
        profile = profile.through(str(values["output"])) if values["output"] else profile
        self._profile = replace(profile, base_frame=str(values["base_frame"]) or profile.base_frame)
        self._dry_run = bool(values["dry_run"])
        self._simulated = bool(self.get_parameter("use_sim_time").value)
        if self._simulated and self._profile.real and not self._dry_run:
            raise ConfigurationError(f"profile {self._profile.name!r} is a real arm: use_sim_time would time its motion by a "
                                     "recording. Use a profile with real: false, or dry_run.")
        joystick = read_joystick(str(values["joy"])) if values["joy"] else None
        self._arm = self._listen_to_arm(str(values["robot"]))
        self._pilot = Pilot(self._profile, self._settings(), self._arm.kinematics if self._arm else None)

        self._lock = threading.RLock()
        self._left = False
        self._received: deque[ReceivedChunk] = deque(maxlen=100)  # without a bound it would grow while simulated time rests
        self._obstacles: dict[str, str] = {}  # for everybody
        self._policy_obstacles: dict[str, str] = {}
        self._unready = ""  # why the output could not be prepared for a hand that touched the teleop
        self._stop_requested = False  # as the newest message says
        self._stop_heard_ns: int | None = None  # when a message last said true, on the steady clock
        self._policy_endpoint: bytes | None = None  # whose chunks POLICY was chosen for
        self._said: tuple[Driver, str] | None = None  # driver and stop reason of the newest report
        self._said_ns = 0
        self._clock_seen_ns, self._clock_still_since_ns = 0, 0
        self._realtime_priority = int(values["realtime_priority"])
        self._scheduling = ""  # of the thread that ticks; empty before its first tick
        self._tick_ns = 0
        self._late_ms: deque[float] = deque(maxlen=1000)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)

        self._drivers = self.create_publisher(String, "driver", LATCHED)
        self._reports = self.create_publisher(CommandReport, "command_report", 10)
        self._output: Output | None = None if self._dry_run else make_output(self, self._profile)
        self._chunks = self.create_subscription(ActionChunkMessage, "action_chunk", self._on_chunk, NEWEST_RELIABLE)
        self._stops = [self.create_subscription(Bool, "emergency_stop_request", self._on_stop_request, qos) for qos in ANYBODY]
        self._parts = [self.create_service(SetDriver, "set_driver", self._on_set_driver),
                       self.create_service(Trigger, "emergency_stop", self._on_emergency_stop),
                       self.create_service(Trigger, "reset_stop", self._on_reset_stop),
                       self.create_service(Trigger, "go_to_start", self._on_go_to_start),
                       self.create_subscription(Bool, "enable", self._on_enable, NEWEST_RELIABLE)]
        self._teleop = TeleopListener(self, joystick, self._on_teleop)
        self._diagnostics = Diagnostics(self, {"driver": self._health})
        self._watch()
        self.create_timer(WATCH_S, self._watch, clock=self._steady)
        self.create_timer(1.0 / float(values["rate_hz"]), self._on_timer,
                          clock=self.get_clock() if self._simulated else self._steady)
        self._tick()  # says HOLD, also when simulated time does not run yet
        if shares_memory():
            self.get_logger().warning("this process shares memory with others through Fast DDS: one of them that is killed can silence the "
                                      "arm's commands for ever. docs/safety.md, \"Shared memory\", says how to end that.")

    # ------------------------------------------------------------------ the tick

    def _on_timer(self) -> None:
        if not self._scheduling:  # asked for here, so that it is the ticking thread that gets it, and no other
            self._scheduling = be_on_time(self._realtime_priority)
        now_ns = self._now().tick_ns
        if self._tick_ns:
            self._late_ms.append(max(0.0, (now_ns - self._tick_ns) / 1e6 - 1e3 / self._pilot.settings.rate_hz))
        self._tick_ns = now_ns
        self._tick()

    def _tick(self) -> None:
        """Let the pilot decide, and send it. Also called between the timer's ticks, when something must not wait."""
        with self._lock:
            if self._left:
                return
            now = self._now()
            decision = self._pilot.step(now, self._arm.state if self._arm else None, Inputs(
                tuple(self._received), self._obstacles, self._policy_obstacles))
            self._received.clear()
            if decision.motion is not None and self._output is not None:
                self._output.send(decision.motion, now)
            self._report(decision, now)

    def _report(self, decision: Decision, now: Now) -> None:
        if self._said is None or decision.driver is not self._said[0]:
            self._drivers.publish(String(data=decision.driver.name))
        wall_ns = self._steady.now().nanoseconds
        said = (decision.driver, decision.stop_reason)
        changed, overdue = said != self._said, wall_ns - self._said_ns >= REPORT_S * SECOND_NS
        if changed and decision.stop_reason not in ("", WAITING, BY_HAND):
            self.get_logger().info(f"{decision.driver.name}: {decision.stop_reason}")
        if changed or overdue or decision.notable:
            self._reports.publish(to_report(decision, now.ros_ns, self._profile.base_frame, self._pilot.settings.action_scale,
                                            self._dry_run))
            self._said, self._said_ns = said, wall_ns

    def _now(self) -> Now:
        ros_ns = self.get_clock().now().nanoseconds
        return Now(ros_ns if self._simulated else self._steady.now().nanoseconds, ros_ns)

    def farewell(self) -> None:
        """Zeros and HOLD, before the process leaves. Nothing is sent after them."""
        with self._lock:
            self._pilot.halt("command_node is leaving")
            self._tick()
            self._left = True
        brief = Duration(seconds=0.2)
        if self._output is not None:
            self._output.flush(brief)
        for publisher in (self._drivers, self._reports):
            publisher.wait_for_all_acked(brief)

    # ------------------------------------------------------------------ what comes in

    def _on_chunk(self, message: ActionChunkMessage) -> None:
        with self._lock:
            try:
                self._received.append(from_chunk_message(message))
            except ActionError as error:
                self._pilot.malformed(str(error))

    def _on_stop_request(self, message: Bool) -> None:
        self._stop_requested = bool(message.data)
        if self._stop_requested:
            self._stop_heard_ns = self._steady.now().nanoseconds
            self._emergency_stop("emergency_stop_request is true")

    def _on_emergency_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._emergency_stop("the service emergency_stop was called")
        response.success, response.message = True, "STOPPED. reset_stop leads to HOLD."
        return response

    def _emergency_stop(self, reason: str) -> None:
        with self._lock:
            self._pilot.emergency_stop(reason)
            self._tick()

    def _on_reset_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            try:
                if not self._stop_requested and self._stop_recently_heard():
                    raise HandoffRefused(f"emergency_stop_request was true less than {STOP_QUIET_S:g} s ago. Call again; if that does "
                                         "not help, another publisher still says true.")
                self._pilot.reset(self._stop_requested)
                response.success, response.message = True, "HOLD. set_driver chooses who moves the arm."
            except HandoffRefused as error:
                response.success, response.message = False, str(error)
            self._tick()
        return response

    def _stop_recently_heard(self) -> bool:
        heard_ns = self._stop_heard_ns
        return heard_ns is not None and self._steady.now().nanoseconds - heard_ns < STOP_QUIET_S * SECOND_NS

    def _on_set_driver(self, request: SetDriver.Request, response: SetDriver.Response) -> SetDriver.Response:
        with self._lock:
            try:
                self._choose(request.driver)
                response.success = True
            except OpenvlaRosError as error:
                response.success, response.reason = False, str(error)
            self._tick()
        return response

    def _choose(self, wish: int) -> None:
        """Another driver. Raises OpenvlaRosError."""
        pilot = self._pilot
        if wish == SetDriver.Request.HOLD:
            pilot.hold()
        elif wish == SetDriver.Request.POLICY:
            self._get_ready(resuming=pilot.driver is not Driver.POLICY)
            pilot.resume(self._now(), {**self._obstacles, **self._policy_obstacles})
        elif wish == SetDriver.Request.HUMAN:
            self._get_ready(resuming=False)
            pilot.take_over(self._obstacles)
        else:
            raise HandoffRefused(f"driver {wish} is unknown. Choose HOLD (0), POLICY (1) or HUMAN (2); for a stop call emergency_stop.")

    def _get_ready(self, resuming: bool) -> None:
        """Before HOLD is left: fresh settings, a fresh look at the graph, an output that can move the arm. Raises OpenvlaRosError."""
        self._unready = ""
        self._look_around(resuming)
        next_driver(self._pilot.driver, "take_over")  # while STOPPED nothing is set up
        if self._pilot.driver is Driver.HOLD:
            self._pilot.configure(self._settings())
            if self._output is not None:
                self._output.prepare()

    def _on_go_to_start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            try:
                self._get_ready(resuming=False)
                name = self._pilot.go_to_start(self._obstacles)
                response.success, response.message = True, f"going to the start pose '{name}'; choosing any driver ends it"
            except OpenvlaRosError as error:
                response.success, response.message = False, str(error)
            self._tick()
        return response

    def _on_enable(self, message: Bool) -> None:
        with self._lock:
            self._pilot.enable(bool(message.data), self._now())

    def _on_teleop(self, device: str, request: TeleopRequest, stamp_ns: int | None, frame_id: str | None) -> None:
        with self._lock:
            if request.wish is Wish.STOP:
                self._emergency_stop("the teleop's stop button was pressed")
            elif request.wish in WISHES:
                try:
                    require_fresh(request, stamp_ns, self._now().ros_ns)
                    self._choose(WISHES[request.wish])
                except OpenvlaRosError as error:
                    self.get_logger().warning(f"{request.wish.name}: {error}")
            elif request.active and self._pilot.driver is Driver.HOLD:
                self._get_ready_for_hand()
            self._pilot.teleop(device, request, self._now(), stamp_ns, frame_id)

    def _get_ready_for_hand(self) -> None:
        """A hand that touches the teleop in HOLD will drive as soon as the output can."""
        try:
            self._get_ready(resuming=False)
        except OpenvlaRosError as error:
            self._unready = str(error)
            self._obstacles["output"] = self._unready

    # ------------------------------------------------------------------ what the pilot cannot see

    def _watch(self) -> None:
        """Look at graph and clock. While simulated time stands still no tick comes, so zeros are sent from here."""
        self._look_around(resuming=False)
        if not self._simulated:
            return
        ros_ns, wall_ns = self._now().ros_ns, self._steady.now().nanoseconds
        if ros_ns != self._clock_seen_ns:
            went_back = ros_ns < self._clock_seen_ns
            self._clock_seen_ns, self._clock_still_since_ns = ros_ns, wall_ns
            if went_back:
                self._tick()
            return
        still_s = (wall_ns - self._clock_still_since_ns) / SECOND_NS
        if still_s >= CLOCK_STILL_S:
            with self._lock:
                self._pilot.halt("the simulated clock stands still. Is its player paused or gone? Choose POLICY again when it runs.")
                if still_s < CLOCK_STILL_S + ZEROS_S:
                    self._tick()

    def _look_around(self, resuming: bool) -> None:
        """What forbids somebody to drive now: rule -> reason with remedy. resuming: the present policy is the one that is meant."""
        everybody: dict[str, str] = {}
        if self._output is not None and (rivals := self._output.rivals()):
            everybody["arm_topic"] = (f"{self._output.topic} has another publisher: {', '.join(rivals)}. "
                                      f"Stop it: only one may command the arm. {FORGOTTEN}")
        if self._output is not None and self._pilot.drives and (trouble := self._output.trouble()):
            everybody["output"] = trouble
        if self._unready:
            everybody["output"] = self._unready
        if self._arm is not None:
            self._pilot.adopt(self._arm.kinematics)
            if self._arm.trouble:
                everybody["robot_description"] = self._arm.trouble
        if self._simulated and not self._clock_runs():
            everybody["clock"] = "simulated time does not run. Start what publishes /clock, or its playback."
        self._obstacles, self._policy_obstacles = everybody, self._look_at_policy(resuming)

    def _look_at_policy(self, resuming: bool) -> dict[str, str]:
        obstacles: dict[str, str] = {}
        policies = self.get_publishers_info_by_topic(self._chunks.topic_name)
        endpoints = [bytes(info.endpoint_gid) for info in policies]
        if resuming and len(endpoints) == 1:
            self._policy_endpoint = endpoints[0]
        if not endpoints:
            obstacles["chunk_publisher"] = f"nobody publishes {self._chunks.topic_name}. Start the policy first."
        elif len(endpoints) > 1:
            obstacles["chunk_publisher"] = (f"{self._chunks.topic_name} has {len(endpoints)} publishers: "
                                            f"{', '.join(sorted(info.node_name for info in policies))}. Leave one running. {FORGOTTEN}")
        elif endpoints[0] != self._policy_endpoint and self._pilot.driver is Driver.POLICY:
            obstacles["chunk_publisher"] = "another policy publishes now. Choose POLICY again if that is meant."
        return obstacles

    def _clock_runs(self) -> bool:
        if self._now().ros_ns != self._clock_seen_ns:
            return True
        return self._clock_seen_ns > 0 and self._steady.now().nanoseconds - self._clock_still_since_ns < CLOCK_STILL_S * SECOND_NS

    def _settings(self) -> Settings:
        values = read(self, PARAMETERS)
        return Settings(rate_hz=float(values["rate_hz"]), max_observation_age_s=float(values["max_observation_age_s"]),
                        resume_within_s=float(values["resume_within_s"]), action_scale=float(values["action_scale"]),
                        preempt=bool(values["preempt"]), max_joint_state_age_s=float(values["max_joint_state_age_s"]),
                        require_enable=bool(values["require_enable"]), stuck_after=int(values["stuck_after"]),
                        start_pose=str(values["start_pose"]), dry_run=self._dry_run)

    def _listen_to_arm(self, robot: str) -> ArmListener | None:
        if self._profile.arm is None:
            return None
        return ArmListener(self, self._profile, self._profile.arm, read_urdf(robot, self._profile))

    def _locked(self, row: Parameter) -> bool:
        return row.locked == AT_START or self._pilot.driver is not Driver.HOLD

    def _keep(self, changes: list[RosParameter]) -> SetParametersResult:
        """Refuses what the table cannot know: another clock, and other settings on the way to the start pose, which is a HOLD too."""
        names, held = {change.name for change in changes}, {row.name for row in PARAMETERS if row.locked == IN_HOLD}
        reason = ""
        if "use_sim_time" in names:
            reason = f"use_sim_time can be changed only {AT_START}."
        elif names & held and self._pilot.driver is Driver.HOLD and self._pilot.drives:
            reason = "the arm is on its way to the start pose. Change settings when it is there, or choose HOLD to end it."
        return SetParametersResult(successful=not reason, reason=reason)

    def _health(self) -> Health:
        pilot, driver = self._pilot, self._pilot.driver
        obstacles = {**pilot.obstacles, **self._policy_obstacles}
        level = ERROR if driver is Driver.STOPPED else OK
        if pilot.fell or pilot.warnings or obstacles.keys() - {"chunk_publisher"}:
            level = max(level, WARN)
        if driver is Driver.POLICY and pilot.stop_reason not in ("", WAITING):
            level = max(level, WARN)
        reason = pilot.stop_reason or "moving"
        late = np.array(self._late_ms) if self._late_ms else np.zeros(1)
        values: dict[str, object] = {
            "robot": self._profile.name, "driver": driver.name, "stop_reason": pilot.stop_reason, "obstacles": " ".join(obstacles.values()),
            "warnings": " ".join(pilot.warnings), "output": self._profile.output,
            "commands": self._output.topic if self._output else "none (dry run)",
            "dry_run": self._dry_run, "action_scale": pilot.settings.action_scale,
            "max_observation_age_s": pilot.settings.max_observation_age_s, "rate_hz": pilot.settings.rate_hz,
            "scheduling": self._scheduling or "normal: no tick yet",
            "tick_late_p99_ms": f"{np.percentile(late, 99):.2f}", "tick_late_max_ms": f"{late.max():.2f}",
            **({f"output_{name}": value for name, value in self._output.health().items()} if self._output else {}),
            **{f"count_{name}": count for name, count in sorted(pilot.counts.items())}}
        return Health(level, " ".join((f"{driver.name}: {reason}", *pilot.warnings)), values)


def main(arguments: list[str] | None = None) -> int:
    """Console script `command_node`. Exit code 0 after SIGINT and SIGTERM, 2 when a parameter or the robot profile is wrong."""
    share_no_memory(get_rmw_implementation_identifier())
    return live(CommandNode, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
