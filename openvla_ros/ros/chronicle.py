"""What a run keeps of itself for its film and its plot: pictures, poses, drivers, instructions, latencies; a bounded amount.

Messages come in from any thread; a `Page` of plain values goes out at the end. Files are written by `cli/film.py` and `cli/run_plot.py`.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from geometry_msgs.msg import Pose
from openvla_msgs.msg import ActionChunk, CommandReport

from openvla_ros.contract import ByteArray, FloatArray
from openvla_ros.errors import ImageError
from openvla_ros.ros.camera import ImageMessage, decode
from openvla_ros.ros.convert import SECOND_NS, from_delta, to_ns

PICTURES = 300
"""Most pictures that are kept: 30 s at 10 per second. When there are more, every second one goes, and half as many are taken from
then on: a long run becomes a film in quick motion."""

SPACING_S = 0.1
"""Between two pictures, as long as none were left out."""

SEEN_LEVELS, SEEN_SHARE = 12, 0.0005
"""A pixel counts as changed from so many of its 256 levels on, a picture from so large a share of its pixels on."""

REMEMBERED = 40_000
"""Reports and chunks that are kept: an hour and more."""

DRIVERS = {CommandReport.HOLD: "HOLD", CommandReport.POLICY: "POLICY", CommandReport.HUMAN: "HUMAN", CommandReport.STOPPED: "STOPPED"}


@dataclass(frozen=True)
class Picture:
    """A moment for people."""

    time_s: float
    shape: tuple[int, ...]  # [H, W, 3]
    packed: bytes
    instruction: str
    driver: str
    verdict: str

    def rgb(self) -> ByteArray:
        """uint8 [H, W, 3], red first."""
        return np.frombuffer(zlib.decompress(self.packed), dtype=np.uint8).reshape(self.shape)


@dataclass(frozen=True)
class Row:
    """What command_node said at one moment. Positions are NaN where they are not known."""

    time_s: float
    driver: str
    measured_m: FloatArray  # [3] of the end effector, base frame
    target_m: FloatArray  # [3] the same, where it is to be
    sent: tuple[float, ...]  # the newest step as it went to the arm, in the order of ACTION_NAMES; empty while none was started


@dataclass(frozen=True)
class Page:
    """The whole run. Times are seconds since its first report, on the ROS clock; where that jumped back, they go on."""

    rows: tuple[Row, ...] = ()
    latencies: tuple[tuple[float, float], ...] = ()  # time [s], milliseconds of one inference
    instructions: tuple[tuple[float, str], ...] = ()  # when it changed [s], to what
    openings: tuple[tuple[float, float], ...] = ()  # time [s], measured gripper opening 0 .. 1
    pictures: tuple[Picture, ...] = field(default=(), repr=False)
    spacing_s: float = SPACING_S  # at least so much time between two pictures


class Chronicle:
    """Keeps what comes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offset_ns: int | None = None
        self._newest_ns = 0  # on the clock of the page
        self._rows: deque[Row] = deque(maxlen=REMEMBERED)
        self._latencies: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self._openings: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        self._instructions: list[tuple[float, str]] = []
        self._pictures: list[Picture] = []
        self._spacing_s = SPACING_S
        self._sent: tuple[float, ...] = ()

    def on_report(self, message: CommandReport) -> None:
        """command_node said what it does."""
        with self._lock:
            time_s = self._time_s(to_ns(message.header.stamp))
            if message.step_started:
                self._sent = tuple(from_delta(message.sent).to_vector())
            self._rows.append(Row(time_s, DRIVERS.get(message.driver, "unknown"),
                                  position(message.measured_pose, message.measured_pose_valid),
                                  position(message.target_pose, message.target_pose_valid), self._sent))

    def on_chunk(self, message: ActionChunk) -> None:
        """policy_node answered. It counts as now: its stamp is that of the picture it looked at."""
        with self._lock:
            now_s = self._newest_ns / SECOND_NS
            if message.stage_names:
                self._latencies.append((now_s, float(sum(message.stage_ms))))
            if message.instruction != (self._instructions[-1][1] if self._instructions else ""):
                self._instructions.append((now_s, message.instruction))

    def on_opening(self, opening: float) -> None:
        """The measured gripper opening, now."""
        with self._lock:
            self._openings.append((self._newest_ns / SECOND_NS, opening))

    def on_picture(self, message: ImageMessage, verdict: str) -> None:
        """A picture, with how the task stands. What looks like the one before, comes too soon or cannot be decoded is left out."""
        with self._lock:
            time_s = self._time_s(to_ns(message.header.stamp))
            if self._pictures and 0.0 <= time_s - self._pictures[-1].time_s < self._spacing_s - 1e-3:
                return
            try:
                rgb, _ = decode(message)
            except ImageError:
                return
            instruction = self._instructions[-1][1] if self._instructions else ""
            picture = Picture(max(0.0, time_s), rgb.shape, zlib.compress(rgb.tobytes(), 1), instruction,
                              self._rows[-1].driver if self._rows else "", verdict)
            if self._pictures and same_moment(self._pictures[-1], picture):
                return  # nobody looks at an arm that waits
            self._pictures.append(picture)
            if len(self._pictures) > PICTURES:
                self._pictures, self._spacing_s = self._pictures[::2], 2 * self._spacing_s

    def page(self) -> Page:
        """Everything so far."""
        with self._lock:
            return Page(tuple(self._rows), tuple(self._latencies), tuple(self._instructions), tuple(self._openings), tuple(self._pictures),
                        self._spacing_s)

    def _time_s(self, stamp_ns: int) -> float:
        """Where a stamp lies on the clock of the page; a clock that jumped is taken up where it was."""
        if self._offset_ns is None or abs(stamp_ns + self._offset_ns - self._newest_ns) > SECOND_NS * JUMP_S:
            self._offset_ns = self._newest_ns - stamp_ns
        self._newest_ns = max(self._newest_ns, stamp_ns + self._offset_ns)
        return (stamp_ns + self._offset_ns) / SECOND_NS


JUMP_S = 5
"""Stamps that lie so far apart are not of one course of time: a recording that began again, a clock that was set."""


def position(pose: Pose, valid: bool) -> FloatArray:
    """[3], NaN where it is not known."""
    point = pose.position
    return np.array([point.x, point.y, point.z]) if valid else np.full(3, np.nan)


def same_moment(one: Picture, other: Picture) -> bool:
    """Nothing changed that a person would see: the same words, and all but a few pixels as good as equal."""
    if (one.instruction, one.driver, one.verdict, one.shape) != (other.instruction, other.driver, other.verdict, other.shape):
        return False
    apart = np.abs(one.rgb().astype(np.int16) - other.rgb()).max(axis=2)
    return bool(np.mean(apart > SEEN_LEVELS) < SEEN_SHARE)
