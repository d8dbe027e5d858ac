"""Camera and instruction in, action chunks out. Thinks slowly, may fall over, never moves the arm by itself.

Lifecycle: configure loads, warms and proves the policy; activate publishes; deactivate says stop and is silent; cleanup
frees the memory. Callbacks only hand things over; decoding and inference run on the worker of `ros/inference.py`. The camera is heard,
and what recurs is done, beside the executor: while frames are answered it sleeps.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from dataclasses import replace
from time import monotonic, perf_counter

import numpy as np
import rclpy.duration
from openvla_msgs.action import ExecuteInstruction
from openvla_msgs.msg import ActionChunk as ActionChunkMessage
from openvla_msgs.msg import CommandReport
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from std_msgs.msg import String

from openvla_ros.contract import ActionChunk, ChunkIdentity, Observation, Policy
from openvla_ros.errors import ConfigurationError, InstructionError, ObservationError, OpenvlaRosError, SelfTestFailed
from openvla_ros.observation.assemble import FrameJudge, FrameLimits, check_instruction
from openvla_ros.policy.catalogue import ATTENTIONS, DEVICES, DRAFTS, DTYPES, QUANTIZATIONS, load_policy, read_profile
from openvla_ros.ros.camera import IMAGE_TRANSPORTS, Camera, ImageMessage, decode
from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, to_chunk_message, to_ns
from openvla_ros.ros.diagnostics import ERROR, EVERY_S, OK, WARN, Diagnostics, Health
from openvla_ros.ros.inference import Inference, Job
from openvla_ros.ros.lifecycle import ACTIVE, UNCONFIGURED, ManagedNode
from openvla_ros.ros.lifetime import GRACE_S, live
from openvla_ros.ros.parameters import Parameter, declare, read
from openvla_ros.ros.priority import be_nice, let_other_sessions_first, niceness

UNCONFIGURED_ONLY = "before configure"

PARAMETERS = (
    Parameter("policy", "openvla-7b", "Policy profile: a name in config/policies or the path of a .yaml file. It sets the "
              "image path and the prompt.", locked=UNCONFIGURED_ONLY),
    Parameter("checkpoint", "", "'default' (the shipped small policy), a folder with config.json and *.safetensors, a hub name, "
              "or 'scripted'; empty: as the profile says.", locked=UNCONFIGURED_ONLY),
    Parameter("unnorm_key", "", "Action statistics to un-normalise with, such as bridge_orig; empty: the only ones of the "
              "checkpoint, else as the profile says.",
              locked=UNCONFIGURED_ONLY),
    Parameter("device", "", "Where the model runs; empty: as the profile says.", choices=("", *DEVICES),
              locked=UNCONFIGURED_ONLY),
    Parameter("dtype", "", "Arithmetic of the model; empty: as the profile says.", choices=("", *DTYPES),
              locked=UNCONFIGURED_ONLY),
    Parameter("quantization", "", "Weight format; none of int8 and nf4 (bitsandbytes: less memory, slower) and w8a8 (our own: half the "
              "memory) is exact; empty: as the profile says.", choices=("", *QUANTIZATIONS), locked=UNCONFIGURED_ONLY),
    Parameter("attention", "", "Attention kernel; flash needs flash-attn; empty: as the profile says.",
              choices=("", *ATTENTIONS), locked=UNCONFIGURED_ONLY),
    Parameter("draft", "", "previous: the action before is tried first and confirmed exactly, which takes fewer passes on steady scenes; "
              "the answers are the same; none; empty: as the profile says.", choices=("", *DRAFTS), locked=UNCONFIGURED_ONLY),
    Parameter("threads", 0, "CPU threads of torch; 0: as the profile says, else all cores but one, which command_node needs to "
              "tick in time.",
              low=0, high=1024, locked=UNCONFIGURED_ONLY),
    Parameter("nice", 10, "Added to the niceness that the process was started with, so that a command_node on the same computer goes "
              "first. Less than before needs CAP_SYS_NICE; diagnostics say what holds.", low=0, high=19, locked=UNCONFIGURED_ONLY),
    Parameter("self_test", True, "At configure, prove that picture and instruction reach the action, and that one action is "
              "fast enough.", locked=UNCONFIGURED_ONLY),
    Parameter("base_frame", "wx250s/base_link", "Frame of the deltas, the robot's base; command_node refuses any other than "
              "its own.", locked=UNCONFIGURED_ONLY),
    Parameter("image_transport", "raw", "raw listens to 'image' (sensor_msgs/Image), compressed to 'image/compressed' "
              "(sensor_msgs/CompressedImage).", choices=IMAGE_TRANSPORTS, locked=UNCONFIGURED_ONLY),
    Parameter("stamp_source", "header", "header: the camera's own stamp; receive: the time of arrival, for drivers that do not "
              "stamp. Camera latency is invisible then.", choices=("header", "receive"), locked=UNCONFIGURED_ONLY),
    Parameter("max_observation_age_s", 0.6, "Frames older than this are refused. Give command_node the same value.",
              unit="s", low=0.05, high=60.0, locked=UNCONFIGURED_ONLY),
    Parameter("frozen_after", 10, "So many equal pictures in a row are a frozen camera and refused; 0: never.",
              low=0, high=10000, locked=UNCONFIGURED_ONLY),
)

LATENCY_WINDOW = 200
"""Actions that the latency statistics look back on."""

AHEAD_S, AHEAD_SIMULATED_S = 0.02, 0.5
"""A stamp so far in the future is forgiven: two synchronised computers; /clock, which comes in steps and through a callback.
command_node forgives nothing, but looks later, when inference has taken at least as long."""

WATCH_S = 0.2
"""How often publishers of the camera's topic are looked at, in wall time."""

