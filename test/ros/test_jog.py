"""Keys become bounded jogs: what is sent when, how far it goes, and what a held key does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.jog import DEGREES, GRIPPER_S, JOG_S, MILLIMETRES, MOVES, OPENINGS, ZEROS_S, Jogger, StepSize, spell


@pytest.mark.parametrize(("data", "keys"), [
    (b"", ()), (b"wa", ("w", "a")), (b" ", (" ",)), (b"\x1b", ("escape",)),
    (b"\x1b[A\x1b[B\x1bOC\x1b[Dw", ("up", "down", "right", "left", "w")),
    (b"w\x1b", ("w", "escape")), (b"\x1b[", ("escape",)), (b"\x1bw", ("escape",)), (b"a\x1b[15~w", ("a", "escape")),
    (b"\xc3\xa4w\xff", ("w",)),
])
def test_bytes_become_keys_and_what_is_not_known_is_no_move(data: bytes, keys: tuple[str, ...]) -> None:
    assert spell(data) == keys


@pytest.mark.parametrize(("key", "linear_m_s", "angular_rad_s"), [
    ("w", [0.05, 0, 0], [0, 0, 0]), ("s", [-0.05, 0, 0], [0, 0, 0]), ("left", [0, 0.05, 0], [0, 0, 0]), ("d", [0, -0.05, 0], [0, 0, 0]),
    ("r", [0, 0, 0.05], [0, 0, 0]), ("u", [0, 0, 0], [-0.25, 0, 0]), ("i", [0, 0, 0], [0, 0.25, 0]), ("l", [0, 0, 0], [0, 0, -0.25]),
])
def test_a_key_is_one_step_over_its_duration(key: str, linear_m_s: list[float], angular_rad_s: list[float]) -> None:
    jogger = Jogger(StepSize(10.0, math.degrees(0.05)))
    assert jogger.request(4.9) is None and jogger.press(key, 5.0)
    request = jogger.request(5.1)
    assert request is not None and request.active and request.gripper is None
    np.testing.assert_allclose(request.twist.linear_m_s, linear_m_s)
    np.testing.assert_allclose(request.twist.angular_rad_s, angular_rad_s)


def test_a_jog_ends_by_itself_with_zeros_and_then_silence() -> None:
    jogger = Jogger()
    jogger.press("w", 0.0)
    assert jogger.request(JOG_S - 1e-6).active
    zeros = jogger.request(JOG_S)
    assert zeros is not None and zeros.deadman and not zeros.active
    assert jogger.request(JOG_S + ZEROS_S - 1e-6) is not None and jogger.request(JOG_S + ZEROS_S) is None


def test_the_loop_is_woken_when_the_jog_ends() -> None:
    jogger = Jogger()
    assert jogger.until_s(0.0, 0.02) == 0.02
    jogger.press("w", 0.0)
    assert jogger.until_s(0.1, 0.02) == 0.02 and jogger.until_s(0.19, 0.02) == pytest.approx(0.01)


def test_a_held_key_is_dropped_while_its_jog_runs() -> None:
    jogger = Jogger()
    taken = [jogger.press("w", 0.03 * count) for count in range(7)]  # as a keyboard repeats it, until 0.18 s
    assert taken == [True] + [False] * 6
    assert not jogger.request(JOG_S).active, "nothing follows when the hand is gone"


def test_of_other_keys_the_newest_follows_once() -> None:
    jogger = Jogger()
    for key, now_s in (("w", 0.0), ("a", 0.05), ("d", 0.1), ("w", 0.15)):
        jogger.press(key, now_s)
    assert jogger.request(0.19).twist.linear_m_s[0] > 0
    assert jogger.request(JOG_S).twist.linear_m_s[1] < 0
    assert jogger.request(2 * JOG_S - 0.01).active and not jogger.request(2 * JOG_S).active


def test_a_stalled_process_makes_up_for_nothing() -> None:
    jogger = Jogger()
    jogger.press("w", 0.0)
    assert jogger.request(3.0) is None
    jogger.press("w", 3.0)
    jogger.press("a", 3.1)
    assert jogger.request(9.0).twist.linear_m_s[1] > 0 and not jogger.request(9.0 + JOG_S).active


def test_cancel_forgets_what_waits_and_sends_zeros() -> None:
    jogger = Jogger()
    jogger.cancel(0.0)
    assert jogger.request(0.0) is None
    jogger.press("w", 0.0)
    jogger.press("a", 0.1)
    jogger.cancel(0.15)
    assert not jogger.request(0.15).active and not jogger.request(JOG_S).active
    assert jogger.request(0.15 + ZEROS_S) is None


@pytest.mark.parametrize(("key", "opening"), OPENINGS.items())
def test_the_gripper_is_asked_without_a_motion(key: str, opening: float) -> None:
    jogger = Jogger()
    jogger.press(key, 0.0)
    assert jogger.request(GRIPPER_S - 0.01).gripper == opening and not jogger.request(0.0).twist.moving
    assert jogger.request(GRIPPER_S).gripper is None


@given(presses=st.lists(st.tuples(st.sampled_from([*MOVES, *OPENINGS]), st.floats(0.0, 0.5)), max_size=30),
       size=st.builds(StepSize, st.floats(1.0, 20.0), st.floats(1.0, 10.0)))
def test_however_keys_are_hit_the_way_is_at_most_a_step_per_jog(presses: list[tuple[str, float]], size: StepSize) -> None:
    jogger, now_s, translation_m, rotation_rad, taken = Jogger(size), 0.0, 0.0, 0.0, 0
    for key, pause_s in [*presses, ("", 3.0)]:
        end_s = now_s + pause_s
        while now_s < end_s:
            wait_s = min(jogger.until_s(now_s, 0.02), end_s - now_s)
            request = jogger.request(now_s)
            if request is not None:
                translation_m += float(np.abs(request.twist.linear_m_s).sum()) * wait_s
                rotation_rad += float(np.abs(request.twist.angular_rad_s).sum()) * wait_s
            now_s += max(wait_s, 1e-9)
        taken += bool(key) and jogger.press(key, now_s)
    assert jogger.request(now_s) is None
    assert translation_m <= taken * size.translation_mm / 1000 + 1e-6
    assert rotation_rad <= taken * math.radians(size.rotation_deg) + 1e-6


def test_steps_are_chosen_within_bounds() -> None:
    size = StepSize(3.0, 7.0)
    assert size.longer(1).translation_mm == 5.0 and size.longer(-1).translation_mm == 2.0 and size.longer(1).rotation_deg == 7.0
    assert size.wider(1).rotation_deg == 10.0 and size.wider(-1).rotation_deg == 5.0 and size.wider(-1).translation_mm == 3.0
    assert StepSize(MILLIMETRES[-1], DEGREES[-1]).longer(1).wider(1) == StepSize(20.0, 10.0)
    assert StepSize(MILLIMETRES[0], DEGREES[0]).longer(-1).wider(-1) == StepSize(1.0, 1.0)


@pytest.mark.parametrize(("values", "words"), [
    ((0.9, 5.0), "a step of 0.9 mm is not taken; give 1 to 20 mm"), ((21.0, 5.0), "21 mm"), ((math.nan, 5.0), "nan mm"),
    ((5.0, 0.5), "0.5 degrees is not taken; give 1 to 10 degrees"), ((5.0, math.inf), "inf degrees"),
])
def test_a_step_outside_the_bounds_is_refused(values: tuple[float, float], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        StepSize(*values)
