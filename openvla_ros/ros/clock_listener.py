"""Hears /clock apart from a node's executor, and keeps the node's time with it.

The clock comes a hundred times per second, and each message would wake the whole executor. With a MultiThreadedExecutor and the services
of a lifecycle node that costs 5 ms of Python each: half a core, and the interpreter lock that inference waits for. Here it is 0.6 ms.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter

CLOCK = "/clock"


class ClockListener:
    """Of one node that uses simulated time. It listens until `close`."""

    def __init__(self, node: Node) -> None:
        # Without the global arguments, which would give this node the name of the other.
        self._node = Node(f"{node.get_name()}_clock", namespace=node.get_namespace(), use_global_arguments=False,
                          parameter_overrides=[Parameter("use_sim_time", value=True)], start_parameter_services=False,
                          enable_rosout=False)
        source = node._time_source  # rclpy has no public way to it, but its methods are public
        source.ros_time_is_active = False  # or it would take itself for subscribed
        source.detach_node()
        source.attach_node(self._node)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="clock", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        """Time stands still from here on."""
        self._executor.shutdown(timeout_sec=1.0)
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():
            self._node.destroy_node()


def hear_apart(node: Node) -> ClockListener | None:
    """A listener for a node that uses simulated time; None where it does not, or where /clock was given another name."""
    if not node.get_parameter("use_sim_time").value or node.resolve_topic_name(CLOCK) != CLOCK:
        return None
    return ClockListener(node)
