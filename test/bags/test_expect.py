"""When two answers count as equal: ids above the margin bound, a counted flip below it, actions within their tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.bags.expect import (
    CAUSES,
    MARGIN_BOUNDS,
    Commanded,
    Difference,
    Examiner,
    Expectation,
    Tolerance,
    changed,
    compare_commanded,
    first_difference,
    read_expectation,
    write_expectation,
)
from openvla_ros.bags.frames import Marks
from openvla_ros.bags.replay import ReplayedFrame
from openvla_ros.contract import Evidence
from openvla_ros.errors import BagError, ConfigurationError

IDS = (10, 20, 30, 40, 50, 60, 70)
ACTION = np.array([0.01, 0.0, -0.01, 0.0, 0.02, 0.0, 1.0])
FLOAT32 = {"policy": {"mode": {"dtype": "float32"}}}


def frame(index: int = 0, ids: tuple[int, ...] = IDS, action: Any = ACTION, margins: tuple[float, ...] = (2.0,) * 7,
          **changes: Any) -> ReplayedFrame:
    evidence = Evidence(changes.pop("input_ids", (1, 2, 3)), changes.pop("pixels", "pixels"), margins)
    values: dict[str, Any] = {"stamp_ns": 5, "instruction": "go", "fault": "", "marks": Marks("message", "picture")} | changes
    return ReplayedFrame(index, values["stamp_ns"], values["instruction"], ids, None if action is None else np.array(action), None,
                         values["fault"], {}, values["marks"], evidence)


def look(expected: ReplayedFrame, found: ReplayedFrame, then: Any = FLOAT32, now: Any = FLOAT32, **tolerance: Any) -> tuple[
        Difference | None, Examiner]:
    examiner = Examiner(Expectation((expected,), then), now, Tolerance(**tolerance))
    return examiner.look(found), examiner


def flipped(place: int, by: float = 0.001) -> tuple[tuple[int, ...], np.ndarray]:
    """Ids and action with another token at a place."""
    action = ACTION.copy()
    action[place] += by
    return tuple(value + (column == place) for column, value in enumerate(IDS)), action


def test_the_same_is_good() -> None:
    difference, examiner = look(frame(), frame())
    assert difference is None and examiner.flips == [] and examiner.compared == 1 and examiner.finish() == []


@pytest.mark.parametrize("place", range(7))
def test_the_margin_of_the_first_other_token_decides(place: int) -> None:
    ids, action = flipped(place)
    margins = tuple(0.4 if column == place else 9.0 for column in range(7))
    difference, examiner = look(frame(margins=margins), frame(ids=ids, action=action), margin=0.5)
    assert difference is None and examiner.flips == [0]
    difference, examiner = look(frame(margins=margins), frame(ids=ids, action=action), margin=0.3)
    assert difference is not None and difference.cause == "logits" and examiner.flips == []
    assert f"token {place + 1} is {ids[place]}, expected {IDS[place]}, where the margin was 0.4 (bound 0.3)" in difference.detail


def test_what_follows_a_flip_is_another_answer_and_needs_no_margin() -> None:
    ids = (10, 21, 99, 98, 97, 96, 95)
    action = np.add(ACTION, [0.0, 0.005, 0.005, 0.01, 0.01, 0.01, -0.5])
    difference, examiner = look(frame(margins=(9, 0.1, 9, 9, 9, 9, 9)), frame(ids=ids, action=action), margin=0.5)
    assert difference is None and examiner.flips == [0]


@pytest.mark.parametrize(("place", "by", "name"), [(0, 0.011, "dx"), (4, 0.06, "dpitch"), (6, -0.2, "gripper")])
def test_a_flip_that_goes_too_far_is_a_difference_in_its_dimension(place: int, by: float, name: str) -> None:
    ids, action = flipped(place, by)
    difference, examiner = look(frame(margins=(0.1,) * 7), frame(ids=ids, action=action), margin=0.5,
                                action=(0.01, 0.01, 0.01, 0.05, 0.05, 0.05, 0.1))
    assert difference is not None and difference.dimensions == (name,) and "more than the tolerance" in difference.detail
    assert examiner.flips == [0]


def test_too_many_flips_are_a_difference() -> None:
    ids, action = flipped(1)
    frames = tuple(frame(index, margins=(0.1,) * 7) for index in range(20))
    for flips, share, good in ((2, 0.1, True), (3, 0.1, False), (1, 0.0, False), (1, 0.01, True), (20, 1.0, True)):
        examiner = Examiner(Expectation(frames, FLOAT32), FLOAT32, Tolerance(margin=0.5, flips=share))
        for index in range(20):
            assert examiner.look(frame(index, ids=ids, action=action) if index < flips else frame(index)) is None
        assert (examiner.finish() == []) is good, (flips, share)


def test_the_default_bound_is_that_of_the_expectations_dtype() -> None:
    for dtype, bound in MARGIN_BOUNDS.items():
        _, examiner = look(frame(), frame(), then={"policy": {"mode": {"dtype": dtype}}})
        assert examiner.margin_bound == bound
    assert look(frame(), frame(), then={})[1].margin_bound == 0.0


def test_a_missing_token_is_no_flip() -> None:
    difference, _ = look(frame(margins=(0.1,) * 7), frame(ids=IDS[:3], action=ACTION), margin=0.5)
    assert difference is not None and "token 4 is missing, expected 40" in difference.detail


@pytest.mark.parametrize("margin", [math.nan, math.inf])
def test_a_token_whose_margin_is_unknown_or_boundless_must_be_equal(margin: float) -> None:
    ids, action = flipped(2)
    difference, examiner = look(frame(margins=(0.1, 0.1, margin, 0.1, 0.1, 0.1, 0.1)), frame(ids=ids, action=action), margin=0.5)
    assert difference is not None and difference.cause == "logits" and examiner.flips == []
    assert "token 3 is 31, expected 30" in difference.detail and "nan" not in difference.detail


def test_faults_must_be_the_same() -> None:
    broken = frame(ids=(), action=None, fault="the model ended its answer early")
    assert look(broken, broken)[0] is None
    difference, _ = look(frame(), broken)
    assert difference is not None and "fault 'the model ended its answer early', expected 'none'" in difference.detail


def test_causes_are_looked_for_from_the_camera_to_the_arm() -> None:
    """Everything differs; what is put right again, from the front, leaves the next one to be named."""
    ids, action = flipped(0, 0.02)
    wrong: dict[str, Any] = {"instruction": "stop", "input_ids": (1, 9, 3), "marks": Marks("other", "other"), "pixels": "other", "ids": ids,
                             "action": action}
    then = {"policy": {"statistics": {"key": "a"}, "mode": {"dtype": "float32"}, "checkpoint": "x"}}
    now = {"policy": {"statistics": {"key": "b"}, "mode": {"dtype": "float32"}, "checkpoint": "y"}}
    named = []
    for mended in ("nothing", "instruction", "input_ids", "marks", "pixels", "ids"):
        wrong.pop(mended, None)
        difference, _ = look(frame(), frame(**wrong), then, now)
        assert difference is not None
        named.append(difference.cause)
    assert named == ["input ids", "input ids", "picture", "pixels", "logits", "statistics"] and set(named) < set(CAUSES)
    assert "statistics (key: a became b)" in difference.detail


def test_versions_are_named_when_nothing_else_is_known_to_have_changed() -> None:
    ids, action = flipped(0)
    now = {**FLOAT32, "versions": {"torch": "3.0", "pillow": "14"}}
    then = {**FLOAT32, "versions": {"torch": "2.13", "pillow": "13"}}
    for marks, word in ((Marks("message", "picture"), "torch 2.13 became 3.0"), (Marks("message", "other"), "pillow 13 became 14")):
        difference, _ = look(frame(), frame(ids=ids, action=action, marks=marks), then, now)
        assert difference is not None and word in difference.detail


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_first_difference_agrees_with_the_slow_way(one: list[int], other: list[int]) -> None:
    slow = next((place for place in range(max(len(one), len(other))) if one[place:place + 1] != other[place:place + 1]), None)
    assert first_difference(one, other) == slow


def test_changes_name_their_leaves() -> None:
    assert changed({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 3, "c": [1]}}) == ["a.b: 1 became 3", "d: 2 became nothing"]


# --- the arm


def arm(sent: Any, rules: tuple[str, ...] = (), driver: str = "POLICY", moved: Any = None) -> Commanded:
    return Commanded(None if sent is None else np.array(sent, float), rules, driver, None if moved is None else np.array(moved, float))


@pytest.mark.parametrize(("old", "new", "word"), [
    (arm(ACTION), arm(None, ("age",)), "its step was not played, expected so; rules that acted: age, expected none"),
    (arm(None), arm(ACTION), "its step was played, expected not so"),
    (arm(ACTION, ("speed",)), arm(ACTION * 0.5), "sent to the arm: dx +0.00500, expected +0.01000 m"),
    (arm(ACTION), arm(ACTION, ("workspace",)), "the same was sent; rules that acted: workspace"),
    (arm(ACTION), arm(ACTION, driver="HUMAN"), "the driver was HUMAN, expected POLICY"),
    (arm(ACTION, moved=[0.01] * 6), arm(ACTION, moved=[0.02] * 6), "the arm was told to move by [0.02,")])
def test_what_the_arm_gets_is_compared_where_the_action_is_the_same(old: Commanded, new: Commanded, word: str) -> None:
    expected = Expectation((frame(),), {}, {0: old})
    found = commands_apart(expected, {0: new})
    assert [difference.cause for difference in found] == ["safety"] and word in found[0].detail
    assert commands_apart(expected, {0: old}) == []
    assert commands_apart(expected, {0: new}, found) == [], "the cause lies before the arm"


def commands_apart(expected: Expectation, commanded: Mapping[int, Commanded], differing: Sequence[Difference] = (),
                   flips: tuple[int, ...] = ()) -> list[Difference]:
    return compare_commanded(expected, expected.frames, commanded, differing, flips, Tolerance())


def test_a_command_that_is_there_on_one_side_only_is_a_difference() -> None:
    known, nothing = Expectation((frame(),), {}, {0: arm(ACTION)}), Expectation((frame(),), {})
    for expected, commanded, word in ((known, {}, "never came to the pilot"), (nothing, {0: arm(ACTION)}, "has no command for it")):
        found = commands_apart(expected, commanded)
        assert [(one.index, one.cause) for one in found] == [(0, "safety")] and word in found[0].detail
        assert commands_apart(expected, commanded, found) == []
    assert commands_apart(nothing, {}) == []


def test_the_command_of_a_flipped_frame_and_of_those_behind_it_may_be_apart_by_the_tolerance() -> None:
    """Frame 1 flipped. 2 is still another for it, 3 is equal again, and nothing excuses 4."""
    expected = Expectation(tuple(frame(index) for index in range(5)), {}, {index: arm(ACTION, moved=[0.01] * 6) for index in range(5)})
    other = {1: arm(ACTION + 0.009, ("acceleration",), moved=[0.019] * 6), 2: arm(ACTION, moved=[0.012] * 6)}
    assert commands_apart(expected, {**expected.commanded, **other}, flips=(1,)) == []
    assert [one.index for one in commands_apart(expected, {**expected.commanded, **other})] == [1, 2], "no flip excuses them"
    late = {4: arm(ACTION, moved=[0.012] * 6)}
    found = commands_apart(expected, {**expected.commanded, **other, **late}, flips=(1,))
    assert [one.index for one in found] == [4] and found[0].detail.endswith("The action is as expected.")


@pytest.mark.parametrize(("command", "word"), [
    (arm(ACTION + 0.02), "sent to the arm: dx +0.03000, expected +0.01000 m; dy"), (arm(None, ("workspace",)), "was not played"),
    (arm(ACTION, driver="HOLD"), "the driver was HOLD"), (arm(ACTION, moved=[0.0, 0.0, 0.1, 0.0, 0.0, 0.0]), "told to move by")])
@pytest.mark.parametrize("index", [0, 1])
def test_a_flip_does_not_excuse_a_command_that_goes_too_far(command: Commanded, word: str, index: int) -> None:
    expected = Expectation((frame(0), frame(1)), {}, {0: arm(ACTION, moved=[0.0] * 6), 1: arm(ACTION, moved=[0.0] * 6)})
    flipped_one = arm(ACTION + 0.001, moved=[0.0] * 6)
    found = commands_apart(expected, {0: flipped_one, 1: expected.commanded[1], index: command}, flips=(0,))
    assert [one.index for one in found] == [index] and word in found[0].detail
    assert ("flipped" in found[0].detail) is (index == 0) and ("before it was another" in found[0].detail) is (index == 1)


# --- the file


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    frames = (frame(0), frame(3, input_ids=(1, 2, 4), margins=(0.25, 1.0, 2.0, 3.0, 4.0, 5.0, math.nan)),
              frame(4, ids=(), action=None, fault="broken"))
    before = Expectation(frames, {"bag": {"name": "day"}}, {0: arm(ACTION, ("speed",), moved=[0.1] * 6), 3: arm(None, ("age",))})
    file = tmp_path / "deep" / "expected.json"
    write_expectation(before, file)
    after = read_expectation(file)
    assert after.provenance == before.provenance and after.commanded.keys() == {0, 3}
    for one, two in zip(before.frames, after.frames, strict=True):
        for field in ("index", "stamp_ns", "token_ids", "instruction", "fault", "marks"):
            assert getattr(one, field) == getattr(two, field)
        assert one.evidence is not None and two.evidence is not None and one.evidence.input_ids == two.evidence.input_ids
        np.testing.assert_equal(two.evidence.margins, one.evidence.margins)
        np.testing.assert_equal(two.action, one.action)
    assert after.commanded[0].rules == ("speed",) and after.commanded[3].sent is None
    np.testing.assert_array_equal(after.commanded[0].moved, [0.1] * 6)
    assert [path.name for path in file.parent.iterdir()] == ["expected.json"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BagError, match="cannot be written"):
        write_expectation(Expectation((frame(),), {}), tmp_path / "file" / "expected.json")


@pytest.mark.parametrize("make", [lambda: Tolerance(margin=-1.0), lambda: Tolerance(margin=math.nan), lambda: Tolerance(action=(0.1,) * 6),
                                  lambda: Tolerance(action=(-0.1,) * 7), lambda: Tolerance(flips=1.5), lambda: Tolerance(flips=math.nan)])
def test_tolerances_that_make_no_sense_are_refused(make: Callable[[], Tolerance]) -> None:
    with pytest.raises(ConfigurationError, match="expected"):
        make()
