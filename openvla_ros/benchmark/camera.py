"""bench_camera: drawn pictures with a camera's noise, stamped and sent at a fixed rate, as the bytes that a C++ driver would send.

| topic | type | quality |
| --- | --- | --- |
| image (out), with `transport` raw | sensor_msgs/Image rgb8 | as `reliability` says, depth 1 |
| image/compressed (out), with `transport` compressed | sensor_msgs/CompressedImage jpeg | the same |

Everything but the stamp is made before the first picture is sent. When it leaves it says how many were sent, as one JSON line.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from typing import Any

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image

from openvla_ros.bags.scene import draw, lay_out, move
from openvla_ros.contract import ByteArray
from openvla_ros.ros.convert import SECOND_NS
from openvla_ros.ros.lifetime import live
from openvla_ros.ros.parameters import Parameter, declare, read

AT_START = "by starting the node again"

PARAMETERS = (
    Parameter("transport", "raw", "What is sent.", choices=("raw", "compressed"), locked=AT_START),
    Parameter("reliability", "reliable", "What the publisher offers.", choices=("reliable", "best_effort"), locked=AT_START),
    Parameter("rate_hz", 30.0, "Pictures per second.", unit="Hz", low=1.0, high=240.0, locked=AT_START),
    Parameter("width", 640, "Of the pictures.", unit="px", low=32, high=4096, locked=AT_START),
    Parameter("height", 480, "Of the pictures.", unit="px", low=32, high=4096, locked=AT_START),
)

PICTURES = 12
"""Different pictures, sent in turn: more in a row than a frozen camera is allowed."""

NOISE, JPEG_QUALITY = 2.0, 90
"""Noise in grey levels, so that a JPEG is as large as a camera's."""

STAMP_AT = 4
"""Where the stamp of a serialized message begins: behind the four bytes that name the encoding (DDSI-RTPS 10.2)."""


class BenchCamera(Node):  # type: ignore[misc]
    """Sends on a thread of its own from the moment it is made until its farewell."""

    def __init__(self) -> None:
        super().__init__("bench_camera")
        self.finished = threading.Event()
        declare(self, PARAMETERS, locked=lambda row: True)
        values = read(self, PARAMETERS)
        raw = values["transport"] == "raw"
        quality = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=1, durability=DurabilityPolicy.VOLATILE,
            reliability=ReliabilityPolicy.RELIABLE if values["reliability"] == "reliable" else ReliabilityPolicy.BEST_EFFORT)
        kind, topic = (Image, "image") if raw else (CompressedImage, "image/compressed")
        self._messages = [bytearray(serialize_message((raw_message if raw else jpeg_message)(picture)))
                          for picture in pictures(int(values["width"]), int(values["height"]))]
        self._publisher = self.create_publisher(kind, topic, quality)
        self._period_ns = round(SECOND_NS / float(values["rate_hz"]))
        self._stop, self.sent = threading.Event(), 0
        self._thread = threading.Thread(target=self._send, name="camera", daemon=True)
        self._thread.start()

    def _send(self) -> None:
        due_ns = time.monotonic_ns()
        while not self._stop.wait(max(0, due_ns - time.monotonic_ns()) / SECOND_NS):
            message = self._messages[self.sent % PICTURES]
            struct.pack_into("<iI", message, STAMP_AT, *divmod(time.time_ns(), SECOND_NS))
            self._publisher.publish(bytes(message))
            self.sent += 1
            due_ns = max(due_ns + self._period_ns, time.monotonic_ns() - self._period_ns)  # what a stalled camera missed stays missed

    def farewell(self) -> None:
        """Send no more, and say how many there were."""
        self._stop.set()
        self._thread.join(timeout=1.0)
        print(json.dumps({"sent": self.sent}))


def pictures(width: int, height: int) -> list[ByteArray]:
    """The scene of `make-episode` at some moments, uint8 [height, width, 3] red first."""
    layout, random = lay_out(seed=0), np.random.default_rng(0)
    return [np.clip(np.rint(draw(layout, move(layout, share), width, height) + random.normal(0.0, NOISE, (height, width, 1))),
                    0, 255).astype(np.uint8) for share in np.linspace(0.0, 1.0, PICTURES)]


def raw_message(rgb: ByteArray) -> Any:
    """sensor_msgs/Image without a stamp."""
    message = Image(height=rgb.shape[0], width=rgb.shape[1], encoding="rgb8", step=3 * rgb.shape[1], data=rgb.tobytes())
    message.header.frame_id = "camera"
    return message


def jpeg_message(rgb: ByteArray) -> Any:
    """sensor_msgs/CompressedImage without a stamp."""
    _, file = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    message = CompressedImage(format="jpeg", data=file.tobytes())
    message.header.frame_id = "camera"
    return message


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process; ends with SIGTERM."""
    return live(BenchCamera, arguments)
