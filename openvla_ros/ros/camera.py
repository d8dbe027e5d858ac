"""The camera subscription: raw or compressed, with a reliability that matches the publishers that are there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from time import monotonic
from typing import Union

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from openvla_ros.contract import ByteArray
from openvla_ros.observation.image import decode_compressed, is_jpeg
from openvla_ros.ros.convert_image import ImageConverter
from openvla_ros.ros.ear import Ear

ImageMessage = Union[Image, CompressedImage]  # noqa: UP007 - evaluated at run time

IMAGE_TRANSPORTS = ("raw", "compressed")

RECREATE_AFTER_S = 1.0
"""The subscription is made anew at most this often [s, wall time], however the publishers come and go."""


class Camera:
    """Listens to `image` (raw) or `image/compressed`, depth 1: only the newest frame counts.

    Reliable when every present publisher offers it (raw pictures come in many pieces, and best effort never resends a lost
    one); best effort otherwise, because a reliable reader hears nothing from a best-effort writer.
    """

    def __init__(self, node: Node, transport: str, on_image: Callable[[ImageMessage], None]) -> None:
        """on_image: called with each picture on a thread of the camera's own, one at a time."""
        self._node, self._on_image, self.transport = node, on_image, transport
        self._type, name = (Image, "image") if transport == "raw" else (CompressedImage, "image/compressed")
        self.topic: str = node.resolve_topic_name(name)
        self._guard, self._closed = threading.Lock(), False
        self._reliability = self._offered()
        self._made_at = monotonic()
        self._ear = self._listen()

    @property
    def reliability(self) -> str:
        """"RELIABLE" or "BEST_EFFORT": what the present subscription asks for."""
        return str(self._reliability.name)

    def publishers(self) -> int:
        """How many publishers the topic has now."""
        return len(self._node.get_publishers_info_by_topic(self.topic))

    def adapt(self) -> None:
        """Make the subscription anew if the publishers ask for another reliability. Call it a few times per second.

        Raises what on_image raised, after which nothing is heard any more.
        """
        with self._guard:
            if self._ear.failure is not None:
                raise self._ear.failure
            offered = self._offered()
            if self._closed or offered == self._reliability or monotonic() - self._made_at < RECREATE_AFTER_S:
                return
            self._ear.close()
            self._reliability, self._made_at = offered, monotonic()
            self._ear = self._listen()

    def close(self) -> None:
        """Stop listening, for good. A second call does nothing."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._ear.close()

    def _listen(self) -> Ear:
        self._node.get_logger().info(f"{self.topic}: listening, {self._reliability.name.lower().replace('_', ' ')}")
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=self._reliability,
                         durability=DurabilityPolicy.VOLATILE)
        return Ear(self._node, self._type, self.topic, qos, self._on_image)

    def _offered(self) -> ReliabilityPolicy:
        offers = [info.qos_profile.reliability for info in self._node.get_publishers_info_by_topic(self.topic)]
        # Nobody there yet counts as reliable: most drivers and all recordings are, and the first frames are not missed then.
        reliable = all(offer == ReliabilityPolicy.RELIABLE for offer in offers)
        return ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT


def decode(message: ImageMessage) -> tuple[ByteArray, bool]:
    """The pixels, uint8 [H, W, 3] red first, and whether they come out of a JPEG file. Raises ImageError."""
    if isinstance(message, CompressedImage):
        return decode_compressed(message.data, message.format), is_jpeg(message.data)
    return converter().to_rgb(message), False


@cache
def converter() -> ImageConverter:
    """The one converter of this process; it remembers which encodings cv_bridge was proven for."""
    return ImageConverter()
