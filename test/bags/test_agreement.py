"""Live answers against offline ones, by stamp: what agrees, what is missing, what nobody recorded, and how the clock ran."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from openvla_ros.bags.agreement import Agreement, HeardChunk, Tick, agree, played_clock
from openvla_ros.bags.expect import Expectation, Tolerance
from openvla_ros.bags.replay import ReplayedFrame
from openvla_ros.contract import Evidence

STEP_NS, AGE_NS = 200_000_000, 80_000_000
ACTION = np.array([0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
IDS = (1, 2, 3, 4, 5, 6, 7)


def offline(count: int = 5) -> Expectation:
    evidence = Evidence((1, 2), "pixels", (0.005, 9, 9, 9, 9, 9, 9))
    frames = tuple(ReplayedFrame(k, 1000 + k * STEP_NS, "go", IDS, ACTION, None, "", {}, None, evidence) for k in range(count))
    return Expectation(frames, {"policy": {"mode": {"dtype": "float32"}}})


def chunk(index: int, ids: tuple[int, ...] = IDS, action: Any = ACTION, fault: str = "", stamp_ns: int = 0,
          infer: bool = True) -> HeardChunk:
    stamp_ns = stamp_ns or 1000 + index * STEP_NS
    stage_ms = {"vision": 5.0} if infer else {}
    return HeardChunk(stamp_ns, stamp_ns + AGE_NS, "go", ids, None if action is None else np.array(action), fault, stage_ms)


def found(*heard: HeardChunk) -> Agreement:
    return agree(offline(), heard, (), Tolerance())


def test_live_answers_that_agree_and_frames_that_were_skipped() -> None:
    agreement = found(chunk(0), chunk(2), chunk(4), chunk(4, (), None, "policy deactivated", infer=False))
    assert agreement.good and agreement.words == "" and (agreement.frames, agreement.compared, agreement.skipped) == (5, 3, (1, 3))
    assert agreement.stops == {"policy deactivated": 1} and agreement.stage_ms == {"vision": 5.0}
    assert agreement.age_ms is not None and agreement.age_ms.median == agreement.age_ms.max == 80.0
    assert agreement.as_json()["agrees"] is True and agreement.as_json()["clock"] is None


def test_an_answer_that_came_before_the_clock_has_no_age() -> None:
    early = dataclasses.replace(chunk(0), arrived_ns=None)
    assert found(early).good and found(early).age_ms is None
    both = found(early, chunk(1))
    assert both.age_ms is not None and both.age_ms.median == 80.0


def test_what_does_not_agree_is_said() -> None:
    apart = found(chunk(0), chunk(1, (1, 9, *IDS[2:]), ACTION + 0.001))
    assert not apart.good and [one.index for one in apart.differences] == [1] and "1 of 2 live answers differ" in apart.words
    flip = found(chunk(1, (9, *IDS[1:]), ACTION + 0.001))
    assert flip.good and flip.flips == (1,)
    strange = found(chunk(0), chunk(0, stamp_ns=77))
    assert not strange.good and strange.unknown == (77,) and "a stamp that no frame has (the first: 77)" in strange.words
    again = found(chunk(3), chunk(3))
    assert not again.good and again.twice == (3,) and "answered more than once" in again.words
    fault = found(chunk(0, (), None, "early end"))
    assert not fault.good and "early end" in fault.differences[0].detail
    nothing = found(chunk(0, (), None, "no instruction", infer=False))
    assert not nothing.good and "Look at their logs" in nothing.words and nothing.skipped == (0, 1, 2, 3, 4)


def test_too_many_flips_do_not_agree() -> None:
    def flip(index: int) -> HeardChunk:
        return chunk(index, (9, *IDS[1:]), ACTION + 0.001)

    assert found(flip(0), chunk(1), chunk(2)).good
    many = found(flip(0), flip(1), chunk(2))
    assert not many.good and many.flips == (0, 1) and "2 of 3 frames flipped" in many.words
    assert agree(offline(), [flip(0), flip(1), chunk(2)], (), Tolerance(flips=0.7)).good


def test_a_few_answers_say_nothing_of_a_long_recording() -> None:
    few = agree(offline(30), [chunk(0), chunk(1)], (), Tolerance())
    assert not few.good and not few.differences and "only 2 of 30 frames were answered live, expected at least 10%" in few.words
    enough = agree(offline(30), [chunk(0), chunk(1), chunk(2)], (), Tolerance())
    assert enough.good and enough.words == ""


@pytest.mark.parametrize(("rate", "wanted", "drift_ppm"), [(1.0, 1.0, 0.0), (1.0001, 1.0, 100.0), (2.0, 2.0, 0.0), (1.0, 2.0, -500_000.0)])
def test_the_clock_is_a_straight_line_through_its_ticks(rate: float, wanted: float, drift_ppm: float) -> None:
    late_ns = np.random.default_rng(3).exponential(1e6, 300).astype(int)  # callbacks come late, never early
    ticks = [Tick(int(k * 1e7 * rate), int(k * 1e7) + int(late)) for k, late in enumerate(late_ns)]
    clock = played_clock(ticks, wanted)
    assert clock is not None and clock.rate == pytest.approx(rate, rel=2e-4)
    assert clock.drift_ppm == pytest.approx(drift_ppm, abs=200) and 0.1 < clock.jitter_ms.p99 < 20.0
    assert played_clock(ticks[:5]) is None
