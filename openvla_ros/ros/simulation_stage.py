"""simulation_node, command_node and a policy as processes in a ROS domain of their own, and a director who sees and asks everything.

For trials and tests. Every wait is for a condition, as long as all parts live; time in names is simulated time unless it says wall.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import rclpy
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from openvla_msgs.msg import ActionChunk, CommandReport
from openvla_msgs.srv import ResetScene, SetDriver
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64, String
from visualization_msgs.msg import MarkerArray

from openvla_ros.errors import ConfigurationError, HandoffRefused, OpenvlaRosError
from openvla_ros.ros.convert import LATCHED, SECOND_NS, to_ns, to_time
from openvla_ros.ros.domain import free_domain
from openvla_ros.ros.player import stay_on_this_computer
from openvla_ros.ros.processes import Part, Process
from openvla_ros.ros.profile import read_robot
from openvla_ros.ros.scene_markers import from_markers
from openvla_ros.ros.supervisor import ORDERLY_CODES, PartDied, story
from openvla_ros.simulation.task import SceneState

ROBOT = "wx250s_sim"

TICK_S = 0.005
"""How often a condition is looked at [wall time]."""

ASK_AGAIN_S = 5.0
"""A service may lose its answer before its reader matched: a question without an answer is asked again after so long [wall time]."""

PATIENCE_S = 120.0
"""Longest wait for something that parts which are ready do at once on an idle computer [wall time]. Loading is never timed."""

SILENT_S = 0.75
"""So long after HOLD command_node has sent its last word: the ramp of a soft stop and half a second of zeros."""

OPENED = 0.97
"""Measured opening of a gripper that was told to open all the way."""

EVERYTHING = QoSProfile(depth=500)
"""Reliable, and deep enough for a director that was not scheduled for a while."""

NEVER_DRIVEN = "no driver"


class Moment(NamedTuple):
    """The scene at one time, and where the joints were a little before."""

    stamp_ns: int
    state: SceneState


class Director(Node):  # type: ignore[misc]
    """Hears what the parts say and asks them for everything. Its callbacks run on the stage's thread; the lists only grow."""

    def __init__(self, context: rclpy.Context) -> None:
        super().__init__("director", context=context, use_global_arguments=False)
        profile = read_robot(ROBOT)
        assert profile.gripper is not None and profile.arm is not None
        self._gripper, self.frame = profile.gripper, profile.base_frame
        self.moments: list[Moment] = []
        self.states: list[JointState] = []
        self.reports: list[CommandReport] = []
        self.chunks: list[ActionChunk] = []
        self.driver = NEVER_DRIVEN
        self.opening = 1.0  # of the gripper, measured: 0 closed .. 1 open
        self.create_subscription(JointState, "joint_states", self._on_states, EVERYTHING)
        self.create_subscription(MarkerArray, "simulation/objects", self._on_objects, EVERYTHING)
        self.create_subscription(CommandReport, "command_report", self.reports.append, EVERYTHING)
        self.create_subscription(ActionChunk, "action_chunk", self.chunks.append, EVERYTHING)
        self.create_subscription(String, "driver", self._on_driver, LATCHED)
        self._instructions = self.create_publisher(String, "instruction", LATCHED)
        self._twists = self.create_publisher(TwistStamped, "teleop/delta_twist_cmds", 10)
        self._openings = self.create_publisher(Float64, "teleop/gripper", 10)
        self.transitions = self.create_client(ChangeState, "policy_node/change_state")
        self.drivers = self.create_client(SetDriver, "set_driver")
        self.resets = self.create_client(ResetScene, "simulation_node/reset_scene")

    def _on_states(self, message: JointState) -> None:
        if self._gripper.joint in message.name:
            self.opening = self._gripper.opening(message.position[message.name.index(self._gripper.joint)])
        self.states.append(message)

    def _on_objects(self, message: MarkerArray) -> None:
        self.moments.append(Moment(to_ns(message.markers[0].header.stamp), from_markers(message, self.opening)))

    def _on_driver(self, message: String) -> None:
        self.driver = message.data

    @property
    def now_ns(self) -> int:
        """Simulated time of the newest joint states; 0 before the first."""
        return to_ns(self.states[-1].header.stamp) if self.states else 0

    def instruct(self, text: str) -> None:
        """Publish the instruction, latched."""
        self._instructions.publish(String(data=text))

    def push(self, velocity_m_s: Sequence[float]) -> None:
        """The human's hand: one message of a translation, which holds for 0.2 s."""
        message = TwistStamped()
        message.header.stamp, message.header.frame_id = to_time(self.now_ns), self.frame
        message.twist.linear.x, message.twist.linear.y, message.twist.linear.z = map(float, velocity_m_s)
        self._twists.publish(message)

    def open(self, opening: float) -> None:
        """The human's hand: one message of an opening, which holds for 0.75 s."""
        self._openings.publish(Float64(data=opening))

    def forget(self) -> None:
        """What was heard of earlier episodes."""
        for heard in (self.moments, self.reports, self.chunks):
            heard.clear()
        del self.states[:-1]


