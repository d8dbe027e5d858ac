"""Joins schedule, safety, handoff and command: what came in since the last tick -> what the arm is sent now.

Pure: time is an argument, nothing is published here, no thread is started. One thread at a time may call.

Two clocks. Ages are differences on the ROS clock, where camera stamps live. Steps and silences are timed on the clock that drives
the ticks: a steady one, so that setting the computer's time does not stretch a step, or the ROS clock when time is simulated.

How fast it stops: a step moves the arm at most until `max_observation_age_s` plus one tick after its observation's stamp; then
speed ramps down, and is zero within `Limits.longest_ramp_s`. What consumes the commands adds its own time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from openvla_ros.action.command import ZERO, Motion, Phase, PlayedStep, Twist, slow_down, to_twist
from openvla_ros.action.handoff import Driver, next_driver
from openvla_ros.action.safety import Refusal, Situation, judge, refuse_content
from openvla_ros.action.schedule import SECOND_NS, Play, Schedule
from openvla_ros.contract import Action, ChunkIdentity, ReceivedChunk
from openvla_ros.errors import ConfigurationError, HandoffRefused
from openvla_ros.robot import RobotProfile

ZEROS_S = 0.5
"""How long zeros are sent after the last motion before the arm's topic falls silent: several times Servo's timeout of 0.1 s."""

WAITING = "waiting for the next chunk"

NOTHING: Mapping[str, str] = MappingProxyType({})


class Now(NamedTuple):
    """One instant on both clocks [ns]."""

    tick_ns: int
    ros_ns: int


@dataclass(frozen=True)
class Settings:
    """What the operator may tune. Ranges are checked by whoever reads them (the node's parameter table)."""

    rate_hz: float = 30.0
    max_observation_age_s: float = 0.6
    resume_within_s: float = 1.0
    action_scale: float = 1.0  # 0..1, on translation and rotation of the policy's steps, before the safety chain
    preempt: bool = False


@dataclass(frozen=True)
class Decision:
    """The outcome of one tick. motion None: send nothing. step: the newest one that plays in it, if any."""

    driver: Driver
    motion: Motion | None
    step: PlayedStep | None
    step_started: bool
    refused: tuple[str, ...]  # rules that dropped a chunk, or stopped the arm, at this tick
    stop_reason: str  # empty while the arm is moving

    @property
    def twist(self) -> Twist | None:
        """The velocity that is sent; None: nothing is."""
        return self.motion.twist if self.motion else None

    @property
    def rules(self) -> tuple[str, ...]:
        """All rules that acted: those that refused, and those that changed the step."""
        return self.refused + (self.step.rules if self.step else ())


class Pilot:
    """The arm's only source of commands. Starts in HOLD and says nothing until somebody chose a driver."""

    def __init__(self, profile: RobotProfile, settings: Settings) -> None:
        """Raises ConfigurationError when the rate is too low for the shortest step that the profile allows."""
        self._profile = profile
        self._driver, self._stop_reason = Driver.HOLD, "no driver was chosen yet"
        self._newest: ChunkIdentity | None = None  # newest of all chunks, whoever drives
        self._session: int | None = None  # whose chunks are played; None: the first to come
        self._since_ns = 0  # POLICY began then, ROS clock: earlier observations are void
        self._observed_ns: int | None = None  # newest accepted stamp since then; None: the arm is not waiting for a next one
        self._last: Now | None = None
        self._twist: Twist | None = None  # as sent at the last tick
        self._ramping = False
        self._silent_from_ns: int | None = None
        self._started: Play | None = None
        self._refused: list[str] = []
        self._fell = False
        self.counts: Counter[str] = Counter()
        """How often each rule acted since the start, beside the number of `chunks` received and `steps` started."""
        self.configure(settings)

    def configure(self, settings: Settings) -> None:
        """Take other settings. Raises ConfigurationError while the policy drives, and for a rate that is too low."""
        if self._driver is Driver.POLICY:
            raise ConfigurationError("settings can be changed only while the driver is HOLD or STOPPED.")
        shortest_s = self._profile.limits.shortest_step_s
        if settings.rate_hz * shortest_s < 1.0:
            raise ConfigurationError(f"rate_hz {settings.rate_hz:g} is too low: this profile allows steps of {shortest_s:g} s, "
                                     f"which need at least {1.0 / shortest_s:g} Hz.")
        self._settings = settings
        self._period_ns = round(SECOND_NS / settings.rate_hz)
        self._schedule = Schedule(settings.preempt)

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self._settings

    @property
    def driver(self) -> Driver:
        """Who moves the arm."""
        return self._driver

    @property
    def stop_reason(self) -> str:
        """Why the arm is held or stopped; empty while it is moving."""
        return self._stop_reason

    @property
    def fell(self) -> bool:
        """True in a HOLD that nobody asked for."""
        return self._fell

    def resume(self, now: Now, obstacles: Mapping[str, str] = NOTHING) -> None:
        """HOLD -> POLICY. Only chunks observed from now on count. Raises HandoffRefused, also when there is an obstacle."""
        driver = next_driver(self._driver, "resume")
        if obstacles:
            raise HandoffRefused(" ".join(obstacles.values()))
        if driver is self._driver:
            return
        self._stop("waiting for a chunk that was observed after POLICY was chosen")
        self._driver, self._fell = driver, False
        self._since_ns, self._session, self._observed_ns = now.ros_ns, None, None

    def hold(self) -> None:
        """POLICY -> HOLD with a soft stop. Raises HandoffRefused when STOPPED."""
        self._driver, self._fell = next_driver(self._driver, "hold"), False
        self._stop("HOLD was chosen")

    def emergency_stop(self, reason: str) -> None:
        """Whatever -> STOPPED. The next tick sends zeros without a ramp; only `reset` leads out. Not safety-rated."""
        if self._driver is not Driver.STOPPED:
            self._count("emergency_stop")
            self._driver = next_driver(self._driver, "emergency_stop")
            self._stop_at_once(reason)

    def reset(self, request_held: bool) -> None:
        """STOPPED -> HOLD; moves nothing. Raises HandoffRefused, also while the stop is still requested."""
        driver = next_driver(self._driver, "reset")
        if request_held:
            raise HandoffRefused("emergency_stop_request is still true. Publish false there first.")
        self._driver, self._fell = driver, False
        self._stop("reset after an emergency stop")

    def halt(self, reason: str) -> None:
        """The clock cannot be trusted: HOLD, and without it there is no ramp, the next tick sends zeros."""
        if self._driver is Driver.POLICY or (self._twist is not None and self._twist.moving):
            self._count("clock")
            self._fall(reason)
            self._stop_at_once(reason)

    def malformed(self, reason: str) -> None:
        """Something came on the chunk topic that is no chunk. The arm stops; a good chunk may start it again."""
        self._refuse(Refusal("malformed", reason))

    def step(self, now: Now, received: Sequence[ReceivedChunk] = (), obstacles: Mapping[str, str] = NOTHING) -> Decision:
        """One tick. `received`: the chunks since the last one, in order. `obstacles`: rule -> why POLICY may not drive now."""
        self._watch(now, obstacles)
        for chunk in received:
            self._receive(chunk, now)
        self._expire(now)
        twist, step, started = self._play(now)
        if twist is not None:
            self._ramping = False
        elif self._ramping and self._twist is not None:
            elapsed_ns = now.tick_ns - self._last.tick_ns if self._last else 0
            twist = slow_down(self._twist, elapsed_ns / SECOND_NS, self._profile.limits)
            self._ramping = twist.moving
        elif self._waits(now):
            twist = ZERO
        if twist is not None:
            self._silent_from_ns = now.tick_ns + round(ZEROS_S * SECOND_NS)
        elif self._silent_from_ns is not None and now.tick_ns < self._silent_from_ns:
            twist = ZERO
        self._twist, self._last = twist, now
        refused, self._refused = tuple(self._refused), []
        phase = Phase.MOVING if step else Phase.RAMP if twist is not None and twist.moving else Phase.ZEROS
        motion = None if twist is None else Motion(twist, phase=phase, step=step)
        return Decision(self._driver, motion, step, started, refused, self._stop_reason)

    def _watch(self, now: Now, obstacles: Mapping[str, str]) -> None:
        last = self._last
        if last is not None and now.ros_ns < last.ros_ns:
            self.halt(f"the ROS clock jumped back by {(last.ros_ns - now.ros_ns) / SECOND_NS:.3f} s")
        if last is not None and now.tick_ns < last.tick_ns:  # simulated time: an end of silence from before means nothing now
            self._silent_from_ns = None if self._twist is None else now.tick_ns + round(ZEROS_S * SECOND_NS)
        if obstacles and self._driver is Driver.POLICY:
            for rule in obstacles:
                self._count(rule)
            self._fall(" ".join(obstacles.values()))

    def _receive(self, received: ReceivedChunk, now: Now) -> None:
        """Judge a chunk at the door. Dropped: it changes nothing. Refused: the arm stops. A stop is obeyed in any order."""
        self.counts["chunks"] += 1
        newest, identity = self._newest, received.identity
        in_order = newest is None or newest.session != identity.session or newest < identity
        if in_order:
            self._newest = identity
        if self._driver is not Driver.POLICY:
            return
        chunk = received.chunk
        if self._session not in (None, identity.session):
            self._count("session")
            self._fall("chunks come from another start of the policy. If that is meant, choose POLICY again.")
        elif not chunk.steps:
            self._observed_ns = None  # it said so itself: nothing is overdue
            self._stop(f"the policy stopped the arm: {chunk.fault or 'no reason given'}")
        elif not in_order:
            self._drop(Refusal("order", "a chunk came after a newer one"))
        elif (refusal := refuse_content(received, self._profile.base_frame, self._profile.limits)) is not None:
            self._refuse(refusal)
        elif (why := self._untimely(chunk.observation_stamp_ns, now)) is not None:
            self._drop(why)
        else:
            self._session, self._observed_ns = identity.session, chunk.observation_stamp_ns
            self._schedule.put(received)

    def _untimely(self, stamp_ns: int, now: Now) -> Refusal | None:
        """Why a chunk comes at the wrong time; the one that plays goes on."""
        if stamp_ns == 0:
            return Refusal("stamp", "chunk carries no observation stamp (zero). Let the camera driver stamp its images.")
        if stamp_ns < self._since_ns:
            return Refusal("before_switch", "chunk was observed before POLICY was chosen")
        if self._observed_ns is not None and stamp_ns < self._observed_ns:
            return Refusal("order", "chunk's observation is older than that of the chunk before")
        age_s, allowed_s = (now.ros_ns - stamp_ns) / SECOND_NS, self.settings.max_observation_age_s
        if age_s < 0.0:
            return Refusal("age", "chunk's observation lies in the future. Synchronise the clocks of camera and robot (chrony).")
        if age_s > allowed_s:
            return Refusal("age", f"chunks arrive older than {allowed_s:g} s. Make the policy faster, or raise max_observation_age_s.")
        return None

    def _expire(self, now: Now) -> None:
        if self._driver is not Driver.POLICY or self._observed_ns is None:
            return
        allowed_s, age_s = self.settings.max_observation_age_s, (now.ros_ns - self._observed_ns) / SECOND_NS
        if age_s > allowed_s + self.settings.resume_within_s:
            self._count("expired")
            self._fall(f"no fresh chunk came within {self.settings.resume_within_s:g} s after the last expired. "
                       "See the policy's diagnostics, then choose POLICY again.")
        elif age_s > allowed_s and self._stop_reason == WAITING:
            self._stop_reason = f"the newest observation is older than {allowed_s:g} s"
        playing = self._schedule.playing
        if (playing is not None and playing.end_ns > now.tick_ns and self._schedule.waiting is not None
                and self._age_s(playing, now) > allowed_s):
            self._count("age")
            self._schedule.skip()  # the fresher chunk need not wait for the end of a step that may not be played on

    def _play(self, now: Now) -> tuple[Twist | None, PlayedStep | None, bool]:
        """The twist of the steps in the coming tick, the newest of them, and whether that one starts in it."""
        if self._driver is not Driver.POLICY:
            return None, None, False
        shares: list[tuple[Action, float]] = []
        step, until_ns = None, now.tick_ns + self._period_ns
        plays = self._schedule.window(now.tick_ns, until_ns)
        for play in plays:
            verdict = judge(self._scaled(play.step), Situation(
                self._age_s(play, now), self.settings.max_observation_age_s, self._profile.limits))
            if verdict.action is None and play is not plays[-1]:
                continue  # the rest of a step that grew too old in its last tick; what follows it is judged by itself
            if verdict.action is None:
                self._refuse(Refusal(verdict.rules[-1], verdict.reason))
                return None, None, False
            shares.append((verdict.action, play.share(now.tick_ns, until_ns)))
            step = PlayedStep(play.received.identity, play.received.chunk.observation_stamp_ns, play.step,
                              verdict.action, verdict.rules)
        if step is None:
            if self._started is not None:
                self._started, self._stop_reason = None, WAITING
            return None, None, False
        started = plays[-1] is not self._started
        if started:
            self._started, self._stop_reason = plays[-1], ""
            self.counts.update(("steps", *step.rules))
        return to_twist(shares, self._period_ns / SECOND_NS), step, started

    def _scaled(self, step: Action) -> Action:
        scale = self.settings.action_scale
        return Action(step.translation_m * scale, step.rotation_rad * scale, step.gripper)

    def _age_s(self, play: Play, now: Now) -> float:
        return (now.ros_ns - play.received.chunk.observation_stamp_ns) / SECOND_NS

    def _waits(self, now: Now) -> bool:
        """Between two steps: the arm is told to rest, and the next chunk is not overdue."""
        return self._driver is Driver.POLICY and self._observed_ns is not None and (
            now.ros_ns - self._observed_ns <= self.settings.max_observation_age_s * SECOND_NS)

    def _fall(self, reason: str) -> None:
        """Leave POLICY without being asked. Coming back is a human act."""
        self._driver, self._fell = next_driver(self._driver, "hold"), True
        self._stop(reason)

    def _refuse(self, refusal: Refusal) -> None:
        self._count(refusal.rule)
        if self._driver is Driver.POLICY:
            self._stop(refusal.reason)

    def _stop(self, reason: str) -> None:
        self._schedule.clear()
        self._started, self._stop_reason = None, reason
        self._ramping = self._twist is not None and self._twist.moving

    def _stop_at_once(self, reason: str) -> None:
        self._stop(reason)
        self._twist, self._ramping = ZERO, True  # a ramp from zero: one tick of zeros, then the usual silence

    def _drop(self, refusal: Refusal) -> None:
        """Leave a chunk out. If nothing plays, this is the newest reason why."""
        self._count(refusal.rule)
        if self._started is None:
            self._stop_reason = refusal.reason

    def _count(self, rule: str) -> None:
        self.counts[rule] += 1
        self._refused.append(rule)
