"""Hears one topic on a thread of its own, beside the node's executor.

A MultiThreadedExecutor that wakes for a message gathers everything that the node waits for anew, three times until the callback has run:
2 ms of Python on an idle computer and up to 20 ms on a busy one, all of it under the interpreter lock that inference waits for. A thread
that waits for one subscription needs a tenth of a millisecond.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.guard_condition import GuardCondition
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.qos import QoSProfile

CLOSING_S = 1.0
"""Longest wait for a callback that runs when the ear is closed."""

FOREVER_NS = -1


class Ear:
    """One subscription. The node has it like any other, so it is seen in the graph; only its messages do not pass the executor."""

    def __init__(self, node: Node, kind: type, topic: str, quality: QoSProfile, on_message: Callable[[Any], None]) -> None:
        """on_message: called with each message on the ear's thread. What it raises ends the ear and is `failure` from then on."""
        self.failure: BaseException | None = None
        self._node, self._on_message, self._closed = node, on_message, False
        self._subscription = node.create_subscription(kind, topic, on_message, quality, callback_group=BesideExecutor())
        self._wake = GuardCondition(callback=None, callback_group=None, context=node.context)
        node.context.on_shutdown(self._stop)
        self._thread = threading.Thread(target=self._run, name=topic, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear no more, and leave the graph. Not to be called from on_message."""
        self._stop()
        self._thread.join(CLOSING_S)
        self._node.destroy_subscription(self._subscription)

    def _stop(self) -> None:
        self._closed = True
        self._wake.trigger()

    def _run(self) -> None:
        try:
            self._hear()
        except BaseException as error:  # the thread must not end without a word: its owner looks at `failure`
            self.failure = error

    def _hear(self) -> None:
        """What an executor does, for one subscription (as in rclpy.wait_for_message)."""
        subscription, wake, context = self._subscription.handle, self._wake.handle, self._node.context.handle
        assert context is not None, "a node that exists has a context that was initialized"
        with subscription, wake, context:
            wait_set = rclpy_implementation.WaitSet(1, 1, 0, 0, 0, 0, context)
            while not self._closed:
                wait_set.clear_entities()
                wait_set.add_subscription(subscription)
                wait_set.add_guard_condition(wake)
                wait_set.wait(FOREVER_NS)
                if subscription.pointer in wait_set.get_ready_entities("subscription") and not self._closed:
                    taken = subscription.take_message(self._subscription.msg_type, False)
                    if taken is not None:
                        self._on_message(taken[0])


class BesideExecutor(CallbackGroup):
    """Keeps a subscription out of the executor's wait, its events included: as long as a message lies there untaken they wake it too.

    So nothing warns of a publisher whose quality of service cannot be heard; whoever makes an ear looks at the publishers.
    """

    def can_execute(self, entity: Any) -> bool:
        """Never: the executor then does not even wait for it."""
        return False

    def beginning_execution(self, entity: Any) -> bool:
        """Never."""
        return False

    def ending_execution(self, entity: Any) -> None:
        """Nothing to release."""
