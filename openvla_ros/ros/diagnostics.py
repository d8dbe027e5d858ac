"""A node's health on /diagnostics, once per second of wall time, whatever state the node or the ROS clock is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

EVERY_S = 1.0

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@dataclass(frozen=True)
class Health:
    """One line: how bad (OK, WARN, ERROR), what and what to do about it, and the numbers behind it."""

    level: bytes
    message: str
    values: Mapping[str, object] = field(default_factory=dict)


class Diagnostics:
    """Publishes each part's Health under the name `<namespace>/<node>: <part>`. Parts are asked on an executor thread."""

    def __init__(self, node: Node, parts: Mapping[str, Callable[[], Health]], timed: bool = True) -> None:
        """timed: every EVERY_S by a timer of the node; else whenever the node calls `publish`, and on its calling thread."""
        self._node, self._parts = node, dict(parts)
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        if timed:
            self._timer = node.create_timer(EVERY_S, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME),
                                            callback_group=MutuallyExclusiveCallbackGroup())

    def publish(self) -> None:
        """Send one message now."""
        message = DiagnosticArray()
        message.header.stamp = self._node.get_clock().now().to_msg()
        for part, ask in self._parts.items():
            health = ask()
            message.status.append(DiagnosticStatus(
                level=health.level, name=f"{self._node.get_fully_qualified_name()}: {part}", message=health.message,
                values=[KeyValue(key=key, value=str(value)) for key, value in health.values.items()]))
        self._publisher.publish(message)
