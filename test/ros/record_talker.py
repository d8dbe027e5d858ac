"""A world for the recorder to listen to: camera, joint states, instruction and what it is told on stdin, as one process of its own.

Usage: record_talker.py [SIZE of a picture in bytes]. Prints "ready" once it publishes. Lines on stdin: `driver POLICY` publishes that
driver, `late` begins a topic that was not there, `foreign` one whose type the recorder lacks, `call start` calls the recorder's service
and prints the answer, `end` prints what was sent (topic -> digests of the serialised messages, in order) and leaves.
"""

from __future__ import annotations

import hashlib
import json
import queue
import sys
import threading
from typing import Any

import rclpy
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, JointState, Joy
from std_msgs.msg import String
from std_srvs.srv import Trigger

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


class Talker:
    """Publishes on the main thread; stdin is read on another."""

    def __init__(self, size: int) -> None:
        self.node = rclpy.create_node("talker")
        self.sent: dict[str, list[str]] = {}
        self.size, self.count = size, 0
        self.publishers: dict[str, Any] = {}
        self.orders: queue.Queue[str] = queue.Queue()
        self.say("/instruction", String(data="put the red block in the bowl"), LATCHED)
        self.node.create_timer(0.05, self.tick)
        threading.Thread(target=lambda: [self.orders.put(line.strip()) for line in sys.stdin], daemon=True).start()

    def say(self, topic: str, message: Any, quality: QoSProfile | int = 10) -> None:
        if topic not in self.publishers:
            self.publishers[topic] = self.node.create_publisher(type(message), topic, quality)
        data = serialize_message(message)
        self.sent.setdefault(topic, []).append(hashlib.sha256(data).hexdigest())
        self.publishers[topic].publish(data)

    def tick(self) -> None:
        self.count += 1
        picture = CompressedImage(format="jpeg", data=self.count.to_bytes(4, "little") * (self.size // 4))
        picture.header.stamp = self.node.get_clock().now().to_msg()
        self.say("/image/compressed", picture)
        self.say("/joint_states", JointState(name=["waist"], position=[float(self.count)]), BEST_EFFORT)
        if "/joy" in self.publishers:
            self.say("/joy", Joy(axes=[float(self.count)]))

    def obey(self, order: str) -> None:
        word, _, rest = order.partition(" ")
        if word == "driver":
            self.say("/driver", String(data=rest), LATCHED)
        elif word == "late":
            self.say("/joy", Joy())
        elif word == "foreign":
            from interbotix_xs_msgs.msg import JointSingleCommand

            self.say("/commands/joint_single", JointSingleCommand())
        elif word == "call":
            client = self.node.create_client(Trigger, f"/recorder/{rest}")
            answer = None
            while answer is None:  # an answer may be lost before its reader was matched
                client.wait_for_service(timeout_sec=1.0)
                future = client.call_async(Trigger.Request())
                rclpy.spin_until_future_complete(self.node, future, timeout_sec=3.0)
                answer = future.result() if future.done() else None
            print(json.dumps({"success": answer.success, "message": answer.message}), flush=True)


def main() -> None:
    rclpy.init()
    talker = Talker(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
    print("ready", flush=True)
    while True:
        rclpy.spin_once(talker.node, timeout_sec=0.05)
        while not talker.orders.empty():
            if (order := talker.orders.get()) == "end":
                print(json.dumps(talker.sent), flush=True)
                rclpy.shutdown()
                return
            talker.obey(order)


if __name__ == "__main__":
    main()
