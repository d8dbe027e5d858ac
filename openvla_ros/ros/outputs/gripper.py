"""How an opening (0 closed .. 1 open) reaches a gripper, beside any output for the arm.

joint_trajectory: the finger joint in metres, for a joint_trajectory_controller. interbotix_single: the Interbotix driver's gripper,
in the mode it runs in: pwm, where this node presses and stops pressing by itself, or linear_position.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Protocol

from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from openvla_ros.action.command import Motion
from openvla_ros.action.gripper import pressing_pwm
from openvla_ros.action.pilot import Now
from openvla_ros.errors import HandoffRefused
from openvla_ros.robot import GripperProfile, RobotProfile
from openvla_ros.ros.convert import NEWEST_RELIABLE, SECOND_NS, to_duration
from openvla_ros.ros.outputs import Output, other_publishers
from openvla_ros.ros.outputs.errand import Conversation, Errand, Question
from openvla_ros.ros.outputs.interbotix import MODES_FILE, REMEDY, driver_messages
from openvla_ros.ros.outputs.settings import SettingsReader

MOVE_S = 0.1
"""A finger trajectory takes so long: two points of 0.05 s, and well below the 0.5 s that a whole opening takes at the rate limit."""

FINGER_M = 1e-4
"""A wanted finger position that differs less than this from the last one is the same."""

PWM_HZ = 50.0
"""Rate of the force loop, as BridgeData's robot and the driver's own Python interface have it."""

STALE_S = 0.25
"""A finger that was not measured for so long is not pressed any more."""


class Gripper(Protocol):
    """The way to one gripper; called like an Output."""

    def prepare(self) -> None:
        """Raises HandoffRefused while the gripper cannot be moved."""

    def send(self, opening: float) -> None:
        """Be so far open from now on."""

    def rivals(self) -> list[str]:
        """Who else commands it."""

    def health(self) -> Mapping[str, object]:
        """Numbers and words for diagnostics."""

    def flush(self, wait: Duration) -> None:
        """The last call, as that of an Output."""


class TrajectoryGripper:
    """A finger joint behind a joint_trajectory_controller."""

    def __init__(self, node: Node, gripper: GripperProfile) -> None:
        SettingsReader(gripper.settings, "gripper 'joint_trajectory'").finish()
        self._node, self._gripper = node, gripper
        self._trajectories = node.create_publisher(JointTrajectory, gripper.command_topic, NEWEST_RELIABLE)
        self._wanted = math.nan

    def prepare(self) -> None:
        """Somebody must listen."""
        if not self._trajectories.get_subscription_count():
            raise HandoffRefused(f"nobody listens on {self._trajectories.topic_name}. Start the gripper's controller, or choose "
                                 "'gripper: none' in the robot profile.")

    def send(self, opening: float) -> None:
        """Publish one point without a velocity, so that the controller goes there in a straight line; silent without a change."""
        position = self._gripper.closed + opening * (self._gripper.open - self._gripper.closed)
        if abs(position - self._wanted) < FINGER_M:
            return
        self._wanted = position
        self._trajectories.publish(JointTrajectory(joint_names=[self._gripper.joint], points=[
            JointTrajectoryPoint(positions=[position], time_from_start=to_duration(MOVE_S))]))

    def rivals(self) -> list[str]:
        """Other publishers of finger trajectories."""
        return other_publishers(self._node, self._trajectories.topic_name)

    def health(self) -> Mapping[str, object]:
        """Where the finger is to be."""
        return {"gripper": "joint_trajectory", "finger_wanted_m": f"{self._wanted:.4f}"}

    def flush(self, wait: Duration) -> None:
        """Wait until the controller has it."""
        self._trajectories.wait_for_all_acked(wait)


class InterbotixGripper:
    """The Interbotix driver's gripper. Its mode is asked for, never changed.

    In mode pwm the motor keeps whatever force it was last told, so a loop of our own presses towards the wanted position, eases when it
    is near, keeps pressing on an object, and says 0 when the finger is not measured any more and when this node leaves.
    """

    def __init__(self, node: Node, gripper: GripperProfile) -> None:
        settings = SettingsReader(gripper.settings, "gripper 'interbotix_single'")
        self._motor = settings.text("motor", "gripper")
        settings.finish()
        messages = driver_messages()
        self._message, self._services = messages.msg.JointSingleCommand, messages.srv
        self._node, self._gripper = node, gripper
        self._commands = node.create_publisher(self._message, gripper.command_topic, QoSProfile(depth=1))
        self._info = node.create_client(self._services.RobotInfo, "get_robot_info")
        self._errand = Errand(self._ask_mode)
        self._states = node.create_subscription(JointState, "joint_states", self._on_state, qos_profile_sensor_data)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(1.0 / PWM_HZ, self._press, clock=self._steady)
        self._lock = threading.Lock()  # the farewell comes from another thread than the loop
        self._mode, self._pwm = "", 0
        self._wanted: float | None = None
        self._finger: float | None = None
        self._finger_ns = 0

    def prepare(self) -> None:
        """Ask the driver for the gripper's mode."""
        self._errand.require()

    def send(self, opening: float) -> None:
        """In mode linear_position publish the distance between the fingers; in mode pwm tell the loop."""
        position = self._gripper.closed + opening * (self._gripper.open - self._gripper.closed)
        with self._lock:
            changed = self._wanted is None or abs(position - self._wanted) >= FINGER_M
            self._wanted = position
            if changed and self._mode == "linear_position":
                self._say(2.0 * position)

    def rivals(self) -> list[str]:
        """Other publishers of single commands."""
        return other_publishers(self._node, self._commands.topic_name)

    def health(self) -> Mapping[str, object]:
        """Mode, force, and where the finger is."""
        return {"gripper": "interbotix_single", "gripper_mode": self._mode or "not asked yet", "gripper_pwm": self._pwm,
                "finger_m": "unknown" if self._finger is None else f"{self._finger:.4f}"}

    def flush(self, wait: Duration) -> None:
        """Stop pressing, and wait until the driver knows: nobody else would."""
        self._ease()
        self._commands.wait_for_all_acked(wait)

    def _ask_mode(self) -> Conversation:
        info = yield Question(self._info, self._services.RobotInfo.Request(cmd_type="single", name=self._motor), REMEDY)
        if info.mode not in ("pwm", "linear_position"):
            raise HandoffRefused(f"the driver's gripper is in mode {info.mode!r}, expected 'pwm' or 'linear_position'. Start the driver "
                                 f"with mode_configs:={MODES_FILE}.")
        self._mode = info.mode

    def _on_state(self, message: JointState) -> None:
        if self._gripper.joint in message.name:
            position = message.position[message.name.index(self._gripper.joint)]
            if math.isfinite(position):
                self._finger, self._finger_ns = position, self._steady.now().nanoseconds

    def _press(self) -> None:
        """One turn of the force loop."""
        with self._lock:
            if self._mode != "pwm" or self._wanted is None:
                return
            stale = self._steady.now().nanoseconds - self._finger_ns > STALE_S * SECOND_NS
            pwm = 0 if stale or self._finger is None else pressing_pwm(self._wanted, self._finger)
            if pwm != self._pwm:
                self._pwm = pwm
                self._say(float(pwm))

    def _ease(self) -> None:
        """Press no more, until there is another opening."""
        with self._lock:
            self._wanted = None
            if self._pwm:
                self._pwm = 0
                self._say(0.0)

    def _say(self, command: float) -> None:
        self._commands.publish(self._message(name=self._motor, cmd=command))


