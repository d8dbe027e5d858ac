"""A replayed recording through the pilot: what the arm would have received, with safety and handoff, the same every time.

The recording's own log times are the time. Each answer of the policy reaches the pilot a fixed time after its picture was logged,
however long it took today. Who drives is read from the recording where it says so (`driver`), with what the human's hand did
(`teleop/delta_twist_cmds`, `teleop/gripper`); elsewhere POLICY is chosen at the first frame, and again at the next frame after each fall.
A recorded arm does not follow today's policy, so joint states count as in a dry run: each step starts where the arm was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from typing import Any, NamedTuple

import numpy as np

from openvla_ros.action.command import NOBODY, Twist
from openvla_ros.action.handoff import Driver
from openvla_ros.action.kinematics import Kinematics
from openvla_ros.action.pilot import Inputs, Now, Pilot, Settings
from openvla_ros.action.teleop import TeleopRequest
from openvla_ros.bags.expect import Commanded
from openvla_ros.bags.frames import STRING, TWIST
from openvla_ros.bags.read import SECOND_NS, Recording, Topic
from openvla_ros.bags.replay import ReplayedFrame
from openvla_ros.contract import STEP_S, Action, ActionChunk, ChunkIdentity, FloatArray, ReceivedChunk, RobotState
from openvla_ros.errors import BagError, ConfigurationError, HandoffRefused
from openvla_ros.robot import RobotProfile

LATENCY_S = 0.15
"""From the log time of a picture to the arrival of its answer, unless said otherwise: OpenVLA-7B on a good GPU."""

BEFORE_S, AFTER_S = 0.5, 0.5
"""The pilot runs for so long before the first frame, to hear from the arm, and after the last answer: the last step ends, and no chunk
is overdue yet."""

JOINT_STATES, NUMBER = "sensor_msgs/msg/JointState", "std_msgs/msg/Float64"
ENDINGS: Mapping[str, str] = {"/driver": STRING, "/joint_states": JOINT_STATES, "/teleop/delta_twist_cmds": TWIST,
                              "/teleop/gripper": NUMBER}
"""How the names of the topics end that the pilot listens to, and their types."""


@dataclass(frozen=True)
class Change:
    """The driver changed, or a change was refused. at_s: since the first frame."""

    at_s: float
    driver: str
    reason: str


@dataclass(frozen=True)
class CommandRun:
    """What came out. frames: by index of the frame; counts: how often each rule acted, with `chunks` and `steps`."""

    frames: Mapping[int, Commanded]
    changes: tuple[Change, ...]
    counts: Mapping[str, int]


class _Event(NamedTuple):
    at_ns: int
    order: int  # at the same time: first what the arm and the human say, then the policy
    act: Callable[[Now], None]  # is told its own time, which lies a little before the tick's


def command(recording: Recording, frames: Sequence[ReplayedFrame], profile: RobotProfile, kinematics: Kinematics | None = None,
            latency_s: float = LATENCY_S, settings: Settings | None = None, step_s: float = STEP_S) -> CommandRun:
    """Run the pilot over a recording and the policy's answers to it.

    kinematics: of the profile's arm, where it has one. Raises BagError when the recording lacks the arm's joint states, or when
    its pictures have another clock than its log; ConfigurationError for settings that do not fit the profile, and for answers of
    several steps: of those only the first is kept, and command_node would play the others too.
    """
    if not frames:
        return CommandRun({}, (), {})
    if (longest := max(frame.steps for frame in frames)) > 1:
        raise ConfigurationError(f"the policy answers a picture with up to {longest} steps, and only the first is kept here, so this is "
                                 "not what command_node would play. Replay without --through command, or with --live.")
    _check_clock(recording, frames)
    settings = replace(settings or Settings(), dry_run=profile.arm is not None)
    return _Run(recording, frames, Pilot(profile, settings, kinematics), profile, latency_s, step_s).run()


class _Run:
    """One pass; `run` is called once."""

    def __init__(self, recording: Recording, frames: Sequence[ReplayedFrame], pilot: Pilot, profile: RobotProfile, latency_s: float,
                 step_s: float) -> None:
        self._recording, self._frames, self._pilot, self._profile = recording, frames, pilot, profile
        self._latency_ns, self._step_s = round(latency_s * SECOND_NS), step_s
        topics = heard(recording, () if profile.arm is not None else ("/joint_states",))
        if profile.arm is not None and "/joint_states" not in topics:
            raise BagError(f"recording {recording.path} has no joint_states, which robot {profile.name!r} is measured by. Choose a profile "
                           "without an arm, such as wx250s_replay, or record joint_states too.")
        self._topics = topics
        self._first_ns = min(frames[0].stamp_ns, frames[0].log_ns)
        self._state: RobotState | None = None
        self._received: list[ReceivedChunk] = []
        self._recorded_driver = ""
        self._found: dict[int, Commanded] = {}
        self._changes: list[Change] = []

    def run(self) -> CommandRun:
        period_ns = round(SECOND_NS / self._pilot.settings.rate_hz)
        events = merge(self._spoken(), self._wishes(), self._answers(), key=lambda event: event[:2])
        event = next(events, None)
        now_ns = self._first_ns - round(BEFORE_S * SECOND_NS)
        end_ns = self._frames[-1].log_ns + self._latency_ns + round(AFTER_S * SECOND_NS)
        while now_ns <= end_ns:
            while event is not None and event.at_ns <= now_ns:
                event.act(Now(event.at_ns, event.at_ns))
                event = next(events, None)
            self._tick(Now(now_ns, now_ns))
            now_ns += period_ns
        return CommandRun(dict(sorted(self._found.items())), tuple(self._changes), dict(self._pilot.counts))

    def _tick(self, now: Now) -> None:
        pilot, received = self._pilot, tuple(self._received)
        self._received.clear()
        before = pilot.driver
        decision = pilot.step(now, self._state, Inputs(received))
        for chunk in received:
            self._found[chunk.identity.sequence] = Commanded(None, decision.refused, before.name)
        step = decision.step
        if step is not None and step.identity != NOBODY:
            known = self._found[step.identity.sequence]
            rules = tuple(dict.fromkeys((*(known.rules if known.sent is not None else ()), *step.rules)))
            moved = np.zeros(6) if known.moved is None else known.moved
            if decision.twist is not None:
                twist, period_s = decision.twist, 1.0 / pilot.settings.rate_hz
                moved = moved + np.concatenate([twist.linear_m_s, twist.angular_rad_s]) * period_s
            self._found[step.identity.sequence] = Commanded(step.sent.to_vector(), rules, known.driver, moved)
        if pilot.driver is not before:
            self._note(pilot.stop_reason, now)

    def _wishes(self) -> Iterator[_Event]:
        """POLICY is wished for when a picture is taken, where the recording does not say who drives. Pictures from before are void."""
        if "/driver" not in self._topics:
            yield from (_Event(at_ns, 1, self._resume) for at_ns in sorted(min(frame.stamp_ns, frame.log_ns) for frame in self._frames))

    def _answers(self) -> Iterator[_Event]:
        """The policy's chunks as they arrive."""
        for frame in self._frames:
            steps = () if frame.action is None else (Action.from_vector(frame.action),)
            chunk = ActionChunk(steps, self._step_s, frame.stamp_ns, frame.instruction, token_ids=frame.token_ids, fault=frame.fault)
            received = ReceivedChunk(chunk, ChunkIdentity(1, 1, frame.index), self._profile.base_frame)
            yield _Event(frame.log_ns + self._latency_ns, 2, lambda now, received=received: self._received.append(received))  # type: ignore[misc]

    def _spoken(self) -> Iterator[_Event]:
        """What the recording says about arm, driver and hand."""
        act = {"/driver": self._on_driver, "/joint_states": self._on_state, "/teleop/delta_twist_cmds": self._on_twist,
               "/teleop/gripper": self._on_gripper}
        ending_of = {topic: ending for ending, topic in self._topics.items()}
        for raw in self._recording.messages(list(ending_of)):
            yield _Event(raw.log_ns, 0, lambda now, raw=raw: act[ending_of[raw.topic]](self._recording.decode(raw), now))  # type: ignore[misc]

    def _on_state(self, message: Any, now: Now) -> None:
        stamp = message.header.stamp
        self._state = RobotState(tuple(message.name), message.position, message.velocity, message.effort,
                                 int(stamp.sec) * SECOND_NS + int(stamp.nanosec))

    def _on_twist(self, message: Any, now: Now) -> None:
        linear, angular, stamp = message.twist.linear, message.twist.angular, message.header.stamp
        twist = Twist(_vector(linear), _vector(angular))
        self._pilot.teleop("twist", TeleopRequest(twist, deadman=True), now, int(stamp.sec) * SECOND_NS + int(stamp.nanosec),
                           message.header.frame_id)

    def _on_gripper(self, message: Any, now: Now) -> None:
        self._pilot.teleop("gripper", TeleopRequest(gripper=float(message.data), deadman=True), now)

    def _on_driver(self, message: Any, now: Now) -> None:
        if str(message.data) == self._recorded_driver:
            return  # a file of a split recording begins with what was said before: nobody asked for it anew
        self._recorded_driver = str(message.data)
        wanted = Driver.__members__.get(str(message.data))
        if wanted is None or wanted is self._pilot.driver:
            return
        try:
            if self._pilot.driver is Driver.STOPPED and wanted is not Driver.STOPPED:
                self._pilot.reset(request_held=False)
            if wanted is Driver.POLICY:
                self._pilot.resume(now)
            elif wanted is Driver.HUMAN:
                self._pilot.take_over()
            elif wanted is Driver.STOPPED:
                self._pilot.emergency_stop("STOPPED in the recording")
            else:
                self._pilot.hold()
            self._note("as recorded", now)
        except HandoffRefused as refusal:
            self._note(f"{wanted.name} was refused: {refusal}", now)

    def _resume(self, now: Now) -> None:
        if self._pilot.driver is not Driver.HOLD:
            return
        try:
            self._pilot.resume(now)
            self._note("chosen at a frame", now)
        except HandoffRefused as refusal:
            if not self._changes or str(refusal) not in self._changes[-1].reason:
                self._note(f"POLICY was refused: {refusal}", now)

    def _note(self, reason: str, now: Now) -> None:
        at_s = (now.ros_ns - self._first_ns) / SECOND_NS
        self._changes.append(Change(round(at_s, 6), self._pilot.driver.name, reason))