class Stage:
    """A context: entered it is ready to be driven, left nothing of it lives on. Its methods are called on the thread that made it."""

    def __init__(self, policy: Part, log_folder: Path, domain: int | None = None, seed: int = 0, real_time_factor: float = 1.0,
                 lifecycle: bool = True, parameters: Mapping[str, object] | None = None) -> None:
        """policy: what publishes action_chunk. lifecycle: it must be configured and activated. domain: ROS_DOMAIN_ID; None: a free one.

        parameters: of command_node, beside robot and use_sim_time.
        """
        self._folder, self._domain = log_folder, free_domain() if domain is None else domain
        command = {"robot": ROBOT, "use_sim_time": "true", **(parameters or {})}
        self._parts = [
            Part("simulation_node", "openvla_ros.ros.simulation_node:main",
                 ros_arguments({"robot": ROBOT, "seed": seed, "real_time_factor": float(real_time_factor)})),
            Part("command_node", "openvla_ros.ros.command_node:main", ros_arguments(command)), policy]
        self._lifecycle = lifecycle
        self._processes: list[Process] = []

    def __enter__(self) -> Stage:
        """Start everything and wait until it is ready: the driver is HOLD, the policy active. Raises PartDied, OpenvlaRosError."""
        stay_on_this_computer()
        self._folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "ROS_DOMAIN_ID": str(self._domain), "ROS_LOG_DIR": str(self._folder)}
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=self._domain, args=[])
        self.director = Director(self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.director)
        self._thread = threading.Thread(target=self._spin, name="director", daemon=True)
        self._thread.start()
        try:
            self._processes = [Process(part, self._folder, environment) for part in self._parts]
            director = self.director
            self.wait(lambda: bool(director.moments and director.states and director.driver != NEVER_DRIVEN), "simulation and command_node",
                      patience_s=None)
            if self._lifecycle:
                self.wait(director.transitions.service_is_ready, "policy_node", patience_s=None)
                self.transit(Transition.TRANSITION_CONFIGURE)
                self.transit(Transition.TRANSITION_ACTIVATE)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop in order: policy, command_node, simulation. Raises PartDied when one of them did not leave as it should."""
        stories = self._leave()
        if stories and error is None:
            raise PartDied("\n".join(stories))

    # ------------------------------------------------------------------ wait and ask

    def look(self) -> None:
        """Raises PartDied when a part has ended."""
        for process in self._processes:
            if process.exit_code is not None:
                raise PartDied(story(process))

    def wait(self, condition: Callable[[], bool], what: str, patience_s: float | None = PATIENCE_S) -> None:
        """Until a condition holds. Raises PartDied, and OpenvlaRosError when nothing happens for patience_s [wall time]."""
        until_s = None if patience_s is None else monotonic() + patience_s
        while not condition():
            self.look()
            if until_s is not None and monotonic() > until_s:
                raise OpenvlaRosError(f"waited {patience_s:g} s for {what} in vain; the driver is {self.director.driver}, said last: "
                                      f"{self.stop_reason or 'nothing'}. Logs are in {self._folder}.")
            sleep(TICK_S)

    def pass_time(self, seconds: float) -> None:
        """Let simulated time go on for so long."""
        until_ns = self.director.now_ns + round(seconds * SECOND_NS)
        self.wait(lambda: self.director.now_ns >= until_ns, f"{seconds:g} s of simulated time")

    def ask(self, client: Any, request: Any, what: str, patience_s: float | None = PATIENCE_S) -> Any:
        """The answer of a service. A question whose answer was lost is asked again: every one here may be asked twice."""
        self.wait(client.service_is_ready, what, patience_s)
        answers = [client.call_async(request)]
        asked_s = monotonic()

        def answered() -> bool:
            nonlocal asked_s
            if monotonic() - asked_s > ASK_AGAIN_S and patience_s is not None:
                answers.append(client.call_async(request))
                asked_s = monotonic()
            return any(answer.done() for answer in answers)

        self.wait(answered, what, patience_s)
        return next(answer for answer in answers if answer.done()).result()

    # ------------------------------------------------------------------ what a director asks for

    @property
    def stop_reason(self) -> str:
        """The newest that command_node said about it."""
        return str(self.director.reports[-1].stop_reason) if self.director.reports else ""

    def transit(self, transition: int) -> None:
        """A transition of policy_node, however long it takes. Raises ConfigurationError when it refuses."""
        request = ChangeState.Request(transition=Transition(id=transition))
        if not self.ask(self.director.transitions, request, "policy_node", patience_s=None).success:
            log = "\n".join(self._processes[-1].tail())
            raise ConfigurationError(f"policy_node refused to be made ready:\n{log}")

    def drive(self, driver: int) -> None:
        """Another driver: SetDriver.Request.HOLD, POLICY or HUMAN. Raises HandoffRefused with the reason."""
        answer = self.ask(self.director.drivers, SetDriver.Request(driver=driver), "set_driver")
        if not answer.success:
            raise HandoffRefused(answer.reason)
        name = {SetDriver.Request.HOLD: "HOLD", SetDriver.Request.POLICY: "POLICY", SetDriver.Request.HUMAN: "HUMAN"}[driver]
        until_ns = self.director.now_ns + SECOND_NS
        self.wait(lambda: self.director.driver == name or self.director.now_ns > until_ns, f"the driver {name}")
        if self.director.driver != name:
            raise HandoffRefused(f"{name} did not last: {self.stop_reason}")

    def drive_soon(self, driver: int) -> None:
        """The same, as soon as it is not refused any more: parts that have just found each other refuse at first."""
        until_s = monotonic() + PATIENCE_S
        while True:
            try:
                return self.drive(driver)
            except HandoffRefused:
                if monotonic() > until_s:
                    raise
                self.pass_time(0.1)

    def reset(self, seed: int) -> tuple[str, ...]:
        """Another scene, with the driver HOLD, the gripper open and the arm at rest. Returns the colours that are there.

        A human opens the gripper first: command_node keeps what it last sent to it, and would close the new scene's.
        Raises OpenvlaRosError.
        """
        if self.director.opening < OPENED:
            until_s = monotonic() + PATIENCE_S
            while self.director.opening < OPENED:
                if monotonic() > until_s:
                    raise OpenvlaRosError(f"the gripper is {self.director.opening:.2f} open and did not open further within "
                                          f"{PATIENCE_S:g} s. Logs are in {self._folder}.")
                if self.director.driver != "HUMAN":  # once, and again where simulated time stood still and the driver fell to HOLD
                    self.drive_soon(SetDriver.Request.HUMAN)
                self.director.open(1.0)
                self.pass_time(0.1)
        self.drive(SetDriver.Request.HOLD)
        self.pass_time(SILENT_S)
        answer = self.ask(self.director.resets, ResetScene.Request(seed=seed), "reset_scene")
        if not answer.success:
            raise OpenvlaRosError(f"simulation_node refused the scene {seed}: {answer.reason}")
        self.pass_time(0.1)  # what was said before the answer is over
        self.wait(lambda: float(np.abs(self.director.states[-1].velocity[:6]).max()) < 0.02, "an arm at rest")
        return tuple(answer.colours)

    def let_go(self, subscription: Subscription) -> None:
        """Hear the director's subscription no more. It is destroyed on the thread that waits for it: taken from under that, it ends it."""
        self._executor.create_task(self.director.destroy_subscription, subscription)

    # ------------------------------------------------------------------ the way down

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def _leave(self) -> list[str]:
        stories = []
        for process in reversed(self._processes):
            if not process.stop() or process.exit_code not in ORDERLY_CODES:
                stories.append(story(process))
        self._processes = []
        self._executor.shutdown()
        self._thread.join()
        self.director.destroy_node()
        rclpy.shutdown(context=self._context)
        return stories


def ros_arguments(parameters: Mapping[str, object]) -> tuple[str, ...]:
    """The command line that sets a node's parameters."""
    return "--ros-args", *(word for name, value in parameters.items() for word in ("-p", f"{name}:={value}"))
