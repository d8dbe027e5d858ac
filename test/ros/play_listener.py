"""A listener of its own process: what comes over DDS while a recording is played, as one JSON object on stdout.

Usage: play_listener.py '{"topic": "package/msg/Type", ...}' - ends when the topics were silent for SILENCE_S after the first message.
Subscribes to /instruction, latched, only once the first message came: a late joiner.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import import_module
from time import monotonic
from typing import Any

import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

SILENCE_S, DEADLINE_S = 1.5, 40.0


def main() -> None:
    rclpy.init()
    node = rclpy.create_node("play_listener")
    seen: dict[str, Any] = {"clock_ns": [], "messages": {}, "late_instruction": None}
    newest = [0.0]

    def on_clock(message: Clock) -> None:
        seen["clock_ns"].append(message.clock.sec * 10**9 + message.clock.nanosec)

    def on_instruction(message: String) -> None:
        seen["late_instruction"] = message.data

    def on_message(topic: str, data: bytes) -> None:
        if not newest[0]:
            latched = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            node.create_subscription(String, "/instruction", on_instruction, latched)
        newest[0] = monotonic()
        seen["messages"].setdefault(topic, []).append(hashlib.sha256(data).hexdigest())

    node.create_subscription(Clock, "/clock", on_clock, QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE))
    for topic, kind in json.loads(sys.argv[1]).items():
        package, _, name = kind.split("/")
        quality = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        node.create_subscription(getattr(import_module(f"{package}.msg"), name), topic,
                                 lambda data, topic=topic: on_message(topic, data), quality, raw=True)
    deadline = monotonic() + DEADLINE_S
    while monotonic() < deadline and (not newest[0] or monotonic() - newest[0] < SILENCE_S):
        rclpy.spin_once(node, timeout_sec=0.1)
    print(json.dumps(seen))
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == "__main__":
    main()
