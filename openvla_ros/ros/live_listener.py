"""Hears what the policy says while a recording is played, and the played clock: for `openvla-ros replay --live`."""

from __future__ import annotations

import threading
from contextlib import suppress
from time import monotonic, monotonic_ns

import rclpy
from openvla_msgs.msg import ActionChunk
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock

from openvla_ros.bags.agreement import HeardChunk, Tick
from openvla_ros.ros.convert import from_delta, to_ns

EVERYTHING = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE)
CLOCK_QUALITY = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)

TICKS_KEPT_EVERY = 10
"""The clock comes a hundred times a second; a tenth of it tells its rate."""


class LiveListener:
    """A node that spins on a thread of its own from construction to `close`. Joins ROS with the environment of this process."""

    def __init__(self, namespace: str = "") -> None:
        """namespace: that of policy_node."""
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("openvla_ros_replay", namespace=namespace or None, context=self._context)
        self._lock = threading.Lock()
        self._chunks: list[HeardChunk] = []
        self._ticks: list[Tick] = []
        self._played_ns: int | None = None
        self._ticks_heard = 0
        self._clock_at_s: float | None = None
        self._node.create_subscription(ActionChunk, "action_chunk", self._on_chunk, EVERYTHING)
        self._node.create_subscription(Clock, "/clock", self._on_clock, CLOCK_QUALITY)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="live listener", daemon=True)
        self._thread.start()

    @property
    def chunks(self) -> tuple[HeardChunk, ...]:
        """Everything that was said so far."""
        with self._lock:
            return tuple(self._chunks)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """The clock so far, thinned out."""
        with self._lock:
            return tuple(self._ticks)

    @property
    def clock_silent_s(self) -> float | None:
        """Since the last tick of the played clock [s, wall time]; None when there never was one."""
        return None if self._clock_at_s is None else monotonic() - self._clock_at_s

    def close(self) -> None:
        """Leave ROS."""
        self._executor.shutdown()
        self._thread.join()
        self._node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def _on_clock(self, message: Clock) -> None:
        steady_ns, self._clock_at_s = monotonic_ns(), monotonic()
        self._played_ns = played_ns = to_ns(message.clock)
        self._ticks_heard += 1
        if self._ticks_heard % TICKS_KEPT_EVERY == 1:
            with self._lock:
                self._ticks.append(Tick(played_ns, steady_ns))

    def _on_chunk(self, message: ActionChunk) -> None:
        action = from_delta(message.steps[0]).to_vector() if message.steps else None
        stage_ms = dict(zip(message.stage_names, map(float, message.stage_ms), strict=False))
        chunk = HeardChunk(to_ns(message.header.stamp), self._played_ns, message.instruction, tuple(message.token_ids), action,
                           message.fault, stage_ms)
        with self._lock:
            self._chunks.append(chunk)
