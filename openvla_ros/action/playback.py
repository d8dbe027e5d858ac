"""Plays the policy's steps: which of them fill the coming tick, how fast the hand goes for it, and how each will have gone.

Comes in: chunks that were taken, and a time; goes out: Played, nothing, or why the arm must stop. The target is not moved here.
"""

from __future__ import annotations

from dataclasses import dataclass

from openvla_ros.action.command import ZERO, PlayedStep, Twist, to_action, to_twist
from openvla_ros.action.safety import Course, Refusal, Situation, Verdict, judge, limit, opened
from openvla_ros.action.schedule import SECOND_NS, Play, Schedule
from openvla_ros.action.state import Measured
from openvla_ros.action.target import Target
from openvla_ros.contract import Action, ReceivedChunk
from openvla_ros.robot import RobotProfile


@dataclass(frozen=True)
class Played:
    """What the policy wishes for one tick."""

    wish: Twist
    opening: float  # of the gripper, 0 closed .. 1 open
    step: PlayedStep  # the newest one
    started: bool  # it starts in this tick
    before: Twist  # the velocity that it follows
    step_s: float


class Playback:
    """One for the whole life of a pilot's settings. It forgets everything at `clear`."""

    def __init__(self, profile: RobotProfile, period_ns: int, preempt: bool, action_scale: float, max_observation_age_s: float) -> None:
        self._profile, self._period_ns = profile, period_ns
        self._scale, self._max_age_s = action_scale, max_observation_age_s
        self._schedule = Schedule(preempt)
        self.clear()

    def clear(self) -> None:
        """Nothing plays and nothing waits."""
        self._schedule.clear()
        self._newest: Play | None = None
        self._step: PlayedStep | None = None  # of `_newest`
        self._before = ZERO  # the velocity that it follows

    @property
    def playing(self) -> bool:
        """A step was played in the last tick."""
        return self._newest is not None

    def put(self, received: ReceivedChunk) -> None:
        """A chunk to be played next."""
        self._schedule.put(received)

    def left_s(self, tick_ns: int) -> float:
        """How long the newest step has still to go; 0 when none plays."""
        return 0.0 if self._newest is None else (self._newest.end_ns - tick_ns) / SECOND_NS

    def skip_aged(self, tick_ns: int, ros_ns: int) -> bool:
        """Give up a playing step that grew too old, if a fresher chunk waits for its end. True when that was so."""
        playing = self._schedule.playing
        aged = (playing is not None and playing.end_ns > tick_ns and self._schedule.waiting is not None
                and _age_s(playing, ros_ns) > self._max_age_s)
        if aged:
            self._schedule.skip()
        return aged

    def play(self, tick_ns: int, ros_ns: int, target: Target, start_at: Measured | None = None) -> Played | Refusal | None:
        """The tick that begins now. start_at: where each new step starts, instead of at what was sent last (a dry run)."""
        until_ns, shares, newest, verdict = tick_ns + self._period_ns, [], None, None
        plays = self._schedule.window(tick_ns, until_ns)
        for play in plays:
            verdict = judge(self._scaled(play.step), Situation(_age_s(play, ros_ns), self._max_age_s, self._profile.limits))
            if verdict.action is None and play is not plays[-1]:
                continue  # the rest of a step that grew too old in its last tick; what follows it is judged by itself
            if verdict.action is None:
                return Refusal(verdict.rules[-1], verdict.reason)
            shares.append((verdict.action, play.share(tick_ns, until_ns)))
            newest = play
        if newest is None or verdict is None or verdict.action is None:
            self._newest = None
            return None
        if started := newest is not self._newest:
            self._begin(newest, verdict, plays[-2] if len(plays) > 1 else None, target, start_at)
        assert self._step is not None, "it was made when the step began"
        return Played(to_twist(shares, self._period_ns / SECOND_NS), verdict.action.gripper, self._step, started, self._before,
                      newest.received.chunk.step_s)

    def _begin(self, play: Play, verdict: Verdict, previous: Play | None, target: Target, start_at: Measured | None) -> None:
        """A new step. It follows the velocity of the step that ends in the same tick, else what was sent last."""
        assert verdict.action is not None
        self._before = target.twist
        if previous is not None and previous is self._newest and self._step is not None:
            self._before = to_twist([(self._step.sent, 1.0)], previous.received.chunk.step_s)
        if start_at is not None:
            target.place(start_at)
        self._newest = play
        self._step = self._foretold(play, verdict.action, verdict.rules, target)

    def _foretold(self, play: Play, action: Action, rules: tuple[str, ...], target: Target) -> PlayedStep:
        """The step as it will have gone to the arm. The lead is left out: it depends on how the arm follows meanwhile."""
        step_s = play.received.chunk.step_s
        wish = to_twist([(action, 1.0)], step_s)
        twist, acted = limit(wish, Course(self._profile.limits, step_s, target.pose, None, self._before, step_s))
        opening = action.gripper
        if self._profile.gripper is not None:
            opening = opened(target.gripper, action.gripper, step_s)
            acted += ("gripper_rate",) if abs(opening - action.gripper) > 1e-9 else ()
        sent = action
        if twist is not wish:
            sent = to_action(twist, step_s, opening)
        elif opening != action.gripper:
            sent = Action(action.translation_m, action.rotation_rad, opening)
        return PlayedStep(play.received.identity, play.received.chunk.observation_stamp_ns, play.step, sent, (*rules, *acted))

    def _scaled(self, step: Action) -> Action:
        return Action(step.translation_m * self._scale, step.rotation_rad * self._scale, step.gripper)


def _age_s(play: Play, ros_ns: int) -> float:
    return (ros_ns - play.received.chunk.observation_stamp_ns) / SECOND_NS
