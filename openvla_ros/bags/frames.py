"""A recording in, its camera frames out: each with the instruction that held and the action that was recorded after it.

The conventions of our recordings: `/instruction` (std_msgs/String), `/teleop/action7` (Float64MultiArray: dx dy dz droll
dpitch dyaw gripper) or `/teleop/action` (TwistStamped that holds a *delta per step*, no gripper). An action belongs to the
newest frame that was logged before it, and only the first action after a frame counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Tally:
    """What a pass over a recording left out, counted while it goes."""

    images: int = 0
    without_instruction: int = 0
    actions: int = 0
    unmatched_actions: int = 0
    faults: dict[str, int] = field(default_factory=dict)


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
           limit: int = 0) -> Iterator[Frame]:
    """The frames that a policy would be shown, in log order; holds one picture at a time.

    stride: every so many-th image only. limit: end after so many frames, 0 for all. Frames before the first instruction
    and while it is empty are counted in `tally`, not given. Raises BagError, and InstructionError for a recorded
    instruction that may not be shown to a model.
    """
    tally = tally if tally is not None else Tally()
    topics = [topic for topic in (selection.image, selection.instruction, selection.action) if topic]
    pending: tuple[int, Raw, str] | None = None  # index, message and instruction of the frame that waits for its action
    recorded: FloatArray | None = None
    instruction, given = selection.fixed_instruction, 0
    for raw in recording.messages(topics):
        if raw.topic is selection.instruction:
            instruction = check_instruction(str(recording.decode(raw).data))
        elif raw.topic is selection.action:
            tally.actions += 1
            if pending is None or recorded is not None or raw.log_ns - pending[1].log_ns > ACTION_WITHIN_NS:
                tally.unmatched_actions += 1
            else:
                recorded = _action(recording.decode(raw), raw.topic)
        else:
            if pending is not None:
                yield _frame(recording, *pending, recorded, tally)
                given += 1
            pending, recorded = None, None
            if limit and given >= limit:
                return
            index, tally.images = tally.images, tally.images + 1
            if index % stride:
                continue
            if instruction:
                pending = (index, raw, instruction)
            else:
                tally.without_instruction += 1
    if pending is not None:
        yield _frame(recording, *pending, recorded, tally)


def image_of(message: Any, kind: str) -> tuple[ByteArray, bool]:
    """Pixels of a decoded image message, and whether they come out of a JPEG file. Raises ImageError."""
    if kind == COMPRESSED_IMAGE:
        return decode_compressed(message.data, message.format), is_jpeg(message.data)
    return decode_raw(message.data, message.height, message.width, message.encoding, message.step), False


def _frame(recording: Recording, index: int, raw: Raw, instruction: str, recorded: FloatArray | None, tally: Tally) -> Frame:
    message = recording.decode(raw)
    stamp = message.header.stamp
    stamp_ns = int(stamp.sec) * SECOND_NS + int(stamp.nanosec) or raw.log_ns
    rgb, jpeg, fault = None, False, ""
    try:
        rgb, jpeg = image_of(message, raw.topic.type)
    except ImageError as error:  # one broken picture must not hide the rest of the day
        fault = str(error)
        tally.faults[fault] = tally.faults.get(fault, 0) + 1
    return Frame(index, stamp_ns, raw.log_ns, instruction, rgb, jpeg, recorded, fault)


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
