"""The camera subscription: raw or compressed, with a reliability that matches the publishers that are there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from time import monotonic
from typing import Union

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from openvla_ros.contract import ByteArray
from openvla_ros.observation.image import decode_compressed, is_jpeg
from openvla_ros.ros.convert_image import ImageConverter

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
        self._node, self._on_image, self.transport = node, on_image, transport
        self._type, name = (Image, "image") if transport == "raw" else (CompressedImage, "image/compressed")
        self.topic: str = node.resolve_topic_name(name)
        self._group = MutuallyExclusiveCallbackGroup()
        self._guard, self._closed = threading.Lock(), False
        self._reliability = self._offered()
        self._made_at = monotonic()
        self._subscription = self._subscribe()

    @property
    def reliability(self) -> str:
        """"RELIABLE" or "BEST_EFFORT": what the present subscription asks for."""
        return str(self._reliability.name)

    def publishers(self) -> int:
        """How many publishers the topic has now."""
        return len(self._node.get_publishers_info_by_topic(self.topic))

    def adapt(self) -> None:
        """Make the subscription anew if the publishers ask for another reliability. Call it a few times per second."""
        with self._guard:
            offered = self._offered()
            if self._closed or offered == self._reliability or monotonic() - self._made_at < RECREATE_AFTER_S:
                return
            self._node.destroy_subscription(self._subscription)
            self._reliability, self._made_at = offered, monotonic()
            self._subscription = self._subscribe()

    def close(self) -> None:
        """Stop listening, for good."""
        with self._guard:
            self._closed = True
            self._node.destroy_subscription(self._subscription)

    def _subscribe(self):  # type: ignore[no-untyped-def]
        self._node.get_logger().info(f"{self.topic}: listening, {self._reliability.name.lower().replace('_', ' ')}")
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=self._reliability,
                         durability=DurabilityPolicy.VOLATILE)
        return self._node.create_subscription(self._type, self.topic, self._on_image, qos, callback_group=self._group)

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
