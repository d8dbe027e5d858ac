"""A recording in, its camera frames out: each with the instruction that held and the action that was recorded after it.

The conventions of our recordings: `/instruction` (std_msgs/String), `/teleop/action7` (Float64MultiArray: dx dy dz droll
dpitch dyaw gripper) or `/teleop/action` (TwistStamped that holds a *delta per step*, no gripper). An action belongs to the
newest frame that was logged before it, and only the first action after a frame counts.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from openvla_ros.bags.read import SECOND_NS, Raw, Recording, Topic
from openvla_ros.contract import ACTION_NAMES, ByteArray, FloatArray
from openvla_ros.errors import BagError, ImageError
from openvla_ros.observation.assemble import check_instruction
from openvla_ros.observation.image import decode_compressed, decode_raw, is_jpeg

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
STRING, NUMBERS, TWIST = "std_msgs/msg/String", "std_msgs/msg/Float64MultiArray", "geometry_msgs/msg/TwistStamped"

IMAGE_TOPICS = ("/camera/image_raw", "/camera/image_raw/compressed", "/image", "/image/compressed")
"""Taken without asking when a recording has several image topics, the first that is there."""
INSTRUCTION_TOPIC = "/instruction"
ACTION_TOPICS = ("/teleop/action7", "/teleop/action")

ACTION_WITHIN_NS = SECOND_NS
"""An action logged later than this after its frame belongs to no frame."""

OTHER_CLOCK_NS = 60 * SECOND_NS
"""Stamps that lie further than this from the time of recording come from another clock."""

DECODERS = 4
"""Most threads that decode pictures ahead: more than a disk can feed."""


@dataclass(frozen=True)
class Selection:
    """Which topics of a recording make up its frames, and the instruction where it has none (or another is wanted)."""

    image: Topic
    instruction: Topic | None
    action: Topic | None
    fixed_instruction: str = ""


@dataclass(frozen=True)
class Frame:
    """One camera frame of a recording. Exactly one of `rgb` and `fault` says something.

    index counts the image messages from 0. stamp_ns is the header stamp, or the log time where the stamp is zero.
    recorded: [7] in the order of ACTION_NAMES, NaN where the recording does not say; None without an action.
    """

    index: int
    stamp_ns: int
    log_ns: int
    instruction: str
    rgb: ByteArray | None
    jpeg: bool
    recorded: FloatArray | None
    fault: str = ""
    marks: Marks | None = None  # only where asked for


class Marks(NamedTuple):
    """Digests that tell two frames apart without keeping them: of the message as it was recorded, and of its pixels ("": none)."""

    message: str
    picture: str


@dataclass
class Tally:
    """What a pass over a recording left out or found odd, counted while it goes."""

    images: int = 0
    without_instruction: int = 0
    actions: int = 0
    unmatched_actions: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    stamps_back: int = 0  # header stamps that lie before the stamp of the frame before
    other_clock: int = 0  # header stamps that lie OTHER_CLOCK_NS away from the time of recording
    last_stamp_ns: int = 0

    def look_at_clock(self, frame: Frame) -> None:
        """Count what is odd about a frame's stamp."""
        self.stamps_back += frame.stamp_ns < self.last_stamp_ns
        self.other_clock += abs(frame.stamp_ns - frame.log_ns) > OTHER_CLOCK_NS
        self.last_stamp_ns = frame.stamp_ns

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know about the clocks of the recording."""
        notes = []
        if self.stamps_back:
            notes.append(f"{self.stamps_back} header stamps go back: two cameras on one topic, or a clock that was set while recording. "
                         "Frames are taken in the order in which they were recorded")
        if self.other_clock:
            notes.append(f"{self.other_clock} header stamps are more than {OTHER_CLOCK_NS // SECOND_NS} s away from the time of recording: "
                         "camera and recorder have different clocks. Synchronise them (chrony), or use one use_sim_time for both")
        return tuple(notes)


def select(recording: Recording, image_topic: str = "", instruction: str = "", instruction_topic: str = "",
           action_topic: str = "") -> Selection:
    """Choose the topics; a name that is given wins, the rest is found by convention.

    Raises BagError when there is no image topic, when several are equally good, or when there is no instruction at all;
    InstructionError for an unusable `instruction`.
    """
    fixed = check_instruction(instruction)
    image = _typed(recording.topic(image_topic), IMAGE, COMPRESSED_IMAGE) if image_topic else _find_image(recording)
    said = None
    if not fixed:
        said = _typed(recording.topic(instruction_topic), STRING) if instruction_topic else _find_instruction(recording)
    return Selection(
        image=image,
        instruction=said,
        action=_typed(recording.topic(action_topic), NUMBERS, TWIST) if action_topic else _find_action(recording),
        fixed_instruction=fixed,
    )


def frames(recording: Recording, selection: Selection, tally: Tally | None = None, stride: int = 1,
           limit: int = 0, ahead: int = 0, marks: bool = False) -> Iterator[Frame]:
    """The frames that a policy would be shown, in log order.

    stride: every so many-th image only. limit: end after so many frames, 0 for all. ahead: so many pictures are decoded in
    threads while the caller looks at earlier ones; that many and one are in memory. marks: give each frame its digests.
    Frames before the first instruction and while it is empty are counted in `tally`, not given. Raises BagError, and
    InstructionError for a recorded instruction that may not be shown to a model.
    """
    tally = tally if tally is not None else Tally()
    if selection.image.type == IMAGE and not marks:
        ahead = 0  # a raw picture is a view of its message: threads would cost more than they save
    for frame in _decoded(recording, _shown(recording, selection, tally, stride, limit), ahead, marks):
        if frame.fault:
            tally.faults[frame.fault] = tally.faults.get(frame.fault, 0) + 1
        tally.look_at_clock(frame)
        yield frame


def pick(recording: Recording, selection: Selection, indices: Collection[int]) -> Iterator[Frame]:
    """Only some frames, by their index; the pictures between them are not decoded. Raises as `frames` does."""
    left = set(indices)
    for one in _shown(recording, selection, Tally(), stride=1, limit=0):
        if one.number in left:
            left.remove(one.number)
            yield _frame(recording, one, marks=False)
        if not left:
            return


class _Shown(NamedTuple):
    """A frame that is not decoded yet. number: as Frame.index."""

    number: int
    raw: Raw
    instruction: str
    recorded: FloatArray | None


def _shown(recording: Recording, selection: Selection, tally: Tally, stride: int, limit: int) -> Iterator[_Shown]:
    """Each image with the instruction before it and the action after it."""
    topics = [topic for topic in (selection.image, selection.instruction, selection.action) if topic]
    pending: _Shown | None = None  # waits for its action
    instruction, given = selection.fixed_instruction, 0
    for raw in recording.messages(topics):
        if raw.topic is selection.instruction:
            with _as_defined(recording, raw.topic):
                instruction = check_instruction(str(recording.decode(raw).data))
        elif raw.topic is selection.action:
            tally.actions += 1
            if pending is None or pending.recorded is not None or raw.log_ns - pending.raw.log_ns > ACTION_WITHIN_NS:
                tally.unmatched_actions += 1
            else:
                with _as_defined(recording, raw.topic):
                    pending = pending._replace(recorded=_action(recording.decode(raw), raw.topic))
        else:
            if pending is not None:
                yield pending
                given += 1
            pending = None
            if limit and given >= limit:
                return
            index, tally.images = tally.images, tally.images + 1
            if index % stride:
                continue
            if instruction:
                pending = _Shown(index, raw, instruction, None)
            else:
                tally.without_instruction += 1
    if pending is not None:
        yield pending


def _decoded(recording: Recording, shown: Iterator[_Shown], ahead: int, marks: bool) -> Iterator[Frame]:
    if not ahead:
        yield from (_frame(recording, one, marks) for one in shown)
        return
    waiting: deque[Future[Frame]] = deque()
    # Pillow and hashlib let go of the interpreter lock while they work, so threads are enough.
    with ThreadPoolExecutor(min(DECODERS, len(os.sched_getaffinity(0))), "decode") as pool:
        try:
            for one in shown:
                waiting.append(pool.submit(_frame, recording, one, marks))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def image_of(message: Any, kind: str) -> tuple[ByteArray, bool]:
    """Pixels of a decoded image message, and whether they come out of a JPEG file. Raises ImageError."""
    if kind == COMPRESSED_IMAGE:
        return decode_compressed(message.data, message.format), is_jpeg(message.data)
    return decode_raw(message.data, message.height, message.width, message.encoding, message.step), False


def _frame(recording: Recording, shown: _Shown, marks: bool) -> Frame:
    number, raw, instruction, recorded = shown
    rgb, jpeg, fault = None, False, ""
    with _as_defined(recording, raw.topic):
        message = recording.decode(raw)
        stamp = message.header.stamp
        stamp_ns = int(stamp.sec) * SECOND_NS + int(stamp.nanosec) or raw.log_ns
        try:
            rgb, jpeg = image_of(message, raw.topic.type)
        except ImageError as error:  # one broken picture must not hide the rest of the day
            fault = str(error)
    seen = Marks(digest(raw.data), "" if rgb is None else digest(np.ascontiguousarray(rgb))) if marks else None
    return Frame(number, stamp_ns, raw.log_ns, instruction, rgb, jpeg, recorded, fault, seen)


def digest(data: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a contiguous buffer: to tell contents apart, not to keep anybody out."""
    return hashlib.sha256(data).hexdigest()[:16]


