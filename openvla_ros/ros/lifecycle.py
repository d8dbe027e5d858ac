"""A lifecycle node that stays answerable: state can be asked while it loads, and a wrong request never ends the process."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node

from openvla_ros.errors import OpenvlaRosError

UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = "unconfigured", "inactive", "active", "finalized"


class ManagedNode(LifecycleNodeMixin, Node):  # type: ignore[misc]
    """rclpy's LifecycleNode with two mends.

    Its lifecycle services have a callback group of their own, so a transition that takes minutes (loading a model)
    leaves parameters, diagnostics and `get_state` alive. A transition that is not possible now is answered with
    success = false; rclpy lets the exception out of the executor, which would end the node.
    """

    def __init__(self, name: str) -> None:
        Node.__init__(self, name)
        self._transition = threading.Lock()
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())

    def _LifecycleNodeMixin__on_change_state(
            self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        # rclpy registers its own private handler under this (mangled) name: this one is found first.
        wish = request.transition.label or f"id {request.transition.id}"
        if not self._transition.acquire(blocking=False):
            self.get_logger().error(f"transition {wish} refused: another transition is still running.")
            response.success = False
            return response
        try:
            return super()._LifecycleNodeMixin__on_change_state(request, response)  # type: ignore[misc]
        except Exception as error:  # rclpy raises its private RCLError
            self.get_logger().error(f"transition {wish} refused in state {self.state_label}: {error}")
            response.success = False
            return response
        finally:
            self._transition.release()

    @property
    def state_label(self) -> str:
        """Lower-case name of the lifecycle state: unconfigured, inactive, active, configuring, ..."""
        return str(self._state_machine.current_state[1])

    def attempt(self, transition: str, work: Callable[[], None]) -> TransitionCallbackReturn:
        """Run a transition's work: SUCCESS, FAILURE (expected trouble, logged in one line), or ERROR (a fault of ours)."""
        try:
            work()
        except OpenvlaRosError as error:
            self.get_logger().error(f"{transition} refused: {error}")
            self.on_refused(transition, str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.get_logger().error(f"{transition} failed: {type(error).__name__}: {error}")
            self.on_refused(transition, f"{type(error).__name__}: {error}")
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    def on_refused(self, transition: str, reason: str) -> None:
        """Remember why, for diagnostics. Called before the transition returns."""

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After a fault of ours: back to unconfigured, so that configure can be tried again."""
        return TransitionCallbackReturn.SUCCESS