def heard(recording: Recording, unused: Collection[str] = ()) -> dict[str, Topic]:
    """The recorded topics that the pilot listens to, by the ending of their names, but for the endings that it has no use for.

    Raises BagError where there are several of one ending: which arm would be meant?
    """
    found: dict[str, Topic] = {}
    for topic in recording.topics:
        for ending, kind in ENDINGS.items():
            if topic.name.endswith(ending) and topic.type == kind and topic.count and ending not in unused:
                if ending in found:
                    raise BagError(f"recording {recording.path} holds several robots: {found[ending].name} and {topic.name}. Record one "
                                   "robot at a time, or replay without --through command.")
                found[ending] = topic
    return found


def _check_clock(recording: Recording, frames: Sequence[ReplayedFrame]) -> None:
    """The pilot judges ages: stamps and log times must be of one clock."""
    ages_s = [(frame.log_ns - frame.stamp_ns) / SECOND_NS for frame in frames]
    if max(ages_s) - min(ages_s) > 60.0 or abs(float(np.median(ages_s))) > 60.0:
        raise BagError(f"the pictures of {recording.path} were stamped {min(ages_s):.1f} to {max(ages_s):.1f} s before they were logged: "
                       "these are different clocks, and the pilot cannot judge ages by them. Replay without --through command.")


def _vector(value: Any) -> FloatArray:
    return np.array([value.x, value.y, value.z], dtype=np.float64)