WARM_ACTIONS = 5
"""Actions timed at configure, so that activate knows the latency before the first frame."""


class PolicyNode(ManagedNode):
    """ROS name `policy_node`; topics, services and parameters are tabled in docs/."""

    def __init__(self) -> None:
        super().__init__("policy_node")
        declare(self, PARAMETERS, locked=lambda row: bool(row.locked) and self.state_label != UNCONFIGURED)
        self.finished = threading.Event()
        self.broken: Exception | None = None
        self._niceness = niceness()  # that it was started with
        self._threads = 0  # of torch
        self._policy: Policy | None = None
        self._inference: Inference[ImageMessage] | None = None
        self._judge = FrameJudge()
        self._session = secrets.randbits(64)
        self._refusal = ""
        self._instruction, self._instruction_problem, self._frame_problem = "", "", ""
        self._driver = ""
        self._latency_ms: deque[float] = deque(maxlen=LATENCY_WINDOW)
        self._last_fault = ""
        self._base_frame, self._max_age_s = "", 0.0
        self._goal: Goal | None = None
        self._goal_guard = threading.Lock()
        self._instruction_guard = threading.Lock()

        quick = MutuallyExclusiveCallbackGroup()
        self._camera: Camera | None = None
        self._chunks = self.create_publisher(ActionChunkMessage, "action_chunk", NEWEST_RELIABLE)
        # One publisher latches its instruction, another does not: a volatile reader hears both but misses what was said
        # before it came; a latched one does not match volatile publishers. The same text twice is no change.
        self._instructions = [self.create_subscription(String, "instruction", self._on_instruction, qos, callback_group=quick)
                              for qos in (LATCHED, NEWEST_RELIABLE)]
        self._drivers = self.create_subscription(String, "driver", self._on_driver, LATCHED, callback_group=quick)
        self._reports = self.create_subscription(CommandReport, "command_report", self._on_report, 10, callback_group=quick)
        self._action_server = ActionServer(
            self, ExecuteInstruction, "execute_instruction", self._execute, goal_callback=self._judge_goal,
            cancel_callback=lambda goal: CancelResponse.ACCEPT, callback_group=ReentrantCallbackGroup())
        self._diagnostics = Diagnostics(self, {
            "policy": self._policy_health, "camera": self._camera_health, "instruction": self._instruction_health}, timed=False)
        self._left = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watcher.start()

    # ------------------------------------------------------------------ lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load, warm up and prove the policy; begin to listen to the camera. FAILURE keeps the node unconfigured."""
        return self.attempt("configure", self._configure)

    def _configure(self) -> None:
        self._refusal = self._frame_problem = self._last_fault = ""
        values = read(self, PARAMETERS)
        settings = read_profile(str(values["policy"]), **{name: values[name] for name in (
            "checkpoint", "unnorm_key", "device", "dtype", "quantization", "attention", "draft")})
        spare_cores = max(1, len(os.sched_getaffinity(0)) - 1)
        settings = replace(settings, threads=int(values["threads"]) or settings.threads or spare_cores)
        self._threads = settings.threads
        self._base_frame, self._max_age_s = str(values["base_frame"]), float(values["max_observation_age_s"])
        if not self._base_frame:
            raise ConfigurationError("parameter 'base_frame' is empty. Name the frame of the robot's base, such as "
                                     "wx250s/base_link.")
        simulated = bool(self.get_parameter("use_sim_time").value)
        self._judge = FrameJudge(FrameLimits(
            max_age_s=self._max_age_s, max_ahead_s=AHEAD_SIMULATED_S if simulated else AHEAD_S,
            stamp_source=str(values["stamp_source"]), frozen_after=int(values["frozen_after"]),
            compressed=values["image_transport"] == "compressed"))
        be_nice(self._niceness + int(values["nice"]))  # before torch starts its threads, which inherit it
        let_other_sessions_first(int(values["nice"]))
        self.get_logger().info(f"loading {settings.checkpoint!r}")
        began = perf_counter()
        self._latency_ms.clear()
        policy = load_policy(settings)
        try:
            if values["self_test"]:
                self._prove(policy)
        except BaseException:
            policy.close()
            raise
        self._policy = policy
        with self._instruction_guard:
            self._inference = Inference(self._act, self._publish, self._session, policy.step_s)
            self._inference.instruct(self._instruction, self._now_ns())
        self._camera = Camera(self, str(values["image_transport"]), self._on_image)
        for note in policy.notes:
            self.get_logger().warning(note)
        self.get_logger().info(f"{policy.name} is ready after {perf_counter() - began:.1f} s")

    def _prove(self, policy: Policy) -> None:
        checks = policy.self_test()
        for check in checks:
            log = self.get_logger().info if check.passed else self.get_logger().error
            log(f"self-test: {check.name}: {'good' if check.passed else 'BAD'}: {check.detail}")
        bad = [f"{check.name}: {check.detail}" for check in checks if not check.passed]
        if bad:
            raise SelfTestFailed("the policy's actions cannot be trusted: " + "; ".join(bad)
                                 + ". Check checkpoint and unnorm_key; self_test: false skips this at your own risk.")
        frame = Observation(np.full((480, 640, 3), 127, dtype=np.uint8), "warm up", stamp_ns=1)
        forget = getattr(policy, "forget", None)
        for _ in range(WARM_ACTIONS):
            if forget is not None:
                forget()  # the same frame again would confirm the answer before at once: no action of a moving scene is so fast
            began = perf_counter()
            policy.act(frame)
            self._latency_ms.append((perf_counter() - began) * 1e3)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to publish, unless the actions would come too late to be allowed to move the arm."""
        return self.attempt("activate", self._activate)

    def _activate(self) -> None:
        assert self._inference is not None and self._policy is not None
        age_s = self._judge.statistics(self._now_ns()).age_s or 0.0
        # Of a few warm-up actions the fastest counts: a busy moment of this computer must not refuse what is fast enough, and
        # diagnostics warn as soon as real actions are too slow.
        enough = len(self._latency_ms) >= 100
        latency_s, kind = (percentile(self._latency_ms, 0.99), "p99") if enough else (min(self._latency_ms, default=0.0), "at best")
        latency_s /= 1e3
        step_s = self._policy.step_s
        if age_s + latency_s + step_s > self._max_age_s:
            raise ConfigurationError(
                f"image age {age_s:.3f} s + latency {latency_s:.3f} s ({kind}) + step {step_s:.3f} s exceed "
                f"max_observation_age_s {self._max_age_s:.3f} s: the arm would stop within every step. Use a faster device or "
                "dtype, or raise max_observation_age_s of both nodes and accept the longer stop time.")
        self._refusal = ""
        self._inference.open()

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Tell the arm to stop, then be silent. Weights stay."""
        return self.attempt("deactivate", lambda: self._silence("policy deactivated"))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Wait for a running inference, then free the memory."""
        return self.attempt("cleanup", self._release)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleanup, from any state; the process stays until it gets a signal."""
        return self.attempt("shutdown", self._release)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Whatever went wrong: silence and free memory; configure can be tried again."""
        return self.attempt("error", self._release)

    def on_refused(self, transition: str, reason: str) -> None:
        """Keep the reason for /diagnostics."""
        self._refusal = f"{transition} refused: {reason}"

    def farewell(self) -> None:
        """Before the process leaves: tell the arm to stop, wait until that was heard, and let a running inference end."""
        self._silence("policy_node is shutting down")
        camera = self._camera
        if camera is not None:
            camera.close()
        self._chunks.wait_for_all_acked(rclpy.duration.Duration(seconds=0.3))
        inference = self._inference
        if inference is not None:
            inference.end(GRACE_S)
        self._left.set()
        self._watcher.join(GRACE_S)

    def _watch(self) -> None:
        """What recurs, on a thread of its own: timers would wake the whole executor each time, and pictures would wait for that."""
        told_s = monotonic()
        try:
            while not self._left.wait(WATCH_S):
                self._adapt_camera()
                if monotonic() >= told_s + EVERY_S:
                    told_s = max(told_s + EVERY_S, monotonic() - EVERY_S)
                    self._diagnostics.publish()
        except Exception as error:  # the process must not live on without a word
            self.broken = error
            self.finished.set()

    def _silence(self, reason: str) -> None:
        inference = self._inference
        if inference is not None:
            inference.close(reason, self._now_ns())
        self._end_goal(ExecuteInstruction.Result.STOPPED, reason)

    def _release(self) -> None:
        self._silence("policy is being unloaded")
        if self._camera is not None:
            self._camera.close()
            self._camera = None
        if self._inference is not None:
            self._inference.end()
            self._inference = None
        if self._policy is not None:
            self._policy.close()
            self._policy = None

    # ------------------------------------------------------------------ what comes in

    def _on_image(self, message: ImageMessage) -> None:
        verdict = self._judge.judge(to_ns(message.header.stamp), self._now_ns(), message.data)
        inference = self._inference  # another thread may be unloading it
        if verdict.usable and inference is not None:
            inference.offer(message, verdict.stamp_ns)

    def _adapt_camera(self) -> None:
        camera = self._camera
        if camera is not None:
            camera.adapt()

    def _on_instruction(self, message: String) -> None:
        try:
            instruction, problem = check_instruction(message.data), ""
        except InstructionError as error:
            # Fail closed: whoever sent this wanted something else than what the arm is doing.
            instruction, problem = "", str(error)
            if problem != self._instruction_problem:
                self.get_logger().error(f"instruction refused, the arm is stopped: {problem}")
        self._instruction_problem = problem
        goal = self._goal
        if goal is not None and instruction != goal.instruction:
            self._end_goal(ExecuteInstruction.Result.CANCELLED, f"the topic gave another instruction: {instruction!r}")
        self._instruct(instruction, problem)

    def _instruct(self, instruction: str, problem: str = "") -> None:
        with self._instruction_guard:
            self._instruction = instruction
            if self._inference is not None:
                self._inference.instruct(instruction, self._now_ns(), problem)

    def _on_driver(self, message: String) -> None:
        if message.data == self._driver:
            return
        with self._goal_guard:  # a goal is accepted under the driver of that moment
            self._driver = message.data
        inference = self._inference
        if inference is not None:
            inference.supersede(f"driver is {message.data}", self._now_ns())
        if message.data != "POLICY":
            stopped = message.data == "STOPPED"
            self._end_goal(ExecuteInstruction.Result.STOPPED if stopped else ExecuteInstruction.Result.TAKEN_OVER,
                           f"the driver is now {message.data}")

    # ------------------------------------------------------------------ worker thread

    def _act(self, job: Job[ImageMessage]) -> ActionChunk | None:
        assert self._policy is not None
        began = perf_counter()
        try:
            age_s = (self._now_ns() - job.stamp_ns) / 1e9
            if age_s > self._max_age_s:
                raise ObservationError(f"frame was {age_s:.2f} s old when the policy was free, allowed {self._max_age_s:.2f} s.")
            rgb, jpeg = decode(job.frame)
            image_ms = (perf_counter() - began) * 1e3
            observation = Observation(rgb, job.instruction, job.stamp_ns, jpeg)
        except Exception as error:  # a worker that dies would be silent for ever: whatever a decoder raises is a bad frame
            if not self._frame_problem:
                self.get_logger().error(f"frame refused: {error}")
            self._frame_problem = str(error) if isinstance(error, OpenvlaRosError) else f"{type(error).__name__}: {error}"
            return None
        self._frame_problem = ""
        try:
            chunk = self._policy.act(observation)
            if not chunk.steps and not chunk.fault:
                chunk = replace(chunk, fault="the policy returned no steps")
        except Exception as error:  # out of memory, a broken driver: the arm stops, the node stays
            chunk = ActionChunk((), self._policy.step_s, job.stamp_ns, job.instruction, self._policy.name,
                                fault=f"{type(error).__name__}: {error}")
        if chunk.fault and chunk.fault != self._last_fault:
            self.get_logger().error(f"no action: {chunk.fault}")
        self._last_fault = chunk.fault
        self._latency_ms.append((perf_counter() - began) * 1e3)
        return replace(chunk, stage_ms={"image": image_ms, **chunk.stage_ms})

    def _publish(self, chunk: ActionChunk, identity: ChunkIdentity) -> None:
        self._chunks.publish(to_chunk_message(chunk, identity, self._base_frame))
        goal = self._goal
        if goal is not None and chunk.fault and identity.generation == goal.generation:
            goal.end(ExecuteInstruction.Result.FAULT, chunk.fault)

    # ------------------------------------------------------------------ action

    def _judge_goal(self, goal: ExecuteInstruction.Goal) -> GoalResponse:
        try:
            if self.state_label != ACTIVE:
                raise ConfigurationError(f"policy_node is {self.state_label}, not active. Activate it first.")
            if self._driver != "POLICY":
                raise ConfigurationError(f"the driver is {self._driver or 'unknown'}, not POLICY. Call set_driver first: a goal "
                                         "never changes the driver.")
            if self._goal is not None:
                raise ConfigurationError("another instruction is being executed. Cancel it first.")
            if not check_instruction(goal.instruction):
                raise InstructionError("the instruction is empty.")
            if to_ns(goal.time_limit) < 0:
                raise ConfigurationError("the time limit is negative.")
        except OpenvlaRosError as error:
            self.get_logger().error(f"execute_instruction refused: {error}")
            return GoalResponse.REJECT
        with self._goal_guard:  # two goals may be judged at the same time, and the driver may have changed meanwhile
            if self._goal is not None or self._driver != "POLICY":
                return GoalResponse.REJECT
            self._goal = Goal(check_instruction(goal.instruction), to_ns(goal.time_limit), goal.step_limit)
        return GoalResponse.ACCEPT

    def _execute(self, handle: ServerGoalHandle) -> ExecuteInstruction.Result:
        goal = self._goal
        assert goal is not None, "it was made when the goal was accepted"
        try:
            self._follow(goal, handle)
        finally:
            self._goal = None
            if self._instruction == goal.instruction:
                self._instruct("", goal.reason)
        if handle.is_cancel_requested:
            handle.canceled()
        elif goal.outcome in (ExecuteInstruction.Result.STEP_LIMIT, ExecuteInstruction.Result.TIME_LIMIT):
            handle.succeed()
        else:
            handle.abort()
        return ExecuteInstruction.Result(outcome=goal.outcome, reason=goal.reason, steps=goal.steps)

    def _follow(self, goal: Goal, handle: ServerGoalHandle) -> None:
        """Give the instruction, tell the client of each step, and wait until the goal has ended."""
        self._instruct(goal.instruction)
        inference = self._inference
        if inference is None:
            goal.end(ExecuteInstruction.Result.STOPPED, "the policy was unloaded")
        else:
            # Also when the same text held already: what was computed before the goal is not its work.
            goal.generation = inference.supersede("goal accepted", self._now_ns())
        began, told = self.get_clock().now(), 0
        while goal.outcome is None:
            goal.changed.wait(0.05)
            goal.changed.clear()
            if handle.is_cancel_requested:
                goal.end(ExecuteInstruction.Result.CANCELLED, "the client cancelled")
            elif goal.time_limit_ns and (self.get_clock().now() - began).nanoseconds >= goal.time_limit_ns:
                goal.end(ExecuteInstruction.Result.TIME_LIMIT, f"{goal.time_limit_ns / 1e9:.1f} s have passed")
            if goal.steps > told and goal.last_report is not None:
                told = goal.steps
                latency_ms = self._latency_ms[-1] if self._latency_ms else 0.0
                handle.publish_feedback(ExecuteInstruction.Feedback(step=told, last_delta=goal.last_report.sent,
                                                                    latency_ms=latency_ms))

    def _end_goal(self, outcome: int, reason: str) -> None:
        goal = self._goal
        if goal is not None:
            goal.end(outcome, reason)

    def _on_report(self, report: CommandReport) -> None:
        goal = self._goal
        if (goal is not None and goal.generation and report.step_started and report.session == self._session
                and report.generation >= goal.generation):
            goal.count(report)

    # ------------------------------------------------------------------ health

    def _policy_health(self) -> Health:
        inference, policy = self._inference, self._policy
        values: dict[str, object] = {"state": self.state_label, "driver": self._driver or "unknown", "session": self._session,
                                     "threads": self._threads, "nice": niceness()}
        if inference is None or policy is None:
            level = ERROR if self._refusal else OK
            return Health(level, self._refusal or f"{self.state_label}: no policy is loaded", values)
        latencies = list(self._latency_ms)
        values |= {"policy": policy.name, "notes": "; ".join(policy.notes), "generation": inference.generation,
                   **vars(inference.counts), "latency_ms_median": f"{percentile(latencies, 0.5):.1f}",
                   "latency_ms_p99": f"{percentile(latencies, 0.99):.1f}", "last_fault": self._last_fault,
                   "last_refused_frame": self._frame_problem}
        facts = getattr(policy, "facts", None)
        if facts is not None:
            values |= {name.replace(" ", "_"): f"{value:.2f}" for name, value in facts().items()}
        if inference.busy_s > max(1.0, 2 * self._max_age_s):
            return Health(ERROR, f"inference has been running for {inference.busy_s:.1f} s. The arm is held by the age limit; "
                          "check the GPU (nvidia-smi) and the load of this computer.", values)
        if self._last_fault:
            return Health(ERROR, f"the newest inference gave no action: {self._last_fault}", values)
        if self._frame_problem:
            return Health(ERROR, f"the newest frame was refused: {self._frame_problem}", values)
        if self._refusal:
            return Health(ERROR, self._refusal, values)
        if latencies and percentile(latencies, 0.99) / 1e3 + policy.step_s > self._max_age_s:
            return Health(WARN, "inference is too slow for max_observation_age_s: the arm stops within steps. Use a faster device "
                          "or dtype.", values)
        return Health(WARN if policy.notes else OK, "; ".join(policy.notes) or f"{policy.name} is {self.state_label}", values)

    def _camera_health(self) -> Health:
        camera = self._camera
        if camera is None:
            return Health(OK, "not listening: the node is not configured")
        seen = self._judge.statistics(self._now_ns())
        values: dict[str, object] = {
            "topic": camera.topic, "transport": camera.transport, "reliability": camera.reliability,
            "publishers": camera.publishers(), "received": seen.received, "rate_hz": shown(seen.rate_hz),
            "stamp_spacing_s": shown(seen.spacing_s), "lost_fraction": shown(seen.lost_fraction), "age_s": shown(seen.age_s),
            "silent_s": shown(seen.silent_s), "clock_jumps": seen.clock_jumps}
        values |= {f"refused: {reason.value}": count for reason, count in seen.refused.items()}
        if seen.healthy:
            return Health(OK, f"{camera.topic}: frames are good", values)
        level = ERROR if self.state_label == ACTIVE else WARN
        return Health(level, f"{camera.topic}: {seen.remedy}", values)

    def _instruction_health(self) -> Health:
        if self._instruction_problem:
            return Health(ERROR, f"instruction refused, the arm is stopped: {self._instruction_problem}")
        if not self._instruction:
            return Health(WARN, "no instruction: publish a text on the instruction topic (std_msgs/String)")
        return Health(OK, self._instruction)

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


class Goal:
    """One running ExecuteInstruction: limits, what was started, how it ended. The first end wins."""

    def __init__(self, instruction: str, time_limit_ns: int, step_limit: int) -> None:
        self.instruction, self.time_limit_ns, self.step_limit = instruction, time_limit_ns, step_limit
        self.generation = 0  # steps of chunks from here on are this goal's; 0 until the goal runs
        self.steps = 0
        self.last_report: CommandReport | None = None
        self.outcome: int | None = None
        self.reason = ""
        self.changed = threading.Event()
        self._guard = threading.Lock()

    def count(self, report: CommandReport) -> None:
        """A step of this goal was started."""
        self.steps += 1
        self.last_report = report
        if self.step_limit and self.steps >= self.step_limit:
            self.end(ExecuteInstruction.Result.STEP_LIMIT, f"{self.steps} steps were started")
        self.changed.set()

    def end(self, outcome: int, reason: str) -> None:
        """Note how the goal ended; the executing thread answers the client."""
        with self._guard:
            if self.outcome is None:
                self.reason, self.outcome = reason, outcome
        self.changed.set()


def percentile(values: deque[float] | list[float], share: float) -> float:
    """The value below which `share` of the values lie; 0.0 when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def shown(value: float | None) -> str:
    """A number for diagnostics, or a dash where there is none yet."""
    return "-" if value is None else f"{value:.3f}"


def main(arguments: list[str] | None = None) -> int:
    """Console script `policy_node`."""
    return live(PolicyNode, arguments, threads=6)


if __name__ == "__main__":
    raise SystemExit(main())
