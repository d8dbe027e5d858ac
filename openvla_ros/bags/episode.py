"""A synthetic episode as a recording, with the topics and conventions of our BridgeData recordings, for machines without data.

Image k is stamped t0 + 10 ms + k / fps and logged at that time, states 1 ms and actions 2 ms later. Action k is the
displacement from state k to state k + 1, so there is one action less than images; gripper 1 open, 0 closed.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from openvla_ros.bags.frames import COMPRESSED_IMAGE, NUMBERS, STRING, TWIST
from openvla_ros.bags.read import SECOND_NS
from openvla_ros.bags.scene import INSTRUCTION, Moment, draw, lay_out, move
from openvla_ros.contract import ACTION_NAMES, ByteArray, FloatArray
from openvla_ros.errors import BagError, ConfigurationError
from openvla_ros.observation.assemble import check_instruction

T0_NS = 1_700_000_000 * SECOND_NS
"""Nominal start: a fixed one, so that equal seeds give equal recordings."""

POSE, NUMBER = "geometry_msgs/msg/PoseStamped", "std_msgs/msg/Float64"
FRAME_ID = "wx250s/base_link"
JPEG_QUALITY = 95
CAMERA_NOISE = 2.0
"""Standard deviation of the noise that is added to the drawn pictures [grey levels]: a camera never sends one picture twice."""


@dataclass(frozen=True)
class EpisodeSettings:
    """Raises ConfigurationError, or InstructionError for an unusable instruction."""

    seconds: float = 8.0
    fps: float = 5.0
    width: int = 640
    height: int = 480
    instruction: str = INSTRUCTION
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0.5 <= self.seconds <= 600.0 and 1.0 <= self.fps <= 60.0 and self.seconds * self.fps >= 2):
            raise ConfigurationError(f"episode of {self.seconds} s at {self.fps} fps; expected 0.5 to 600 s, 1 to 60 fps, 2 frames.")
        if not (32 <= self.width <= 4096 and 32 <= self.height <= 4096):
            raise ConfigurationError(f"picture size is {self.width}x{self.height}; expected 32 to 4096 pixels a side.")
        if not check_instruction(self.instruction):
            raise ConfigurationError("instruction is empty; an episode needs one. Leave the option out for the default.")

    @property
    def frames(self) -> int:
        """How many images the episode has."""
        return round(self.seconds * self.fps)


def make_episode(folder: Path, settings: EpisodeSettings, force: bool = False) -> None:
    """Write the recording `folder` (mcap). It appears whole or not at all.

    force: replace an older recording there; anything else is never replaced. Raises BagError.
    """
    if folder.exists():
        if not force:
            raise BagError(f"{folder} exists already. Use --force to replace it, or another --output.")
        if not (folder / "metadata.yaml").is_file():
            raise BagError(f"{folder} is no recording, so --force does not replace it. Choose another --output.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            unfinished = Path(beside) / folder.name
            _write(unfinished, settings)
            if folder.exists():
                folder.rename(Path(beside) / "replaced")
            shutil.move(unfinished, folder)
    except OSError as error:
        raise BagError(f"episode cannot be written to {folder}: {error}. Choose another --output.") from error


def _write(folder: Path, settings: EpisodeSettings) -> None:
    store = get_typestore(Stores.ROS2_JAZZY)
    layout, noise = lay_out(settings.seed), np.random.default_rng(settings.seed)
    moments = [move(layout, k / (settings.frames - 1)) for k in range(settings.frames)]
    with Writer(folder, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        kinds = {"/instruction": STRING, "/camera/image_raw/compressed": COMPRESSED_IMAGE, "/state/ee_pose": POSE,
                 "/state/gripper": NUMBER, "/teleop/action": TWIST, "/teleop/action7": NUMBERS}
        channels = {name: writer.add_connection(name, kind, typestore=store, offered_qos_profiles=[_quality(name == "/instruction")])
                    for name, kind in kinds.items()}

        def write(name: str, log_ns: int, message: Any) -> None:
            writer.write(channels[name], log_ns, bytes(store.serialize_cdr(message, kinds[name])))

        make = _Messages(store.types)
        write("/instruction", T0_NS, make.text(settings.instruction))
        for k, moment in enumerate(moments):
            stamp_ns = T0_NS + 10_000_000 + round(k * SECOND_NS / settings.fps)
            picture = draw(layout, moment, settings.width, settings.height) + noise.normal(0.0, CAMERA_NOISE, (
                settings.height, settings.width, 1))
            write("/camera/image_raw/compressed", stamp_ns, make.jpeg(np.clip(np.rint(picture), 0, 255).astype(np.uint8), stamp_ns))
            write("/state/ee_pose", stamp_ns + 1_000_000, make.pose(moment, stamp_ns))
            write("/state/gripper", stamp_ns + 1_000_000, make.number(moment.gripper))
            if k + 1 < len(moments):
                action = step_between(moment, moments[k + 1])
                write("/teleop/action", stamp_ns + 2_000_000, make.twist(action, stamp_ns))
                write("/teleop/action7", stamp_ns + 2_000_000, make.numbers(action))


def step_between(now: Moment, then: Moment) -> FloatArray:
    """The action [7] that leads from one moment to the next: displacement, Euler difference, gripper as commanded."""
    return np.array([*(then.position_m - now.position_m), 0.0, 0.0, then.yaw_rad - now.yaw_rad, then.gripper])


class _Messages:
    """Plain values to the message classes of the bag library."""

    def __init__(self, types: Any) -> None:
        self._types = types

    def text(self, text: str) -> Any:
        return self._types[STRING](text)

    def number(self, value: float) -> Any:
        return self._types[NUMBER](value)

    def numbers(self, action: FloatArray) -> Any:
        size = len(ACTION_NAMES)
        dimension = self._types["std_msgs/msg/MultiArrayDimension"](",".join(ACTION_NAMES), size, size)
        return self._types[NUMBERS](self._types["std_msgs/msg/MultiArrayLayout"]([dimension], 0), np.asarray(action, np.float64))

    def jpeg(self, rgb: ByteArray, stamp_ns: int) -> Any:
        done, file = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not done:
            raise BagError("OpenCV could not encode a JPEG. Install opencv-python-headless again.")
        return self._types[COMPRESSED_IMAGE](self._header(stamp_ns, "camera"), "jpeg", np.asarray(file, np.uint8).reshape(-1))

    def pose(self, moment: Moment, stamp_ns: int) -> Any:
        point = self._types["geometry_msgs/msg/Point"](*(float(part) for part in moment.position_m))
        turn = self._types["geometry_msgs/msg/Quaternion"](0.0, 0.0, float(np.sin(moment.yaw_rad / 2)),
                                                          float(np.cos(moment.yaw_rad / 2)))
        return self._types[POSE](self._header(stamp_ns, FRAME_ID), self._types["geometry_msgs/msg/Pose"](point, turn))

    def twist(self, action: FloatArray, stamp_ns: int) -> Any:
        vector = self._types["geometry_msgs/msg/Vector3"]
        move, turn = vector(*map(float, action[:3])), vector(*map(float, action[3:6]))
        return self._types[TWIST](self._header(stamp_ns, FRAME_ID), self._types["geometry_msgs/msg/Twist"](move, turn))

    def _header(self, stamp_ns: int, frame_id: str) -> Any:
        stamp = self._types["builtin_interfaces/msg/Time"](stamp_ns // SECOND_NS, stamp_ns % SECOND_NS)
        return self._types["std_msgs/msg/Header"](stamp, frame_id)


def _quality(latched: bool) -> Qos:
    forever = QosTime(9223372036, 854775807)
    return Qos(QosHistory.KEEP_LAST, 1 if latched else 10, QosReliability.RELIABLE,
               QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE, forever, forever, QosLiveliness.AUTOMATIC,
               forever, avoid_ros_namespace_conventions=False)
