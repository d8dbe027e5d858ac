"""A listener of its own process: what comes over DDS while a recording is played, as one JSON object on stdout.

Usage: play_listener.py '{"topic": "package/msg/Type", ...}' [resume service]
Ends when the topics were silent for SILENCE_S after the first message.
Subscribes to /instruction, latched, only once the first message came: a late joiner. A resume service is called, until it answers,
once the topics' publishers are known and a second has passed in silence.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib import import_module
from time import monotonic
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String
from std_srvs.srv import Trigger

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
    if len(sys.argv) > 2:
        seen |= resume(node, sys.argv[2], list(json.loads(sys.argv[1])), seen["clock_ns"], deadline)
    while monotonic() < deadline and (not newest[0] or monotonic() - newest[0] < SILENCE_S):
        rclpy.spin_once(node, timeout_sec=0.1)
    print(json.dumps(seen))
    node.destroy_node()
    rclpy.try_shutdown()


def resume(node: Node, service: str, topics: list[str], heard: list[int], deadline: float) -> dict[str, Any]:
    """Wait for the publishers, listen for SILENCE_S, and let the player begin: what came before, and what it answered."""
    while monotonic() < deadline and not all(node.count_publishers(topic) for topic in ("/clock", *topics)):
        rclpy.spin_once(node, timeout_sec=0.1)
    quiet_until = monotonic() + SILENCE_S
    while monotonic() < quiet_until:
        rclpy.spin_once(node, timeout_sec=0.1)
    before = len(heard)
    client = node.create_client(Trigger, service)
    answers, ask_at = [], 0.0
    while monotonic() < deadline and not any(answer.done() for answer in answers):
        if client.service_is_ready() and monotonic() >= ask_at:
            answers.append(client.call_async(Trigger.Request()))
            ask_at = monotonic() + 1.0
        rclpy.spin_once(node, timeout_sec=0.1)
    return {"before_resume": before, "resumed": next((answer.result().message for answer in answers if answer.done()), "")}


if __name__ == "__main__":
    main()
