"""One picture of a running camera, for a command that needs no more."""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

import rclpy
from rclpy.node import Node

from openvla_ros.contract import ByteArray
from openvla_ros.errors import ObservationError
from openvla_ros.observation.image import decode_compressed, decode_raw
from openvla_ros.ros.graph import CAMERA_TYPES, SENSOR

TOPICS = ("image", "image/compressed")
"""Looked for when no topic is named; relative to the namespace."""


def take_picture(seconds: float, namespace: str = "", topic: str = "") -> tuple[ByteArray, str]:
    """The next picture, uint8 [H, W, 3] red first, and the topic that it came from. Waits at most `seconds`, discovery included.

    Raises ObservationError when no camera publishes or none of its pictures comes, ImageError for one that cannot be decoded.
    Joins and leaves ROS with the environment of this process.
    """
    rclpy.init()
    node = Node(f"openvla_ros_snapshot_{os.getpid()}", namespace=namespace or None)
    try:
        until_s = monotonic() + seconds
        wanted = [node.resolve_topic_name(name) for name in ([topic] if topic else TOPICS)]
        found: tuple[str, str] | None = None
        while found is None and monotonic() < until_s:
            rclpy.spin_once(node, timeout_sec=0.05)
            found = _camera(node, wanted)
        if found is None:
            raise ObservationError(f"no camera publishes {' or '.join(wanted)}. Name one of the image topics with --image-topic: "
                                   f"{', '.join(_cameras(node)) or 'there is none in this ROS domain'}.")
        message = _next_message(node, *found, until_s)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    if message is None:
        raise ObservationError(f"no picture came on {found[0]} within {seconds:g} s. Is the camera running? Give --seconds more.")
    if hasattr(message, "format"):
        return decode_compressed(message.data, message.format), found[0]
    return decode_raw(message.data, message.height, message.width, message.encoding, message.step), found[0]


def _cameras(node: Node) -> dict[str, str]:
    """Topics with pictures that somebody publishes -> type."""
    return {name: kind for name, kinds in node.get_topic_names_and_types() for kind in kinds
            if kind in CAMERA_TYPES and node.count_publishers(name)}


def _camera(node: Node, wanted: list[str]) -> tuple[str, str] | None:
    present = _cameras(node)
    return next(((name, present[name]) for name in wanted if name in present), None)


def _next_message(node: Node, topic: str, kind: str, until_s: float) -> Any | None:
    came: list[Any] = []
    node.create_subscription(CAMERA_TYPES[kind], topic, came.append, SENSOR)  # best effort hears every kind of publisher
    while not came and (left_s := until_s - monotonic()) > 0:
        rclpy.spin_once(node, timeout_sec=left_s)
    return came[0] if came else None