class WithGripper:
    """An Output for the arm together with its gripper."""

    def __init__(self, arm: Output, gripper: Gripper) -> None:
        self._arm, self._gripper = arm, gripper

    @property
    def topic(self) -> str:
        """The topic that moves the arm."""
        return self._arm.topic

    def prepare(self) -> None:
        """Both, so that neither waits for the other; the refusals of both together."""
        refusals = []
        for part in (self._arm, self._gripper):
            try:
                part.prepare()
            except HandoffRefused as refusal:
                refusals.append(str(refusal))
        if refusals:
            raise HandoffRefused(" ".join(dict.fromkeys(refusals)))

    def send(self, motion: Motion, now: Now) -> None:
        """The arm's command, and the opening where there is one; without one the gripper is kept."""
        self._arm.send(motion, now)
        if motion.gripper is not None:
            self._gripper.send(motion.gripper)

    def rivals(self) -> list[str]:
        """Who else commands arm or gripper."""
        return sorted({*self._arm.rivals(), *self._gripper.rivals()})

    def trouble(self) -> str:
        """What keeps the arm."""
        return self._arm.trouble()

    def health(self) -> Mapping[str, object]:
        """Of both."""
        return {**self._arm.health(), **self._gripper.health()}

    def flush(self, wait: Duration) -> None:
        """Both, one after the other."""
        self._arm.flush(wait)
        self._gripper.flush(wait)


def with_gripper(node: Node, profile: RobotProfile, arm: Output) -> Output:
    """The arm's output with the gripper that the profile names beside it; the arm's alone when it names none."""
    kind, gripper = profile.outputs[profile.output].gripper, profile.gripper
    if gripper is None:
        return arm
    return WithGripper(arm, InterbotixGripper(node, gripper) if kind == "interbotix_single" else TrajectoryGripper(node, gripper))
