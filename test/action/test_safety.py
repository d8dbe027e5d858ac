"""The chain: what leaves is finite and inside the limits for any float, or it is a stop."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.action.safety import MAX_STEPS, Situation, judge, refuse_content, shorten
from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, ReceivedChunk
from openvla_ros.robot import Box, Limits

LIMITS = Limits(0.05, 0.25, 0.25, 1.25, 2.5, 12.0, 0.06, 0.3, Box((0.1, 0.45), (-0.2, 0.25), (-0.01, 0.3)))
FRESH = Situation(observation_age_s=0.1, max_observation_age_s=0.6, limits=LIMITS)
ANY = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=2000, deadline=None)
@given(st.lists(ANY, min_size=7, max_size=7), ANY)
def test_what_leaves_is_finite_and_inside_the_limits_or_a_stop(vector: list[float], age_s: float) -> None:
    verdict = judge(Action.from_vector(vector), Situation(age_s, 0.6, LIMITS))
    if not all(map(math.isfinite, vector)) or not 0.0 <= age_s <= 0.6:
        assert verdict.action is None and verdict.reason and verdict.rules
        return
    assert verdict.action is not None
    assert np.isfinite(verdict.action.to_vector()).all()
    assert math.hypot(*verdict.action.translation_m) <= 0.05 * (1 + 1e-12)
    assert math.hypot(*verdict.action.rotation_rad) <= 0.25 * (1 + 1e-12)
    assert 0.0 <= verdict.action.gripper <= 1.0


@settings(max_examples=2000, deadline=None)
@given(st.lists(FINITE, min_size=7, max_size=7))
def test_twice_is_once_and_direction_is_kept(vector: list[float]) -> None:
    asked = Action.from_vector(vector)
    once = judge(asked, FRESH).action
    assert once is not None
    twice = judge(once, FRESH).action
    assert twice is not None
    assert np.abs(twice.to_vector() - once.to_vector()).max() <= 1e-12
    for before, after in ((asked.translation_m, once.translation_m), (asked.rotation_rad, once.rotation_rad)):
        largest = np.abs(before).max()
        if largest > 1e-300:
            unit = before / largest / math.hypot(*(before / largest))
            assert np.abs(after - unit * math.hypot(*after)).max() <= 1e-12


def test_a_step_inside_the_limits_is_untouched() -> None:
    step = Action.from_vector([0.03, 0.04, 0.0, 0.0, 0.25, 0.0, 0.996])
    verdict = judge(step, FRESH)
    assert verdict.action is step and verdict.rules == ()


def test_translation_and_rotation_are_clamped_apart() -> None:
    verdict = judge(Action.from_vector([0.3, 0.4, 0.0, 0.01, 0.0, 0.0, 0.5]), FRESH)
    assert verdict.rules == ("step_clamp_translation",)
    assert verdict.action is not None
    assert verdict.action.to_vector() == pytest.approx([0.03, 0.04, 0.0, 0.01, 0.0, 0.0, 0.5], abs=1e-15)
    verdict = judge(Action.from_vector([0.01, 0.0, 0.0, 0.0, -3.0, 0.0, 1.0187]), FRESH)
    assert verdict.rules == ("step_clamp_rotation", "gripper")
    assert verdict.action is not None
    assert verdict.action.to_vector() == pytest.approx([0.01, 0.0, 0.0, 0.0, -0.25, 0.0, 1.0], abs=1e-15)


def test_a_diagonal_keeps_its_direction_where_the_bridge_robot_would_let_it_be_longer() -> None:
    verdict = judge(Action.from_vector([0.05, 0.05, 0.05, 0, 0, 0, 1]), FRESH)
    assert verdict.action is not None
    assert verdict.action.translation_m == pytest.approx([0.05 / math.sqrt(3)] * 3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(7))
def test_nan_and_infinity_stop(value: float, place: int) -> None:
    vector = [0.01] * 7
    vector[place] = value
    verdict = judge(Action.from_vector(vector), FRESH)
    assert verdict.action is None and verdict.rules == ("finite",) and "NaN or infinity" in verdict.reason


@pytest.mark.parametrize(("age_s", "passes"), [(0.0, True), (0.6, True), (0.6001, False), (-0.001, False), (math.nan, False)])
def test_age(age_s: float, passes: bool) -> None:
    verdict = judge(Action.from_vector([0.01] * 7), Situation(age_s, 0.6, LIMITS))
    assert (verdict.action is not None) is passes
    assert verdict.rules == (() if passes else ("age",))


def test_shorten_survives_the_largest_floats() -> None:
    assert shorten(np.array([1.7e308, -1.7e308, 1.7e308]), 0.05) == pytest.approx(np.array([1, -1, 1]) * 0.05 / math.sqrt(3))


def received(steps: int = 1, step_s: float = 0.2, frame_id: str = "base", value: float = 0.01) -> ReceivedChunk:
    chunk = ActionChunk(tuple(Action.from_vector([value] * 7) for _ in range(steps)), step_s, 1)
    return ReceivedChunk(chunk, ChunkIdentity(1, 1, 1), frame_id)


def test_content_of_a_chunk() -> None:
    assert refuse_content(received(), "base", LIMITS) is None
    assert refuse_content(received(steps=MAX_STEPS, step_s=1.0), "base", LIMITS) is None
    for chunk, rule, words in ((received(frame_id="world"), "frame", "'world'.*'base'.*base_frame"),
                               (received(frame_id=""), "frame", "''"),
                               (received(steps=MAX_STEPS + 1), "step_count", "257 steps"),
                               (received(step_s=0.19), "step_duration", r"0.19 s.*0.2 s"),
                               (received(value=math.nan), "finite", "1 of 1 steps")):
        refusal = refuse_content(chunk, "base", LIMITS)
        assert refusal is not None and refusal.rule == rule
        assert re.search(words, refusal.reason)
