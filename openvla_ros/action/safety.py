"""The rules between a policy and an arm: pure, in a fixed order, fail closed.

Comes in: a chunk or a step and the situation; goes out: a Verdict. A rule either passes a step, scales it (direction kept) or
stops the arm. Every rule that acted is named, so that it can be counted and reported. Applying the chain twice changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openvla_ros.contract import Action, FloatArray, ReceivedChunk
from openvla_ros.robot import Limits

MAX_STEPS = 256
"""Longest chunk that is taken. Known policies send 1 to 64 steps; more is a broken sender."""


@dataclass(frozen=True)
class Situation:
    """What the rules look at besides the step."""

    observation_age_s: float  # now minus the camera stamp, ROS clock
    max_observation_age_s: float
    limits: Limits


@dataclass(frozen=True)
class Verdict:
    """What may go to the arm. action None: stop, and `reason` says why. rules: names of those that acted, in order."""

    action: Action | None
    rules: tuple[str, ...] = ()
    reason: str = ""


Rule = Callable[[Action, Situation], Verdict]


def finite(action: Action, situation: Situation) -> Verdict:
    """No NaN, no infinity. Looks before anything is compared: comparisons let NaN through."""
    if not np.isfinite(action.to_vector()).all():
        return Verdict(None, ("finite",), f"action holds NaN or infinity: {action.to_vector().tolist()}")
    return Verdict(action)


def age(action: Action, situation: Situation) -> Verdict:
    """Old pictures move nothing. A stamp from the future stops too: a clock jumped, or two clocks disagree."""
    allowed_s = situation.max_observation_age_s
    if not 0.0 <= situation.observation_age_s <= allowed_s:
        return Verdict(None, ("age",), f"observation is {situation.observation_age_s:.3f} s old, allowed 0 to {allowed_s:g} s")
    return Verdict(action)


def step_clamp(action: Action, situation: Situation) -> Verdict:
    """Translation and rotation apart, each shortened as a vector, so that the direction is kept.

    The original Bridge robot cuts each axis by itself, which bends the direction and lets a diagonal be 1.7 times longer.
    """
    translation_m = shorten(action.translation_m, situation.limits.max_step_m)
    rotation_rad = shorten(action.rotation_rad, situation.limits.max_step_rad)
    rules = (("step_clamp_translation",) if translation_m is not action.translation_m else ()) + (
        ("step_clamp_rotation",) if rotation_rad is not action.rotation_rad else ())
    return Verdict(Action(translation_m, rotation_rad, action.gripper) if rules else action, rules)


def gripper(action: Action, situation: Situation) -> Verdict:
    """0 closed .. 1 open. Real data overshoots a little (1.0187 in BridgeData), so it is cut, not refused."""
    opening = min(1.0, max(0.0, action.gripper))
    if opening == action.gripper:
        return Verdict(action)
    return Verdict(Action(action.translation_m, action.rotation_rad, opening), ("gripper",))


CHAIN: tuple[Rule, ...] = (finite, age, step_clamp, gripper)
"""In the order they act. A new rule is a function above and a word here."""


def judge(action: Action, situation: Situation) -> Verdict:
    """Run the chain. The first stop ends it."""
    rules: tuple[str, ...] = ()
    for rule in CHAIN:
        verdict = rule(action, situation)
        rules += verdict.rules
        if verdict.action is None:
            return Verdict(None, rules, verdict.reason)
        action = verdict.action
    return Verdict(action, rules)


def shorten(vector: FloatArray, longest: float) -> FloatArray:
    """The vector itself when it is not longer than `longest`, else one of that length and the same direction. Finite input."""
    largest = float(np.abs(vector).max())
    if largest <= longest and math.hypot(*vector) <= longest:
        return vector
    unit = vector / largest  # first, so that huge values do not overflow
    return unit * (longest / math.hypot(*unit))


@dataclass(frozen=True)
class Refusal:
    """Why a chunk is not taken: the rule's name and the reason with what to do."""

    rule: str
    reason: str


def refuse_content(received: ReceivedChunk, base_frame: str, limits: Limits) -> Refusal | None:
    """What is wrong with a chunk whenever it comes: such a chunk says that its sender is wrong, so the arm stops."""
    chunk, shortest_s = received.chunk, limits.shortest_step_s
    if received.frame_id != base_frame:
        return Refusal("frame", f"chunk is in frame {received.frame_id!r}, this arm takes {base_frame!r}. "
                                "Set base_frame to the same name in both nodes; no transform is looked up.")
    if len(chunk.steps) > MAX_STEPS:
        return Refusal("step_count", f"chunk has {len(chunk.steps)} steps, at most {MAX_STEPS} are taken")
    if chunk.step_s < shortest_s - 1e-6:
        return Refusal("step_duration", f"chunk has steps of {chunk.step_s:g} s; steps as large as this profile allows need "
                                        f"{shortest_s:g} s at its top speed. Lower max_step_m and max_step_rad for a faster policy.")
    bad = sum(not np.isfinite(step.to_vector()).all() for step in chunk.steps)
    if bad:
        return Refusal("finite", f"chunk {received.identity.sequence} holds NaN or infinity in {bad} of {len(chunk.steps)} steps")
    return None
