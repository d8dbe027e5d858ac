"""Recordings made on the spot, for tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
T0_NS = 1_700_000_000_000_000_000

Entry = tuple[str, str, int, Any]  # topic, type, milliseconds after T0_NS, message


class Messages:
    """Plain values to messages of the standard types."""

    store = STORE
    t0_ns = T0_NS

    def _make(self, kind: str, *values: Any) -> Any:
        return STORE.types[kind](*values)

    def header(self, stamp_ns: int) -> Any:
        return self._make("std_msgs/msg/Header", self._make("builtin_interfaces/msg/Time", stamp_ns // 10**9, stamp_ns % 10**9), "cam")

    def image(self, at_ms: int, value: int = 0, name: str = "/camera/image_raw", stamped: bool = True, cut: int = 0) -> Entry:
        """A 4x6 rgb8 picture of one grey value; `cut` bytes are missing at its end."""
        stamp_ns = T0_NS + at_ms * 1_000_000 if stamped else 0
        data = np.full(4 * 6 * 3 - cut, value, np.uint8)
        message = self._make("sensor_msgs/msg/Image", self.header(stamp_ns), 4, 6, "rgb8", 0, 18, data)
        return name, "sensor_msgs/msg/Image", at_ms, message

    def text(self, at_ms: int, text: str, name: str = "/instruction") -> Entry:
        return name, "std_msgs/msg/String", at_ms, self._make("std_msgs/msg/String", text)

    def numbers(self, at_ms: int, numbers: Sequence[float], name: str = "/teleop/action7") -> Entry:
        layout = self._make("std_msgs/msg/MultiArrayLayout", [], 0)
        message = self._make("std_msgs/msg/Float64MultiArray", layout, np.array(numbers, np.float64))
        return name, "std_msgs/msg/Float64MultiArray", at_ms, message

    def twist(self, at_ms: int, numbers: Sequence[float], name: str = "/teleop/action") -> Entry:
        move, turn = (self._make("geometry_msgs/msg/Vector3", *numbers[part:part + 3]) for part in (0, 3))
        message = self._make("geometry_msgs/msg/TwistStamped", self.header(T0_NS), self._make("geometry_msgs/msg/Twist", move, turn))
        return name, "geometry_msgs/msg/TwistStamped", at_ms, message


@pytest.fixture
def messages() -> Messages:
    return Messages()


@pytest.fixture
def write_bag(tmp_path: Path) -> Callable[..., Path]:
    """write_bag(entries, name="bag", storage="mcap") -> its folder."""

    def write(entries: Sequence[Entry], name: str = "bag", storage: str = "mcap") -> Path:
        folder = tmp_path / name
        plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
        with Writer(folder, version=9, storage_plugin=plugin) as writer:
            channels: dict[tuple[str, str], Any] = {}
            for topic, kind, at_ms, message in entries:
                if (topic, kind) not in channels:
                    channels[(topic, kind)] = writer.add_connection(topic, kind, typestore=STORE)
                writer.write(channels[(topic, kind)], T0_NS + at_ms * 1_000_000, STORE.serialize_cdr(message, kind))
        return folder

    return write
