"""A recording in, its steps out: each with the picture it began with, what was asked of the arm, and what the arm was sent.

Where the recording has reports of command_node (`command_report`), a step is what was *sent*, after all safety rules:

- a step of the policy belongs to the picture whose header stamp its observation has; a later step of the same chunk to the newest
  picture that was as old at its start as the first one's was;
- a human's step is reported when it ends, and belongs to the newest picture that was stamped before it began;
- a step that was cut short, by a stop, a takeover or a fresher chunk, did not happen as it was sent, and a dry run sent nothing:
  both are left out.

Elsewhere a step is a recorded action (`teleop/action7`), which belongs to the newest picture that was logged before it. A picture begins
one step at most: training must not see one picture with two answers. What does not come out is written into the Ledger, with the reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np

from openvla_ros.bags.frames import ACTION_WITHIN_NS, COMPRESSED_IMAGE, INSTRUCTION_TOPIC, NUMBERS, STRING, Selection, image_of, select
from openvla_ros.bags.read import SECOND_NS, Raw, Recording, Topic
from openvla_ros.contract import ACTION_NAMES, STEP_S, FloatArray
from openvla_ros.errors import BagError, ConfigurationError, ImageError, InstructionError
from openvla_ros.observation.assemble import check_instruction

REPORT, CHUNK = "openvla_msgs/msg/CommandReport", "openvla_msgs/msg/ActionChunk"
POSE, NUMBER, BOOL = "geometry_msgs/msg/PoseStamped", "std_msgs/msg/Float64", "std_msgs/msg/Bool"
POSE_TOPIC, GRIPPER_TOPIC, SUCCESS_TOPIC = "/state/ee_pose", "/state/gripper", "/episode/success"
"""Endings of topic names that are used where they are: the measured pose, the measured opening, and the operator's mark."""

DRIVERS = ("HOLD", "POLICY", "HUMAN", "STOPPED")
"""By the numbers of CommandReport."""

KEPT_NS = 2 * SECOND_NS
"""Pictures wait so long for their step. An observation older than 0.6 s is refused by command_node."""
KEPT, KEPT_CHUNKS = 256, 64

NEAR_NS = 50_000_000
"""Where the policy stamped pictures on receipt no recorded stamp equals its observation's: then this close to the log time counts."""

CUT_SHORT = "its step was cut short: by a stop, a takeover or a fresher chunk"
WHOLE = 0.75
"""Part of a step's duration after which it counts as played to its end: a late tick of a busy computer is no reason to leave it out."""

STATE_WITHIN_NS = SECOND_NS // 2
STEP_NS = round(STEP_S * SECOND_NS)

RAW_AS = ("jpeg", "png")
JPEG_QUALITY = 95
"""As the training data of OpenVLA and its BridgeData evaluation."""


@dataclass(frozen=True)
class StepSettings:
    """How steps are found. Raises ConfigurationError. Topics: empty for the usual names.

    source: `sent` (reports), `recorded` (actions) or `auto`: reports where there are any. raw_as: how uncompressed pictures are stored;
    pictures that are JPEG or PNG files already are kept byte by byte. pictures: false leaves them out, for who needs only the actions.
    """

    image_topic: str = ""
    instruction: str = ""  # instead of the recorded ones
    instruction_topic: str = ""
    action_topic: str = ""
    report_topic: str = ""
    success_topic: str = ""
    source: str = "auto"
    raw_as: str = "jpeg"
    pictures: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("source", ("auto", "sent", "recorded")), ("raw_as", RAW_AS)):
            if getattr(self, name) not in choices:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}.")


@dataclass(frozen=True)
class Step:
    """One picture and what followed it. Actions are [7] in the order of ACTION_NAMES; NaN where a number is not known."""

    frame_index: int  # counts the image messages of the recording from 0
    frame_stamp_ns: int
    begin_ns: int  # when the step began; of a recorded action: the stamp of its picture
    picture: bytes  # a JPEG or PNG file
    height: int
    width: int
    instruction: str
    action: FloatArray
    proposal: FloatArray  # what the policy wanted: before the safety rules, or while a human drove
    driver: str  # POLICY, HUMAN, or empty for recorded actions
    intervention: bool  # a human drove in place of a running policy
    position_m: FloatArray  # [3] measured, of the end effector in the robot's base frame
    quaternion_xyzw: FloatArray  # [4] measured
    opening: float  # measured, 0 closed .. 1 open