@contextmanager
def _as_defined(recording: Recording, topic: Topic) -> Iterator[None]:
    """A field that the recording's own definition of a type lacks becomes a BagError."""
    try:
        yield
    except AttributeError as error:
        raise BagError(f"topic {topic.name} of {recording.path} was recorded with another definition of {topic.type} than the usual one: "
                       f"{error}. Convert the recording to the usual definition, or choose another topic.") from error


def _action(message: Any, topic: Topic) -> FloatArray:
    if topic.type == NUMBERS:
        action = np.asarray(message.data, dtype=np.float64)
    else:
        move, turn = message.twist.linear, message.twist.angular
        action = np.array([move.x, move.y, move.z, turn.x, turn.y, turn.z, np.nan])
    if action.shape != (len(ACTION_NAMES),):
        raise BagError(f"topic {topic.name} holds {action.size} numbers, expected 7: {', '.join(ACTION_NAMES)}. "
                       "Name the topic of the recorded actions with --action-topic.")
    return action


def _find_image(recording: Recording) -> Topic:
    images = {topic.name: topic for topic in recording.topics if topic.type in (IMAGE, COMPRESSED_IMAGE) and topic.count}
    if not images:
        raise BagError(f"recording {recording.path} has no camera images; it has {recording.listing()}. "
                       "Record an Image or CompressedImage topic.")
    if len(images) == 1:
        return next(iter(images.values()))
    for name in IMAGE_TOPICS:
        if name in images:
            return images[name]
    raise BagError(f"recording {recording.path} has several cameras: {', '.join(images)}. Choose one with --image-topic.")


def _find_instruction(recording: Recording) -> Topic:
    texts = [topic for topic in recording.topics if topic.type == STRING and topic.name.endswith(INSTRUCTION_TOPIC)]
    if len(texts) == 1:
        return texts[0]
    if texts:
        raise BagError(f"recording {recording.path} has several instruction topics: {', '.join(topic.name for topic in texts)}. "
                       "Choose one with --instruction-topic.")
    raise BagError(f"recording {recording.path} has no instruction topic; it has {recording.listing()}. "
                   "Give one with --instruction 'put the spoon on the towel'.")


def _find_action(recording: Recording) -> Topic | None:
    for name, kind in zip(ACTION_TOPICS, (NUMBERS, TWIST), strict=True):
        for topic in recording.topics:
            if topic.name.endswith(name) and topic.type == kind:
                return topic
    return None


def _typed(topic: Topic, *kinds: str) -> Topic:
    if topic.type not in kinds:
        raise BagError(f"topic {topic.name} is {topic.type}, expected {' or '.join(kinds)}. Name another topic.")
    return topic
