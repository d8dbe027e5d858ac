"""The eyes and hands of `openvla-ros run`: one node that listens to everything, drives the lifecycle and asks for a driver."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from time import monotonic

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from openvla_msgs.msg import ActionChunk, CommandReport
from openvla_msgs.srv import SetDriver
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_msgs.msg import String
from std_srvs.srv import Trigger

from openvla_ros.ros.convert import LATCHED
from openvla_ros.ros.tally import Tally

TRANSITIONS = {"configure": Transition.TRANSITION_CONFIGURE, "activate": Transition.TRANSITION_ACTIVATE,
               "deactivate": Transition.TRANSITION_DEACTIVATE}
RESUME = "/bag_player/resume"
DRIVERS = {"hold": SetDriver.Request.HOLD, "policy": SetDriver.Request.POLICY}

EVERY_CHUNK = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
EVERY_REPORT = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
ARM = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)


class Observer:
    """A node that spins on a thread of its own from construction to `close`. Answers come as futures: poll `done()`."""

    def __init__(self, namespace: str, command_topic: str, instruction_topic: str, instruction: str) -> None:
        """Joins ROS with the environment of this process. namespace: that of the nodes it looks at.

        instruction: published, latched for as long as this lives, when not empty.
        """
        self.tally = Tally()
        self._arm_at: float | None = None
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node(f"openvla_ros_run_{os.getpid()}", namespace=namespace or None)
        space = self._node.get_namespace().rstrip("/")
        ours = (f"{space}/policy_node:", f"{space}/command_node:")
        listen = self._node.create_subscription
        listen(ActionChunk, "action_chunk", lambda message: self.tally.on_chunk(message, monotonic()), EVERY_CHUNK)
        listen(CommandReport, "command_report", self.tally.on_report, EVERY_REPORT)
        listen(String, "driver", self._on_driver, LATCHED)
        listen(DiagnosticArray, "/diagnostics", lambda message: self.tally.on_diagnostics(message, ours), 20)
        if command_topic:
            listen(TwistStamped, command_topic, self._on_arm, ARM)
        self._change = self._node.create_client(ChangeState, "policy_node/change_state")
        self._set_driver = self._node.create_client(SetDriver, "set_driver")
        self._resume = self._node.create_client(Trigger, RESUME)
        # Only where an instruction was given: a second publisher beside the recording's own would be refused by its player.
        self._instruction = self._node.create_publisher(String, instruction_topic, LATCHED) if instruction else None
        if self._instruction is not None:
            self._instruction.publish(String(data=instruction))
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="observer", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

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

    def resume_player(self) -> Future | None:
        """Ask the paused player to begin; None while it is not there yet. Asking again does no harm."""
        return self._resume.call_async(Trigger.Request()) if self._resume.service_is_ready() else None

    def close(self) -> None:
        """Leave ROS. Call it once, from the thread that made this."""
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        rclpy.try_shutdown()