class Mark(NamedTuple):
    """An operator said whether what was done until now succeeded."""

    success: bool


@dataclass(frozen=True)
class LeftOut:
    """What did not become a step. ranges: [first, last] of the numbers of these messages on their topic, from 0."""

    kind: str  # "picture", "action" or "report"
    topic: str
    reason: str
    count: int
    ranges: tuple[tuple[int, int], ...]


class Ledger:
    """Counts what is left out, by reason, in memory that grows with the number of gaps and not of messages."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str, str], list[list[int]]] = {}

    def put(self, kind: str, topic: str, reason: str, number: int) -> None:
        """The number-th message of a topic is left out."""
        ranges = self._groups.setdefault((kind, topic, reason), [])
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])

    def entries(self) -> tuple[LeftOut, ...]:
        """All of them, the most frequent first."""
        found = [LeftOut(*key, sum(last - first + 1 for first, last in ranges), tuple((first, last) for first, last in ranges))
                 for key, ranges in self._groups.items()]
        return tuple(sorted(found, key=lambda entry: -entry.count))


class _Seen(NamedTuple):
    """A picture that waits for its step."""

    number: int
    stamp_ns: int
    log_ns: int
    message: Any
    instruction: str
    why_not: str  # what stood in the way when it was taken


class _Told(NamedTuple):
    """A chunk of the policy."""

    instruction: str
    steps: tuple[FloatArray, ...]
    step_ns: int  # how long each is played
    begun_ns: list[int]  # when its steps began, as far as they have


class _Playing(NamedTuple):
    """A step of the policy that may still be cut short."""

    step: Step
    whole_ns: int  # from then on it cannot
    number: int  # of its report


class _State(NamedTuple):
    """Where the arm was; NaN where that is not known."""

    position_m: FloatArray
    quaternion_xyzw: FloatArray
    opening: float


UNKNOWN = np.full(len(ACTION_NAMES), np.nan)

Found = Step | Mark | str | None
"""What a message comes to; a text says why it comes to nothing."""


def steps(recording: Recording, settings: StepSettings, ledger: Ledger) -> Iterator[Step | Mark | None]:
    """Steps and marks in the order in which they ended; None after each picture, for a progress bar. Flat memory.

    Raises BagError when the recording has no pictures, neither reports nor actions, no instruction, or is damaged.
    """
    yield from _Aligner(recording, settings, ledger).run()


def picture_topic(recording: Recording, settings: StepSettings) -> Topic:
    """The topic that the pictures come from. Raises BagError."""
    return _Aligner(recording, settings, Ledger()).pictures


class _Aligner:
    """One pass over one recording."""

    def __init__(self, recording: Recording, settings: StepSettings, ledger: Ledger) -> None:
        self._recording, self._settings, self._ledger = recording, settings, ledger
        by_reports = settings.source != "recorded"
        self._chunks = _ending(recording, "/action_chunk", CHUNK) if by_reports else None
        selection = self._select()
        self.pictures, self._instructions, self._fixed = selection.image, selection.instruction, selection.fixed_instruction
        self._reports = None
        if by_reports:
            named = settings.report_topic
            self._reports = recording.topic(named) if named else _ending(recording, "/command_report", REPORT)
        self._actions = selection.action if self._reports is None and settings.source != "sent" else None
        if self._reports is None and self._actions is None:
            raise BagError(f"recording {recording.path} has neither command reports nor recorded actions that may be taken; it has "
                           f"{recording.listing()}. Record command_report too, or name the topic of the actions with --action-topic. "
                           "What a teleop asks for is not what the arm was sent.")
        self._marks = recording.topic(settings.success_topic) if settings.success_topic else _ending(recording, SUCCESS_TOPIC, BOOL)
        self._poses, self._openings = _ending(recording, POSE_TOPIC, POSE), _ending(recording, GRIPPER_TOPIC, NUMBER)
        self._waiting: deque[_Seen] = deque()
        self._used: set[int] = set()  # numbers of waiting pictures that have their step
        self._told: dict[tuple[int, int, int], _Told] = {}
        self._instruction, self._why_silent = self._fixed, "" if self._fixed else "no instruction yet"
        self._playing: _Playing | None = None
        self._ended: list[Step] = []  # whole, and not given yet
        self._driver = ""
        self._pose: tuple[int, FloatArray, FloatArray] | None = None  # log time, position, quaternion
        self._opening: tuple[int, float] | None = None

    def _select(self) -> Selection:
        settings, recording = self._settings, self._recording
        said = settings.instruction or settings.instruction_topic or any(
            topic.type == STRING and topic.name.endswith(INSTRUCTION_TOPIC) for topic in recording.topics)
        if said or self._chunks is None:
            return select(recording, settings.image_topic, settings.instruction, settings.instruction_topic, settings.action_topic)
        # Every chunk says its own instruction, as when goals of execute_instruction were recorded: a topic is not needed.
        return replace(select(recording, settings.image_topic, "said by chunks", "", settings.action_topic), fixed_instruction="")

    def run(self) -> Iterator[Step | Mark | None]:
        handlers: Mapping[Topic | None, tuple[str, Callable[[Raw, int, Any], Found]]] = {
            self._poses: ("pose", self._on_pose), self._openings: ("opening", self._on_opening), self._marks: ("mark", self._on_mark),
            self._instructions: ("instruction", self._on_instruction), self._chunks: ("chunk", self._on_chunk),
            self._actions: ("action", self._on_action), self._reports: ("report", self._on_report),
            self.pictures: ("picture", self._on_picture)}
        numbers: dict[Topic, int] = {}
        for raw in self._recording.messages([topic for topic in handlers if topic is not None]):
            number = numbers[raw.topic] = numbers.get(raw.topic, -1) + 1
            kind, handle = handlers[raw.topic]
            try:
                found = handle(raw, number, self._recording.decode(raw))
            except AttributeError as error:
                raise BagError(f"topic {raw.topic.name} of {self._recording.path} was recorded with another definition of {raw.topic.type} "
                               f"than the usual one: {error}. Convert the recording, or choose another topic.") from error
            yield from self._ended
            self._ended.clear()
            if isinstance(found, str):
                self._ledger.put(kind, raw.topic.name, found, number)
            elif found is not None or raw.topic is self.pictures:
                yield from self._end_of_step() if isinstance(found, Mark) else ()
                yield found
            self._forget(raw.log_ns - KEPT_NS)
        yield from self._end_of_step()
        self._forget(None)

    # ------------------------------------------------------------------ what comes in

    def _on_picture(self, raw: Raw, number: int, message: Any) -> None:
        why_not = self._why_silent
        if self._reports is not None and self._driver not in ("POLICY", "HUMAN"):
            why_not = why_not or (f"nobody drove the arm ({self._driver})" if self._driver else "before the first command report")
        self._waiting.append(_Seen(number, _ns(message.header.stamp) or raw.log_ns, raw.log_ns, message, self._instruction, why_not))

    def _on_instruction(self, raw: Raw, number: int, message: Any) -> None:
        self._hear(str(message.data))

    def _on_pose(self, raw: Raw, number: int, message: Any) -> None:
        self._pose = raw.log_ns, *_pose(message.pose)

    def _on_opening(self, raw: Raw, number: int, message: Any) -> None:
        self._opening = raw.log_ns, float(message.data)

    def _on_mark(self, raw: Raw, number: int, message: Any) -> Mark:
        return Mark(bool(message.data))

    def _on_chunk(self, raw: Raw, number: int, message: Any) -> None:
        self._tell(_identity(message), _Told(str(message.instruction), tuple(map(_delta, message.steps)), _ns(message.step_duration), []))
        if self._instructions is None and not self._fixed and message.instruction:
            self._hear(str(message.instruction))

    def _tell(self, identity: tuple[int, int, int], told: _Told) -> _Told:
        while len(self._told) >= KEPT_CHUNKS:
            del self._told[next(iter(self._told))]
        return self._told.setdefault(identity, told)

    def _hear(self, text: str) -> None:
        try:
            self._instruction = check_instruction(text)
            self._why_silent = "" if self._instruction else "the instruction was empty"
        except InstructionError as error:
            self._instruction, self._why_silent = "", f"the instruction may not be shown to a model: {error}"

    def _on_action(self, raw: Raw, number: int, message: Any) -> Found:
        action = np.asarray(message.data, np.float64) if raw.topic.type == NUMBERS else np.array([*_twist(message.twist), np.nan])
        if action.shape != (len(ACTION_NAMES),):
            raise BagError(f"topic {raw.topic.name} holds {action.size} numbers, expected 7: {', '.join(ACTION_NAMES)}. "
                           "Name the topic of the recorded actions with --action-topic.")
        seen = self._waiting[-1] if self._waiting else None
        if seen is None or raw.log_ns - seen.log_ns > ACTION_WITHIN_NS:
            return f"no picture came within {ACTION_WITHIN_NS / SECOND_NS:g} s before it"
        return self._step(seen, seen.stamp_ns, seen.instruction, action, UNKNOWN, "", False, self._state(raw.log_ns))

    def _on_report(self, raw: Raw, number: int, message: Any) -> Found:
        self._driver = DRIVERS[message.driver] if message.driver < len(DRIVERS) else ""
        by_policy = bool(message.step_started)
        self._settle(_ns(message.header.stamp), raw.topic, by_policy or self._driver != "POLICY" or bool(message.stop_reason))
        moved = bool(_delta(message.sent).any() or _delta(message.requested).any())
        if not by_policy and not (self._driver == "HUMAN" and moved):
            return None  # who drives, and why the arm rests: no step
        if message.dry_run:
            return "a dry run: nothing was sent"
        state = self._state(raw.log_ns)
        if message.measured_pose_valid:
            state = _State(*_pose(message.measured_pose), state.opening)
        if not by_policy:
            return self._human_step(message, raw.log_ns, state)
        found = self._policy_step(message, raw.log_ns, state)
        if isinstance(found, Step):
            whole_ns = found.begin_ns + round(WHOLE * self._told[_identity(message)].step_ns)
            self._playing, found = _Playing(found, whole_ns, number), None
        return found

    def _policy_step(self, message: Any, log_ns: int, state: _State) -> Found:
        begin_ns, wanted_ns = _ns(message.header.stamp), _ns(message.observation_stamp)
        told = self._tell(_identity(message), _Told("", (), STEP_NS, []))  # new where chunks were not recorded
        place = len(told.begun_ns)
        told.begun_ns.append(begin_ns)
        if place == 0:
            seen = self._stamped(wanted_ns)
            if seen is None:
                return "no recorded picture has the stamp that the step was computed from"
        else:
            seen = self._newest(told.begun_ns[0] - wanted_ns, begin_ns, log_ns)
            if seen is None:
                return f"no picture was stamped within {ACTION_WITHIN_NS / SECOND_NS:g} s before it"
        proposal = told.steps[place] if place < len(told.steps) else _delta(message.requested)
        return self._step(seen, begin_ns, self._fixed or told.instruction or seen.instruction, _delta(message.sent), proposal, self._driver,
                          bool(message.intervention), state)

    def _human_step(self, message: Any, log_ns: int, state: _State) -> Found:
        end_ns = _ns(message.header.stamp)
        seen = self._newest(STEP_NS, end_ns, log_ns)
        if seen is None:
            return f"no picture was stamped within {ACTION_WITHIN_NS / SECOND_NS:g} s before it"
        proposal = _delta(message.proposal) if message.proposal_valid else UNKNOWN
        return self._step(seen, end_ns - STEP_NS, seen.instruction, _delta(message.sent), proposal, self._driver,
                          bool(message.intervention), state)

    def _settle(self, now_ns: int, topic: Topic, something_new: bool) -> None:
        """The step that plays is over, or is cut short by what a report says."""
        if self._playing is None:
            return
        if now_ns >= self._playing.whole_ns:
            self._ended += self._end_of_step()
        elif something_new:
            self._ledger.put("report", topic.name, CUT_SHORT, self._playing.number)
            self._ledger.put("picture", self.pictures.name, CUT_SHORT, self._playing.step.frame_index)
            self._playing = None

    def _end_of_step(self) -> list[Step]:
        playing, self._playing = self._playing, None
        return [] if playing is None else [playing.step]

    # ------------------------------------------------------------------ what goes out

    def _stamped(self, stamp_ns: int) -> _Seen | None:
        """The picture with that stamp, or else one that was logged at that time."""
        same = [seen for seen in self._waiting if seen.stamp_ns == stamp_ns]
        near = [seen for seen in self._waiting if abs(seen.log_ns - stamp_ns) <= NEAR_NS]
        return same[-1] if same else min(near, key=lambda seen: abs(seen.log_ns - stamp_ns), default=None)

    def _newest(self, ago_ns: int, stamp_ns: int, log_ns: int) -> _Seen | None:
        """The newest picture at `ago_ns` before a report with this stamp and log time; by log times where the clocks are not the same."""
        stamped = [seen for seen in self._waiting if 0 <= stamp_ns - ago_ns - seen.stamp_ns <= ACTION_WITHIN_NS]
        logged = [seen for seen in self._waiting if 0 <= log_ns - ago_ns - seen.log_ns <= ACTION_WITHIN_NS]
        if stamped:
            return max(stamped, key=lambda seen: seen.stamp_ns)
        return max(logged, key=lambda seen: seen.log_ns, default=None)

    def _step(self, seen: _Seen, begin_ns: int, instruction: str, action: FloatArray, proposal: FloatArray, driver: str,
              intervention: bool, state: _State) -> Found:
        if seen.number in self._used:
            return "its picture began a step already: actions come faster than pictures"
        if not instruction:
            return seen.why_not or self._why_silent
        if not np.isfinite(action).all():
            return f"no finite {', '.join(name for name, value in zip(ACTION_NAMES, action, strict=True) if not np.isfinite(value))}"
        self._used.add(seen.number)
        try:
            picture, shape = self._file(seen.message)
        except ImageError as error:
            self._ledger.put("picture", self.pictures.name, f"it cannot be shown: {error}", seen.number)
            return "its picture cannot be shown"
        return Step(seen.number, seen.stamp_ns, begin_ns, picture, shape[0], shape[1], instruction, action, proposal, driver, intervention,
                    *state)

    def _file(self, message: Any) -> tuple[bytes, tuple[int, ...]]:
        """The picture as a file, and its shape. Compressed ones as they are, once they were found to be whole. Raises ImageError."""
        if not self._settings.pictures:
            return b"", (0, 0)
        rgb, _ = image_of(message, self.pictures.type)
        if self.pictures.type == COMPRESSED_IMAGE:
            return bytes(message.data), rgb.shape
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if self._settings.raw_as == "jpeg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
        done, file = cv2.imencode(f".{self._settings.raw_as}", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
        if not done:
            raise ImageError(f"a picture of {rgb.shape[1]}x{rgb.shape[0]} could not be stored as {self._settings.raw_as}.")
        return file.tobytes(), rgb.shape

    def _state(self, log_ns: int) -> _State:
        """The newest measured pose and opening, where they are fresh."""
        state = _State(np.full(3, np.nan), np.full(4, np.nan), float("nan"))
        if self._pose is not None and log_ns - self._pose[0] <= STATE_WITHIN_NS:
            state = state._replace(position_m=self._pose[1], quaternion_xyzw=self._pose[2])
        if self._opening is not None and log_ns - self._opening[0] <= STATE_WITHIN_NS:
            state = state._replace(opening=self._opening[1])
        return state

    def _forget(self, before_ns: int | None) -> None:
        """Let pictures go that no step can belong to any more. None: all."""
        while self._waiting and (before_ns is None or self._waiting[0].log_ns < before_ns or len(self._waiting) > KEPT):
            seen = self._waiting.popleft()
            if seen.number in self._used:
                self._used.discard(seen.number)
            else:
                self._ledger.put("picture", self.pictures.name, seen.why_not or "no step began with it", seen.number)


def _ending(recording: Recording, ending: str, kind: str) -> Topic | None:
    """The topic of that type whose name ends so; None where there is none. Raises BagError for several."""
    found = [topic for topic in recording.topics if topic.type == kind and topic.name.endswith(ending)]
    if len(found) > 1:
        raise BagError(f"recording {recording.path} has several topics that end in {ending}: {', '.join(topic.name for topic in found)}. "
                       "Record one robot at a time, or choose with --report-topic, --action-topic or --success-topic.")
    return found[0] if found else None


def _identity(message: Any) -> tuple[int, int, int]:
    return int(message.session), int(message.generation), int(message.sequence)


def _ns(stamp: Any) -> int:
    return int(stamp.sec) * SECOND_NS + int(stamp.nanosec)


def _delta(message: Any) -> FloatArray:
    """[7] of an EndEffectorDelta."""
    move, turn = message.translation, message.rotation
    return np.array([move.x, move.y, move.z, turn.x, turn.y, turn.z, message.gripper], np.float64)


def _twist(message: Any) -> list[float]:
    return [message.linear.x, message.linear.y, message.linear.z, message.angular.x, message.angular.y, message.angular.z]


def _pose(message: Any) -> tuple[FloatArray, FloatArray]:
    place, turn = message.position, message.orientation
    return np.array([place.x, place.y, place.z], np.float64), np.array([turn.x, turn.y, turn.z, turn.w], np.float64)
