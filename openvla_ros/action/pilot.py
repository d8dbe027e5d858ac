"""Joins inbox, playback, hand, handoff and target: what came in since the last tick -> what the arm is sent now.

Pure: time is an argument, nothing is published here, no thread is started. One thread at a time may call.

Two clocks. Ages are differences on the ROS clock, where stamps of cameras, joint states and teleops live. Steps and silences are timed
on the clock that drives the ticks: a steady one, so that setting the computer's time does not stretch a step, or the ROS clock when
time is simulated.

How fast it stops: a step moves the arm at most until `max_observation_age_s` plus one tick after its observation's stamp; then
speed ramps down, and is zero within `Limits.longest_ramp_s`. What consumes the commands adds its own time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from openvla_ros.action.approach import Approach
from openvla_ros.action.command import NOBODY, ZERO, Motion, Phase, PlayedStep, Twist, shorten, slew, slow_down
from openvla_ros.action.hand import Hand, HumanRecord, is_finite
from openvla_ros.action.handoff import Driver, next_driver
from openvla_ros.action.inbox import Fate, Inbox
from openvla_ros.action.kinematics import Kinematics
from openvla_ros.action.playback import Playback
from openvla_ros.action.pose import from_rpy
from openvla_ros.action.safety import Refusal, outside
from openvla_ros.action.schedule import SECOND_NS
from openvla_ros.action.state import Measured, asleep, measure, strained
from openvla_ros.action.target import Target
from openvla_ros.action.tedium import Tedium
from openvla_ros.action.teleop import TeleopRequest
from openvla_ros.contract import Action, FloatArray, Pose, ReceivedChunk, RobotState
from openvla_ros.errors import ConfigurationError, HandoffRefused
from openvla_ros.robot import RobotProfile

ZEROS_S = 0.5
"""How long zeros are sent after the last motion before the arm's topic falls silent: several times Servo's timeout of 0.1 s."""

UNABLE_S = 1.0
"""An arm that does not follow for so long, or a way to the start pose that goes on nowhere for so long, is given up."""

ENABLE_S = 0.5
"""The enable heartbeat counts for so long."""

TELEOP_AGE_S = 0.25
"""Twists of a teleop that were stamped longer ago move nothing."""

AHEAD_SPACING_S = 0.05
"""Points of a trajectory are no closer: more than two cycles of a controller at 50 Hz."""

WAITING = "waiting for the next chunk"
BY_HAND = "waiting for the human's hand"

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
    max_joint_state_age_s: float = 0.25
    require_enable: bool = False
    stuck_after: int = 25  # steps in a row that are near zero or all the same; only a diagnostic
    start_pose: str = ""  # name of one of the profile's; empty: its first
    dry_run: bool = False  # nothing reaches the arm, so it cannot follow: each step starts where it is


@dataclass(frozen=True)
class Inputs:
    """What came since the last tick, and what the pilot cannot see itself."""

    received: Sequence[ReceivedChunk] = ()  # in order
    obstacles: Mapping[str, str] = field(default_factory=dict)  # rule -> why nobody may drive now, with remedy
    policy_obstacles: Mapping[str, str] = field(default_factory=dict)  # rule -> why POLICY may not drive now


@dataclass(frozen=True)
class Decision:
    """The outcome of one tick. motion None: send nothing. step: the newest one that plays in it, or a human's that has just ended."""

    driver: Driver
    motion: Motion | None
    step: PlayedStep | None
    step_started: bool  # a step of the policy starts in this tick
    refused: tuple[str, ...]  # rules that dropped a chunk, stopped the arm or began to limit its motion, at this tick
    stop_reason: str  # empty while the arm is moving
    target: Pose | None = None
    measured: Pose | None = None
    proposal: Action | None = None  # the policy's newest step while a human drives; None when it has no fresh one
    intervention: bool = False  # a human drives in place of a running policy

    @property
    def twist(self) -> Twist | None:
        """The velocity that is sent; None: nothing is."""
        return self.motion.twist if self.motion else None

    @property
    def notable(self) -> bool:
        """Something that a record must not miss."""
        return self.step_started or bool(self.refused) or (self.step is not None and self.step.identity == NOBODY)

    @property
    def rules(self) -> tuple[str, ...]:
        """All rules that acted: those that refused, and those that changed the step."""
        return tuple(dict.fromkeys(self.refused + (self.step.rules if self.step else ())))


