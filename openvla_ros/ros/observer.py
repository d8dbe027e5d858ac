"""The eyes and hands of `openvla-ros run`: one node that listens to everything, drives the lifecycle and asks for a driver."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from openvla_msgs.msg import ActionChunk, CommandReport
from openvla_msgs.srv import ResetScene, SetDriver
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from visualization_msgs.msg import MarkerArray

from openvla_ros.robot import GripperProfile
from openvla_ros.ros.chronicle import Chronicle
from openvla_ros.ros.convert import LATCHED
from openvla_ros.ros.plan import Film
from openvla_ros.ros.tally import Tally

if TYPE_CHECKING:
    from openvla_ros.ros.scene_watch import SceneWatch

TRANSITIONS = {"configure": Transition.TRANSITION_CONFIGURE, "activate": Transition.TRANSITION_ACTIVATE,
               "deactivate": Transition.TRANSITION_DEACTIVATE}
RESUME, RESET_SCENE = "/bag_player/resume", "simulation_node/reset_scene"
DRIVERS = {"hold": SetDriver.Request.HOLD, "policy": SetDriver.Request.POLICY}

EVERY_CHUNK = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
EVERY_REPORT = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
ARM = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)


class Observer:
    """A node that spins on a thread of its own from construction to `close`. Answers come as futures: poll `done()`."""

    def __init__(self, namespace: str, command_topic: str, instruction_topic: str, gripper: GripperProfile | None = None,
                 film: Film | None = None) -> None:
        """Joins ROS with the environment of this process. namespace: that of the nodes it looks at.

        command_topic: watched for silence; empty where that is not asked for. instruction_topic: where `instruct` publishes; empty
        where it is never called. gripper: that of simulation_node, where it takes part; its scene is watched then. film: the pictures
        that are kept.
        """
        self.tally, self.chronicle = Tally(), Chronicle()
        self.scene: SceneWatch | None = None
        self._arm_at: float | None = None
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node(f"openvla_ros_run_{os.getpid()}", namespace=namespace or None)
        space = self._node.get_namespace().rstrip("/")
        ours = tuple(f"{space}/{name}:" for name in ("policy_node", "command_node", "simulation_node"))
        listen = self._node.create_subscription
        listen(ActionChunk, "action_chunk", self._on_chunk, EVERY_CHUNK)
        listen(CommandReport, "command_report", self._on_report, EVERY_REPORT)
        listen(String, "driver", self._on_driver, LATCHED)
        listen(DiagnosticArray, "/diagnostics", lambda message: self.tally.on_diagnostics(message, ours), 20)
        if command_topic:
            listen(TwistStamped, command_topic, self._on_arm, ARM)
        self._change = self._node.create_client(ChangeState, "policy_node/change_state")
        self._set_driver = self._node.create_client(SetDriver, "set_driver")
        self._resume = self._node.create_client(Trigger, RESUME)
        # Only where it is needed: a second publisher beside the recording's own would be refused by its player.
        self._instruction = self._node.create_publisher(String, instruction_topic, LATCHED) if instruction_topic else None
        self._reset_scene: Client | None = None
        if gripper is not None:
            self._watch_scene(gripper)
        if film is not None:
            reliability = ReliabilityPolicy.RELIABLE if film.reliable else ReliabilityPolicy.BEST_EFFORT
            quality = QoSProfile(depth=1, reliability=reliability, durability=DurabilityPolicy.VOLATILE)
            listen(CompressedImage if film.compressed else Image, film.topic, self._on_picture, quality)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="observer", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def _watch_scene(self, gripper: GripperProfile) -> None:
        from openvla_ros.ros.scene_watch import SceneWatch  # late: MuJoCo

        self.scene = scene = SceneWatch(gripper)
        listen = self._node.create_subscription
        listen(MarkerArray, "simulation/objects", scene.on_objects, 10)
        listen(JointState, "joint_states", self._on_joints, 10)
        self._reset_scene = self._node.create_client(ResetScene, RESET_SCENE)

    def _on_chunk(self, message: ActionChunk) -> None:
        self.tally.on_chunk(message, monotonic())
        self.chronicle.on_chunk(message)
        if self.scene is not None:
            self.scene.on_instruction(message.instruction)

    def _on_report(self, message: CommandReport) -> None:
        self.tally.on_report(message)
        self.chronicle.on_report(message)
        if self.scene is not None:
            self.scene.on_report(message)
            if self.scene.opening is not None:
                self.chronicle.on_opening(self.scene.opening)

    def _on_joints(self, message: JointState) -> None:
        assert self.scene is not None
        self.scene.on_joints(message)

    def _on_picture(self, message: Image | CompressedImage) -> None:
        self.chronicle.on_picture(message, "" if self.scene is None else self.scene.verdict())

    def _on_driver(self, message: String) -> None:
        self.tally.on_driver(message.data)

    def _on_arm(self, message: TwistStamped) -> None:
        self._arm_at = monotonic()

    @property
    def policy_answers(self) -> bool:
        """policy_node's lifecycle service is there."""
        return bool(self._change.service_is_ready())

    @property
    def command_answers(self) -> bool:
        """command_node's set_driver service is there."""
        return bool(self._set_driver.service_is_ready())

    def arm_silent_s(self) -> float:
        """Since the last command on the arm topic [s, wall time]; infinity when there never was one."""
        return float("inf") if self._arm_at is None else monotonic() - self._arm_at

    def change_state(self, transition: str) -> Future:
        """Ask policy_node for a transition. The answer's `success` is false when it refused."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        return self._change.call_async(request)

    def set_driver(self, driver: str) -> Future:
        """Ask command_node for "hold" or "policy". The answer has `success` and `reason`."""
        return self._set_driver.call_async(SetDriver.Request(driver=DRIVERS[driver]))

    @property
    def scene_answers(self) -> bool:
        """simulation_node's reset_scene is there, and its scene was seen."""
        return self._reset_scene is not None and self.scene is not None and self._reset_scene.service_is_ready() and self.scene.seen

    def instruct(self, text: str) -> None:
        """Publish an instruction, latched for as long as this lives; empty: stop."""
        assert self._instruction is not None, "made without an instruction topic"
        self._instruction.publish(String(data=text))

    def reset_scene(self, seed: int) -> Future:
        """Ask simulation_node for another scene. The answer has `success`, `reason` and `colours`."""
        assert self._reset_scene is not None, "made without a simulation"
        return self._reset_scene.call_async(ResetScene.Request(seed=seed))

    def resume_player(self) -> Future | None:
        """Ask the paused player to begin; None while it is not there yet. Asking again does no harm."""
        return self._resume.call_async(Trigger.Request()) if self._resume.service_is_ready() else None

    def close(self) -> None:
        """Leave ROS. Call it once, from the thread that made this."""
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        rclpy.try_shutdown()