class Pilot:
    """The arm's only source of commands. Starts in HOLD and says nothing until somebody chose a driver."""

    def __init__(self, profile: RobotProfile, settings: Settings, kinematics: Kinematics | None = None) -> None:
        """kinematics: of the profile's arm. Raises ConfigurationError when the settings do not fit the profile."""
        self._profile, self._kinematics = profile, kinematics
        self._driver, self._stop_reason = Driver.HOLD, "no driver was chosen yet"
        self._inbox = Inbox(profile)
        self._last: Now | None = None
        self._target = Target(profile)
        self._measured: Measured | None = None
        self._blind = {} if profile.arm is None else {"joint_states": "the joint states were not looked at yet. Call again."}
        self._told: Mapping[str, str] = NOTHING  # obstacles of the last tick's inputs
        self._hand, self._touching, self._took_over = Hand(), False, False
        self._record = HumanRecord()
        self._approach: Approach | None = None
        self._enabled_ns: int | None = None
        self._strained = False
        self._unable_since_ns: int | None = None
        self._ramping = False
        self._placed = False  # the target was put elsewhere, and the arm was not told yet
        self._silent_from_ns: int | None = None
        self._speaking = False  # something was sent at the last tick
        self._acting: tuple[str, ...] = ()  # rules that limited the motion of the last tick
        self._refused: list[str] = []
        self._fell = False
        self.counts: Counter[str] = Counter()
        """How often each rule acted since the start, beside the number of `chunks` received and `steps` started."""
        self.configure(settings)

    # ------------------------------------------------------------------ settings and state

    def configure(self, settings: Settings) -> None:
        """Take other settings. Raises ConfigurationError while somebody drives, and for what does not fit the profile."""
        if self._driver in (Driver.POLICY, Driver.HUMAN):
            raise ConfigurationError("settings can be changed only while the driver is HOLD or STOPPED.")
        shortest_s = self._profile.limits.shortest_step_s
        if settings.rate_hz * shortest_s < 1.0:
            raise ConfigurationError(f"rate_hz {settings.rate_hz:g} is too low: this profile allows steps of {shortest_s:g} s, "
                                     f"which need at least {1.0 / shortest_s:g} Hz.")
        known = self._profile.arm.start_poses if self._profile.arm else {}
        if settings.start_pose and settings.start_pose not in known:
            raise ConfigurationError(f"start_pose {settings.start_pose!r} is unknown; this profile has {', '.join(known) or 'none'}.")
        self._settings = settings
        self._period_ns = round(SECOND_NS / settings.rate_hz)
        self._playback = Playback(self._profile, self._period_ns, settings.preempt, settings.action_scale, settings.max_observation_age_s)
        self._tedium = Tedium(settings.stuck_after)

    def adopt(self, kinematics: Kinematics | None) -> None:
        """Take the kinematics of a URDF that came later. Nothing changes while somebody drives: offer it again then."""
        if not self.drives:
            self._kinematics = kinematics

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

    @property
    def obstacles(self) -> Mapping[str, str]:
        """Why nobody may drive, as of the last tick: rule -> reason."""
        return {**self._blind, **self._told}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know although nothing is forbidden by it."""
        sleeping = self._profile.arm is not None and self._measured is not None and asleep(self._measured, self._profile.arm)
        return (*(("the arm lies in its sleep pose. Call go_to_start before a policy drives.",) if sleeping else ()),
                *((self._tedium.complaint,) if self._driver is Driver.POLICY and self._tedium.complaint else ()))

    # ------------------------------------------------------------------ who drives

    def resume(self, now: Now, obstacles: Mapping[str, str] = NOTHING) -> None:
        """HOLD or HUMAN -> POLICY. Only chunks observed from now on count. Raises HandoffRefused, also when there is an obstacle."""
        driver = next_driver(self._driver, "resume")
        found = {**self._blind, **obstacles}
        if self._strained:
            found["effort"] = "the arm still pushes too hard. Take over and lead it away first."
        if self._measured is not None and (where := outside(self._measured.pose, self._profile.limits)):
            found["workspace"] = f"the arm is outside the workspace: {where}. Take over and lead it back, or call go_to_start."
        if self._hand.request(now.tick_ns).active:
            found["hand"] = "the human's hand is on the teleop. Let it go first."
        if found:
            raise HandoffRefused(" ".join(found.values()))
        if driver is self._driver:
            return
        self._switch(driver, "waiting for a chunk that was observed after POLICY was chosen")
        self._inbox.begin(now.ros_ns)
        self._tedium = Tedium(self._settings.stuck_after)

    def take_over(self, obstacles: Mapping[str, str] = NOTHING) -> None:
        """HOLD or POLICY -> HUMAN; nothing moves until the hand asks for it. Raises HandoffRefused, also when there is an obstacle."""
        driver, before = next_driver(self._driver, "take_over"), self._driver
        if found := {**self._blind, **obstacles}:
            raise HandoffRefused(" ".join(found.values()))
        if driver is before:
            return
        self._switch(driver, BY_HAND)
        self._took_over, self._record = before is Driver.POLICY, HumanRecord()
        self._inbox.forget_proposal()

    def hold(self) -> None:
        """Whoever drives -> HOLD with a soft stop. Raises HandoffRefused when STOPPED."""
        self._driver, self._fell = next_driver(self._driver, "hold"), False
        self._stop("HOLD was chosen")

    def go_to_start(self, obstacles: Mapping[str, str] = NOTHING) -> str:
        """Begin the slow way to the start pose, in HOLD. Returns its name. Raises HandoffRefused, also when there is an obstacle."""
        arm = self._profile.arm
        if self._driver is not Driver.HOLD:
            raise HandoffRefused(f"the driver is {self._driver.name}: go_to_start works in HOLD only.")
        if arm is None or not arm.start_poses:
            raise HandoffRefused("this profile names no start pose, or has no joint states.")
        found = {**self._blind, **obstacles}
        if self._strained:
            found["effort"] = "the arm still pushes too hard. Take over and lead it away first."
        if self._touching:
            found["hand"] = "the human's hand is on the teleop. Let it go first."
        if self._target.twist.moving:
            found["moving"] = "the arm is still moving. Call again when it rests."
        if found:
            raise HandoffRefused(" ".join(found.values()))
        assert self._measured is not None and self._kinematics is not None, "or there would be an obstacle"
        name = self._settings.start_pose or next(iter(arm.start_poses))
        numbers = np.array(arm.start_poses[name])
        approach = Approach(name, from_rpy(numbers[:3], numbers[3:]), self._measured.positions, self._kinematics)
        self._stop(f"going to the start pose '{name}'")
        self._target.place(self._measured)
        self._approach, self._fell = approach, False
        return name

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
        if self.drives or self._target.twist.moving:
            self._count("clock")
            self._fall(reason)
            self._stop_at_once(reason)

    # ------------------------------------------------------------------ what else comes in

    def malformed(self, reason: str) -> None:
        """Something came on the chunk topic that is no chunk. The arm stops; a good chunk may start it again."""
        self._refuse(Refusal("malformed", reason))

    def teleop(self, device: str, request: TeleopRequest, now: Now, stamp_ns: int | None = None, frame_id: str | None = None) -> None:
        """A message of a device of `hand.HOLD_S`. Its wish for a driver is not looked at. stamp_ns, frame_id: where it carries them."""
        wrong = None
        if stamp_ns is not None and not -TELEOP_AGE_S <= (now.ros_ns - stamp_ns) / SECOND_NS <= TELEOP_AGE_S:
            wrong = Refusal("teleop_age", f"the teleop's message was stamped {(now.ros_ns - stamp_ns) / SECOND_NS:.3f} s ago, allowed are "
                                          f"{TELEOP_AGE_S:g} s. Synchronise the clocks (chrony).")
        elif frame_id is not None and frame_id != self._profile.base_frame:
            wrong = Refusal("teleop_frame", f"the teleop speaks of the frame {frame_id!r}, this arm takes {self._profile.base_frame!r}")
        elif not is_finite(request):
            wrong = Refusal("teleop_finite", "the teleop's message holds NaN or infinity")
        elif request.fault:
            wrong = Refusal("teleop", request.fault)
        if wrong is None:
            # What it asks for holds from when it was asked, not from when it came: a slow network must not make the arm go further.
            late_ns = 0 if stamp_ns is None else max(0, now.ros_ns - stamp_ns)
            self._hand.put(device, request, now.tick_ns - late_ns)
            return
        self._hand.put(device, TeleopRequest(fault=wrong.reason), now.tick_ns)
        self._count(wrong.rule)
        if self._driver is Driver.HUMAN:
            self._stop_reason = wrong.reason

    def enable(self, value: bool, now: Now) -> None:
        """The heartbeat; false counts as none."""
        self._enabled_ns = now.tick_ns if value else None

    # ------------------------------------------------------------------ the tick

    def step(self, now: Now, state: RobotState | None = None, inputs: Inputs | None = None) -> Decision:
        """One tick. state: the newest joint states, however old."""
        inputs = inputs or Inputs()
        self._look(now, state, inputs)
        self._touch(now)
        for chunk in inputs.received:
            self._receive(chunk, now)
        self._expire(now)
        phase, step, started = self._move(now)
        self._follow(now)
        if phase is not None:
            self._silent_from_ns = now.tick_ns + round(ZEROS_S * SECOND_NS)
        elif self._silent_from_ns is not None and now.tick_ns < self._silent_from_ns:
            phase = Phase.ZEROS
        self._last, self._speaking = now, phase is not None
        refused, self._refused = tuple(self._refused), []
        target, by_human = self._target, self._driver is Driver.HUMAN
        proposal = self._inbox.proposal(now.ros_ns, self.settings.max_observation_age_s) if by_human else None
        motion = None if phase is None else Motion(target.twist, target.pose, target.joints, target.gripper, phase,
                                                   step if self._driver is Driver.POLICY else None, self._ahead(now))
        return Decision(self._driver, motion, step, started, refused, self._stop_reason, target.pose,
                        self._measured.pose if self._measured else None, proposal,
                        by_human and (self._took_over or proposal is not None))

    def _look(self, now: Now, state: RobotState | None, inputs: Inputs) -> None:
        """The clock, the arm, and everything that forbids somebody to drive."""
        last, profile, blind = self._last, self._profile, {}
        if last is not None and now.ros_ns < last.ros_ns:
            self.halt(f"the ROS clock jumped back by {(last.ros_ns - now.ros_ns) / SECOND_NS:.3f} s")
            self._hand.empty()
        if last is not None and now.tick_ns < last.tick_ns:  # simulated time: an end of silence from before means nothing now
            self._silent_from_ns = now.tick_ns + round(ZEROS_S * SECOND_NS) if self._speaking else None
            self._enabled_ns = None
        self._measured = None
        if profile.arm is not None:
            seen = measure(state, profile.arm, profile.gripper, self._kinematics, now.ros_ns, self.settings.max_joint_state_age_s)
            if isinstance(seen, Refusal):
                blind[seen.rule] = seen.reason
            else:
                self._measured = seen
        if self.settings.require_enable and (self._enabled_ns is None or now.tick_ns - self._enabled_ns > ENABLE_S * SECOND_NS):
            blind["enable"] = f"the enable heartbeat is missing: true on `enable`, more often than every {ENABLE_S:g} s."
        self._blind, self._told = blind, inputs.obstacles
        forbidding = {**blind, **inputs.obstacles, **(inputs.policy_obstacles if self._driver is Driver.POLICY else {})}
        if forbidding and self.drives:
            for rule in forbidding:
                self._count(rule)
            self._fall(" ".join(forbidding.values()))
        self._feel()

    def _feel(self) -> None:
        """The effort rule. It acts once per excess, so that a human may lead the arm out of it."""
        if self._measured is None or self._profile.arm is None:
            return
        pushing = strained(self._measured, self._profile.arm)
        if pushing and not self._strained and self.drives:
            self._count("effort")
            reason = f"the arm pushes too hard: {pushing}. Look what is in its way."
            self._fall(reason)
            self._stop_at_once(reason)
            self._give_in()
        self._strained = bool(pushing) and (self._strained or not self.drives)

    def _touch(self, now: Now) -> None:
        """A hand that begins to move the teleop takes over. One that never let go since the last switch does not begin."""
        touching = self._hand.request(now.tick_ns).active
        if touching and not self._touching and self._driver in (Driver.HOLD, Driver.POLICY):
            if self.obstacles:
                self._stop_reason, touching = " ".join(self.obstacles.values()), False  # it may begin as soon as nothing is in the way
            else:
                self.take_over()
        self._touching = touching

    def _receive(self, received: ReceivedChunk, now: Now) -> None:
        self.counts["chunks"] += 1
        if self._driver is not Driver.POLICY:
            self._inbox.overhear(received, by_human=self._driver is Driver.HUMAN)
            return
        letter = self._inbox.read(received, now.ros_ns, self.settings.max_observation_age_s)
        if letter.refusal is None:
            self._playback.put(received)
        elif letter.fate is Fate.STOP:
            self._stop(letter.refusal.reason)
        elif letter.fate is Fate.REFUSED:
            self._refuse(letter.refusal)
        elif letter.fate is Fate.FOREIGN:
            self._count(letter.refusal.rule)
            self._fall(letter.refusal.reason)
        else:
            self._drop(letter.refusal)

    def _expire(self, now: Now) -> None:
        """Without fresh chunks: first the reason, then HOLD."""
        age_s = self._inbox.age_s(now.ros_ns) if self._driver is Driver.POLICY else None
        if age_s is None:
            return
        allowed_s = self.settings.max_observation_age_s
        if age_s > allowed_s + self.settings.resume_within_s:
            self._count("expired")
            self._fall(f"no fresh chunk came within {self.settings.resume_within_s:g} s after the last expired. "
                       "See the policy's diagnostics, then choose POLICY again.")
        elif age_s > allowed_s and self._stop_reason == WAITING:
            self._stop_reason = f"the newest observation is older than {allowed_s:g} s"
        if self._playback.skip_aged(now.tick_ns, now.ros_ns):
            self._count("age")  # the fresher chunk need not wait for the end of a step that may not be played on

    # ------------------------------------------------------------------ the motion of this tick

    @property
    def drives(self) -> bool:
        """Somebody may move the arm now, or it is on its way to the start pose."""
        return self._driver in (Driver.POLICY, Driver.HUMAN) or self._approach is not None

    @property
    def _period_s(self) -> float:
        return self._period_ns / SECOND_NS

    def _elapsed_s(self, now: Now) -> float:
        """Since the last tick, at most a period: an extra tick in between must not let anything change faster."""
        if self._last is None:
            return self._period_s
        return min(self._period_s, max(0.0, (now.tick_ns - self._last.tick_ns) / SECOND_NS))

    def _move(self, now: Now) -> tuple[Phase | None, PlayedStep | None, bool]:
        """Move the target for this tick. Returns what kind of motion that was (None: none), the step, and whether it starts now."""
        if self.drives and not self._speaking:
            self._target.anchor(self._measured)  # nothing is sent: whoever moves the arm meanwhile, the first motion starts where it is
        if self._driver is Driver.POLICY and (played := self._play(now)) is not None:
            return Phase.MOVING, *played
        if self._driver is Driver.HUMAN:
            return self._obey(now)
        if self._approach is not None:
            return self._approach_start(now), None, False
        if self._ramping:
            elapsed_ns = now.tick_ns - self._last.tick_ns if self._last else 0
            wish = slow_down(self._target.twist, max(0, elapsed_ns) / SECOND_NS, self._profile.limits)
            self._drive(now, wish, wish, self._period_s)
            placed, self._placed = self._placed, False
            self._ramping = placed or self._target.twist.moving
            return Phase.RAMP if self._ramping else Phase.ZEROS, None, False
        self._target.rest()
        self._acting = ()
        return Phase.ZEROS if self._waits(now) else None, None, False

    def _play(self, now: Now) -> tuple[PlayedStep, bool] | None:
        """The policy's step in the coming tick, and whether it starts in it. None: there is none."""
        was_playing = self._playback.playing
        played = self._playback.play(now.tick_ns, now.ros_ns, self._target, self._measured if self.settings.dry_run else None)
        if isinstance(played, Refusal):
            self._refuse(played)
            return None
        if played is None:
            if was_playing:
                self._stop_reason = WAITING
            return None
        if played.started:
            self._stop_reason = ""
            self._tedium.watch(played.step.requested)
            self.counts.update(("steps", *played.step.rules))
        self._ramping = False
        self._drive(now, played.wish, played.before, played.step_s, played.step.rules)
        if self._profile.gripper is not None:
            self._target.open(played.opening, self._elapsed_s(now))
        return played.step, played.started

    def _obey(self, now: Now) -> tuple[Phase | None, PlayedStep | None, bool]:
        """The human's motion, slewed at the allowed acceleration."""
        request, limits = self._hand.request(now.tick_ns), self._profile.limits
        asked = request.twist if request.deadman else ZERO
        wish = Twist(shorten(asked.linear_m_s, limits.max_speed_m_s), shorten(asked.angular_rad_s, limits.max_speed_rad_s))
        before = self._target.twist
        self._drive(now, slew(before, wish, self._elapsed_s(now), limits), before, self._period_s)
        if wish.linear_m_s is not asked.linear_m_s or wish.angular_rad_s is not asked.angular_rad_s:
            self._acting += ("speed",)
        if request.gripper is not None and self._profile.gripper is not None:
            self._target.open(request.gripper, self._elapsed_s(now))
        moving = asked.moving or self._target.twist.moving or request.gripper is not None
        if moving:
            self._stop_reason = ""
        elif not self._stop_reason:
            self._stop_reason = "the teleop went silent" if self._hand.silent(now.tick_ns) else BY_HAND
        step = self._record.tick(wish, self._target.twist, request.gripper, self._target.gripper, self._period_s, self._acting)
        return Phase.MOVING if moving else None, step, False

    def _approach_start(self, now: Now) -> Phase:
        """One tick of the slow way to the start pose."""
        approach, target = self._approach, self._target
        assert approach is not None and target.pose is not None
        if approach.arrived(target.pose):
            self._stop(f"at the start pose '{approach.name}'")
            target.rest()
            return Phase.ZEROS
        before = target.twist
        wish = approach.velocity(target.pose, self._period_s)
        self._drive(now, slew(before, wish, self._elapsed_s(now), self._profile.limits), before, self._period_s)
        return Phase.MOVING

    def _drive(self, now: Now, wish: Twist, before: Twist, build_up_s: float, known: tuple[str, ...] = ()) -> None:
        """Move the target, and count each rule when it begins to act. known: those that were counted with the step."""
        acting = self._target.move(wish, self._measured, self._kinematics, now.tick_ns, self._period_s, before, build_up_s)
        for rule in acting:
            if rule not in self._acting and rule not in known:
                self._count(rule)
        self._acting = acting

    def _follow(self, now: Now) -> None:
        """Give up an arm that does not follow its target, and a way to the start pose that leads nowhere."""
        nowhere = self._approach is not None and self._approach.crawls(self._target.twist)
        unable = self.drives and not self._settings.dry_run and (nowhere or self._target.ahead_of(self._measured))
        if not unable:
            self._unable_since_ns = None
        elif self._unable_since_ns is None:
            self._unable_since_ns = now.tick_ns
        elif now.tick_ns - self._unable_since_ns >= UNABLE_S * SECOND_NS:
            self._unable_since_ns = None
            self._count("not_following")
            self._fall(f"the way to the start pose is blocked: {', '.join(self._acting)}" if nowhere and self._acting != ("lead",) else
                       "the arm does not follow: it is as far behind its target as it may be since 1 s. Is it torqued on, is it blocked, "
                       "does its driver listen?")
            self._give_in()

    def _ahead(self, now: Now) -> tuple[tuple[float, FloatArray], ...]:
        """Along the step that plays, for an output that is told at once."""
        if self._profile.output != "trajectory" or self._driver is not Driver.POLICY or not self._playback.playing:
            return ()
        return self._target.path(self._period_s, self._playback.left_s(now.tick_ns), AHEAD_SPACING_S, self._kinematics)

    # ------------------------------------------------------------------ small things

    def _waits(self, now: Now) -> bool:
        """Between two steps: the arm is told to rest, and the next chunk is not overdue."""
        age_s = self._inbox.age_s(now.ros_ns) if self._driver is Driver.POLICY else None
        return age_s is not None and age_s <= self.settings.max_observation_age_s

    def _switch(self, driver: Driver, reason: str) -> None:
        """Another driver: the chunk in flight is dropped, the speed ramped, the gripper kept."""
        self._stop(reason)
        self._target.anchor(self._measured)
        self._driver, self._fell = driver, False

    def _fall(self, reason: str) -> None:
        """To HOLD without being asked. Coming back is a human act."""
        if self._driver is not Driver.STOPPED:
            self._driver, self._fell = next_driver(self._driver, "hold"), True
        self._stop(reason)

    def _refuse(self, refusal: Refusal) -> None:
        self._count(refusal.rule)
        if self._driver is Driver.POLICY:
            self._stop(refusal.reason)

    def _stop(self, reason: str) -> None:
        self._playback.clear()
        self._approach, self._stop_reason = None, reason
        self._ramping = self._target.twist.moving

    def _stop_at_once(self, reason: str) -> None:
        """Without a ramp: the next tick sends zeros, then comes the usual silence. An output of positions that is silent already stays
        so: there is nothing to stop, and repeating a goal that the arm was moved away from would be a motion."""
        self._stop(reason)
        self._target.rest()
        self._ramping = self._speaking or self._profile.output == "servo_twist"
        if self._ramping and self._target.ahead_of(self._measured):
            self._give_in()

    def _give_in(self) -> None:
        """Put the target where the arm is, and send that once: else it would go on pushing towards where it cannot get."""
        if self._measured is not None:
            self._target.place(self._measured)
            self._target.rest()
            self._ramping = self._placed = True

    def _drop(self, refusal: Refusal) -> None:
        """Leave a chunk out. If nothing plays, this is the newest reason why."""
        self._count(refusal.rule)
        if not self._playback.playing:
            self._stop_reason = refusal.reason

    def _count(self, rule: str) -> None:
        self.counts[rule] += 1
        self._refused.append(rule)
