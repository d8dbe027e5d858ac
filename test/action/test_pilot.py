"""The pilot in simulated time: who may move the arm, when it stops and how, and what it says about it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from openvla_ros.action.handoff import Driver
from openvla_ros.action.pilot import Inputs, Now, Pilot, Settings
from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, ReceivedChunk
from openvla_ros.errors import ConfigurationError, HandoffRefused

STEP = [0.05]  # full speed: 0.25 m/s
TICK_S, RAMP_S = 1 / 30, 0.25 / 2.5


def silence(arm) -> list[bool]:
    return [decision.twist is None for _, decision in arm.log]


def moving(arm):
    """Bring an arm to full speed in the middle of a long chunk."""
    arm.resume()
    arm.at(0.0, arm.chunk(*[STEP] * 5, observed_s=0.0))
    arm.run(0.15)
    assert arm.speeds()[-1] == pytest.approx(0.25)
    return arm


# ---------------------------------------------------------------------- start, choice, silence


def test_says_nothing_until_a_driver_was_chosen(bench) -> None:
    arm = bench()
    arm.at(0.1, arm.chunk(STEP, observed_s=0.05))
    arm.run(0.5)
    assert all(silence(arm)) and arm.pilot.driver is Driver.HOLD
    assert arm.log[-1][1].stop_reason == "no driver was chosen yet"
    arm.pilot.hold()
    arm.run(1.0)
    assert all(silence(arm))


def test_policy_starts_only_with_a_chunk_that_was_observed_after_the_choice(bench) -> None:
    arm = bench().run(1.0).resume()
    arm.at(1.1, arm.chunk(STEP, observed_s=0.95))
    arm.run(1.2)
    assert all(silence(arm)) and arm.pilot.counts["before_switch"] == 1
    assert "before POLICY was chosen" in arm.pilot.stop_reason
    arm.at(1.2, arm.chunk(STEP, observed_s=1.04))
    arm.run(1.3)
    assert arm.speeds()[-1] == pytest.approx(0.25) and arm.pilot.stop_reason == ""


def test_an_obstacle_keeps_policy_out_and_drives_it_out(bench) -> None:
    arm = bench()
    with pytest.raises(HandoffRefused, match="another publisher: /rival"):
        arm.pilot.resume(arm.now, {"arm_topic": "another publisher: /rival"})
    assert arm.pilot.driver is Driver.HOLD
    moving(arm)
    decision = arm.tick({"arm_topic": "another publisher: /rival"})
    assert decision.driver is Driver.HOLD and arm.pilot.fell and arm.pilot.counts["arm_topic"] == 1
    assert decision.stop_reason == "another publisher: /rival" and decision.refused == ("arm_topic",)


def test_leaving_policy_ramps_then_zeros_for_half_a_second_then_silence(bench) -> None:
    arm = moving(bench())
    left_s = arm.time_ns / 1e9
    arm.pilot.hold()
    before = len(arm.log)
    arm.run(2.0)
    speeds, times = arm.speeds()[before:], arm.times_s()[before:]
    assert speeds[:3] == pytest.approx([0.25 - 2.5 / 30, 0.25 - 5 / 30, 0.0], abs=1e-7)
    assert not speeds[2:].any()
    spoken = times[[not quiet for quiet in silence(arm)[before:]]]
    assert spoken[-1] - (left_s + 2 * TICK_S) == pytest.approx(0.5, abs=TICK_S + 1e-6)
    assert not arm.pilot.fell and arm.pilot.stop_reason == "HOLD was chosen"


# ---------------------------------------------------------------------- age and stop time


@pytest.mark.parametrize("offset_ms", range(0, 34, 3))
@pytest.mark.parametrize("max_age_s", [0.3, 0.6])
def test_stop_time_from_the_observation_stamp(bench, offset_ms: int, max_age_s: float) -> None:
    """max_observation_age_s + one tick until it slows down, and the ramp until it stands; wherever the ticks fall."""
    arm = bench(max_observation_age_s=max_age_s, resume_within_s=1.0).resume()
    observed_s = 0.1 + offset_ms / 1000
    arm.at(observed_s + 0.15, arm.chunk(*[STEP] * 10, observed_s=observed_s))
    arm.run(3.0)
    speeds, ages = arm.speeds(), arm.times_s() - observed_s
    assert speeds[ages <= max_age_s].max() == pytest.approx(0.25)
    assert speeds[ages >= max_age_s + TICK_S].max() < 0.25 - 2.5 * TICK_S + 1e-6
    assert not speeds[ages >= max_age_s + TICK_S + RAMP_S - 1e-6].any()
    spoken = ages[[not quiet for quiet in silence(arm)]]
    assert max_age_s + RAMP_S + 0.5 - 2 * TICK_S < spoken[-1] < max_age_s + RAMP_S + 0.5 + TICK_S
    assert arm.pilot.counts["age"] == 1


def test_between_steps_zeros_until_the_age_then_half_a_second_then_silence_then_hold(bench) -> None:
    arm = bench().resume()
    arm.at(0.1, arm.chunk(STEP, observed_s=0.05))
    arm.run(3.0)
    times, drivers = arm.times_s(), [decision.driver for _, decision in arm.log]
    moved, spoken = times[arm.speeds() > 0], times[[not quiet for quiet in silence(arm)]]
    assert moved[-1] < 0.1 + TICK_S + 0.2
    assert spoken[-1] == pytest.approx(0.05 + 0.6 + 0.5, abs=TICK_S)
    assert len(spoken) == round((spoken[-1] - spoken[0]) * 30) + 1  # without a gap
    fell_s = times[next(i for i, driver in enumerate(drivers) if driver is Driver.HOLD)]
    assert 0.05 + 0.6 + 1.0 < fell_s <= 0.05 + 0.6 + 1.0 + TICK_S + 1e-9
    assert arm.pilot.fell and "choose POLICY again" in arm.pilot.stop_reason
    reasons = list(dict.fromkeys(decision.stop_reason for _, decision in arm.log))
    assert reasons[1:4] == ["", "waiting for the next chunk", "the newest observation is older than 0.6 s"]


def test_a_fresh_chunk_soon_after_expiry_goes_on(bench) -> None:
    arm = bench().resume()
    arm.at(0.1, arm.chunk(STEP, observed_s=0.05))
    arm.at(1.5, arm.chunk(STEP, observed_s=1.4))
    arm.run(1.6)
    assert arm.pilot.driver is Driver.POLICY and arm.speeds()[-1] == pytest.approx(0.25)


def test_a_fresh_chunk_that_waits_takes_over_from_one_that_expires(bench) -> None:
    arm = bench(max_observation_age_s=0.3).resume()
    arm.at(0.1, arm.chunk([0.05], observed_s=0.05, step_s=0.5))
    arm.at(0.25, arm.chunk([-0.02], observed_s=0.2))
    arm.run(0.4)
    assert arm.log[-1][1].step.requested.translation_m[0] == -0.02
    assert arm.pilot.counts["age"] == 1 and arm.starts()[1] == pytest.approx(0.35, abs=TICK_S + 1e-6)


def test_the_last_moment_of_an_old_step_does_not_stop_the_fresh_one_behind_it(bench) -> None:
    """A tick that comes early meets 5 ms of a step that is too old by now; the next one has been decided already."""
    arm = bench(max_observation_age_s=0.61, rate_hz=25.0).resume()
    arm.at(0.0, arm.chunk([0.05], observed_s=0.0, step_s=0.62))
    arm.at(0.5, arm.chunk([-0.02], observed_s=0.45))
    arm.run(0.62)
    arm.time_ns = 615_000_000
    arm.run(0.7)
    assert arm.pilot.counts["steps"] == 2 and arm.pilot.counts["age"] == 0 and arm.pilot.stop_reason == ""
    assert arm.speeds()[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(("observed_s", "rule", "words"), [
    (-0.5, "before_switch", "before POLICY"), (0.35, "age", "raise max_observation_age_s"), (1.06, "age", "future.*chrony")])
def test_chunks_at_the_wrong_time_are_dropped_and_counted(bench, observed_s: float, rule: str, words: str) -> None:
    arm = bench().resume()
    arm.at(1.0, arm.chunk(STEP, observed_s=observed_s))
    arm.run(1.1)
    assert all(silence(arm)) and arm.pilot.counts[rule] == 1
    assert re.search(words, arm.pilot.stop_reason)


def test_a_zero_stamp_is_refused(bench) -> None:
    arm = bench().resume()
    arm.at(0.1, arm.chunk(STEP, observed_s=-1_700_000_000))
    arm.run(0.2)
    assert all(silence(arm)) and arm.pilot.counts["stamp"] == 1 and "zero" in arm.pilot.stop_reason


# ---------------------------------------------------------------------- order and identity


@pytest.mark.parametrize("identity", [{"sequence": 10}, {"sequence": 9}, {"generation": 3, "sequence": 11}])
def test_a_chunk_out_of_order_is_dropped_and_what_plays_goes_on(bench, identity: dict[str, int]) -> None:
    arm = bench().resume()
    arm.at(0.0, arm.chunk(STEP, observed_s=0.0, generation=4, sequence=10))
    arm.at(0.1, arm.chunk([-0.05], observed_s=0.05, **{"generation": 4, **identity}))
    arm.run(0.3)
    assert arm.pilot.counts["order"] == 1 and arm.pilot.counts["steps"] == 1
    assert arm.path()[-1, 0] == pytest.approx(0.05)
    assert any(decision.rules == ("order",) for _, decision in arm.log)


def test_an_observation_that_goes_back_is_dropped(bench) -> None:
    arm = bench().resume()
    arm.at(0.1, arm.chunk(STEP, observed_s=0.05))
    arm.at(0.2, arm.chunk(STEP, observed_s=0.04))
    arm.run(0.6)
    assert arm.pilot.counts["order"] == 1 and arm.pilot.counts["steps"] == 1


def test_order_is_kept_across_a_hold(bench) -> None:
    arm = bench().resume()
    arm.at(0.1, arm.chunk(STEP, observed_s=0.05, sequence=5))
    arm.run(0.5)
    arm.pilot.hold()
    arm.at(0.6, arm.chunk(STEP, observed_s=0.55, sequence=9))  # heard while nobody drives
    arm.run(1.0)
    arm.resume()
    arm.at(1.1, arm.chunk(STEP, observed_s=1.05, sequence=8))
    arm.run(1.2)
    assert arm.pilot.counts["order"] == 1 and arm.pilot.counts["steps"] == 1


def test_a_new_session_puts_policy_into_hold_until_it_is_chosen_again(bench) -> None:
    arm = moving(bench())
    arm.at(0.15, arm.chunk(STEP, observed_s=0.1, session=8))
    arm.run(0.2)
    assert arm.pilot.driver is Driver.HOLD and arm.pilot.fell and arm.pilot.counts["session"] == 1
    assert "another start of the policy" in arm.pilot.stop_reason
    arm.run(1.0).resume()
    arm.at(1.1, arm.chunk(STEP, observed_s=1.05, session=8))
    arm.run(1.2)
    assert arm.speeds()[-1] == pytest.approx(0.25)


# ---------------------------------------------------------------------- stops


def test_zero_steps_stop_now_and_the_policy_may_go_on_later(bench) -> None:
    arm = moving(bench())
    arm.at(0.16, arm.chunk(observed_s=0.1, fault="instruction cleared"))
    before = len(arm.log)
    arm.run(3.0)
    assert arm.speeds()[before:before + 4] == pytest.approx([0.25 - 2.5 / 30, 0.25 - 5 / 30, 0, 0], abs=1e-7)
    assert not arm.speeds()[before + 2:].any()
    assert silence(arm)[-1] and arm.pilot.driver is Driver.POLICY
    assert arm.pilot.stop_reason == "the policy stopped the arm: instruction cleared"
    arm.at(3.0, arm.chunk(STEP, observed_s=2.95))
    arm.run(3.1)
    assert arm.speeds()[-1] == pytest.approx(0.25)


def test_a_stop_is_obeyed_in_any_order(bench) -> None:
    arm = moving(bench())
    arm.at(0.15, arm.chunk(observed_s=-9.0, sequence=0))
    arm.run(0.4)
    assert not arm.speeds()[-1] and "no reason given" in arm.pilot.stop_reason


@pytest.mark.parametrize(("change", "rule"), [
    ({"frame_id": "world"}, "frame"), ({"step_s": 0.1}, "step_duration"), ({"value": math.nan}, "finite"),
    ({"value": math.inf}, "finite"), ({"count": 257}, "step_count")])
def test_a_chunk_that_is_wrong_stops_the_arm_and_says_why(bench, change: dict[str, object], rule: str) -> None:
    arm = moving(bench())
    steps = [[change.pop("value", 0.01)]] * change.pop("count", 1)
    arm.at(0.16, arm.chunk(*steps, observed_s=0.1, **change))
    arm.run(0.4)
    assert not arm.speeds()[-1] and arm.pilot.counts[rule] == 1 and arm.pilot.counts["steps"] == 1
    assert [decision.refused for _, decision in arm.log if decision.refused] == [(rule,)]
    assert arm.pilot.stop_reason and arm.pilot.driver is Driver.POLICY
    arm.run(1.8)
    assert arm.pilot.driver is Driver.HOLD  # nothing good came after it


def test_malformed_stops_too(bench) -> None:
    arm = moving(bench())
    arm.pilot.malformed("chunk has step_s 0.0")
    arm.run(0.4)
    assert not arm.speeds()[-1] and arm.pilot.counts["malformed"] == 1 and "step_s 0.0" in arm.pilot.stop_reason


def test_emergency_stop_has_no_ramp_latches_and_reset_moves_nothing(bench) -> None:
    arm = moving(bench())
    arm.pilot.emergency_stop("button")
    stopped_s, before = arm.time_ns / 1e9, len(arm.log)
    arm.at(0.3, arm.chunk(STEP, observed_s=0.25))
    arm.run(2.0)
    assert not arm.speeds()[before:].any()
    spoken = arm.times_s()[[not quiet for quiet in silence(arm)]]
    assert spoken[-1] - stopped_s == pytest.approx(0.5, abs=TICK_S)
    for forbidden in (arm.pilot.hold, lambda: arm.pilot.resume(arm.now)):
        with pytest.raises(HandoffRefused, match="reset_stop"):
            forbidden()
    with pytest.raises(HandoffRefused, match="Publish false"):
        arm.pilot.reset(request_held=True)
    assert arm.pilot.driver is Driver.STOPPED and arm.pilot.stop_reason == "button"
    arm.pilot.reset(request_held=False)
    before = len(arm.log)
    arm.run(2.5)
    assert arm.pilot.driver is Driver.HOLD and all(silence(arm)[before:])
    with pytest.raises(HandoffRefused, match="nothing to reset"):
        arm.pilot.reset(request_held=False)


def test_emergency_stop_speaks_even_before_the_first_choice(bench) -> None:
    arm = bench()
    arm.pilot.emergency_stop("button")
    arm.run(1.0)
    assert arm.log[0][1].twist is not None and not arm.speeds().any() and silence(arm)[-1]


# ---------------------------------------------------------------------- clocks


def test_a_ros_clock_that_jumps_back_stops_without_a_ramp(bench) -> None:
    arm = moving(bench())
    arm.ros_offset_ns -= 50_000_000
    decision = arm.tick()
    assert decision.driver is Driver.HOLD and decision.twist is not None and not decision.twist.moving
    assert "jumped back by 0.0" in decision.stop_reason and arm.pilot.counts["clock"] == 1


def test_a_ros_clock_that_jumps_ahead_makes_the_observation_old(bench) -> None:
    arm = moving(bench())
    arm.ros_offset_ns += 3_600_000_000_000
    arm.run(0.5)
    assert arm.pilot.driver is Driver.HOLD and not arm.speeds()[-1]


def test_simulated_time_that_is_rewound_leaves_no_long_tail(bench) -> None:
    """Tick clock and ROS clock are the same then; zeros still end half a second later."""
    arm = bench()
    pilot, step_ns = arm.pilot, arm.period_ns
    pilot.resume(Now(10**11, 10**11))
    chunk = ReceivedChunk(ActionChunk((Action.from_vector([0.05, 0, 0, 0, 0, 0, 1]),), 0.2, 10**11), ChunkIdentity(1, 1, 1),
                          "arm/base_link")
    assert pilot.step(Now(10**11 + step_ns, 10**11 + step_ns), None, Inputs([chunk])).twist.moving
    twists = [pilot.step(Now(10**9 + k * step_ns, 10**9 + k * step_ns)).twist for k in range(40)]
    assert not any(twist.moving for twist in twists if twist)
    assert [twist is not None for twist in twists] == [k * step_ns < 500_000_000 for k in range(40)]
    assert pilot.driver is Driver.HOLD


def test_halt_while_the_clock_stands_still(bench) -> None:
    arm = moving(bench())
    arm.pilot.halt("clock stands still")
    decisions = [arm.tick() for _ in range(3)]
    assert all(decision.twist is not None and not decision.twist.moving for decision in decisions)
    assert arm.pilot.driver is Driver.HOLD and arm.pilot.counts["clock"] == 1
    arm.pilot.halt("clock stands still")
    assert arm.pilot.counts["clock"] == 1


# ---------------------------------------------------------------------- scale, clamp, settings


def test_scale_comes_before_the_chain_and_leaves_the_gripper(bench) -> None:
    arm = bench(action_scale=0.1, rate_hz=25.0).resume()
    arm.at(0.0, arm.chunk([0.1, 0, 0, 0, 0, -0.2], observed_s=0.0))
    arm.run(0.5)
    step = arm.log[0][1].step
    assert step.requested.to_vector() == pytest.approx([0.1, 0, 0, 0, 0, -0.2, 1.0])
    assert step.sent.to_vector() == pytest.approx([0.01, 0, 0, 0, 0, -0.02, 1.0]) and step.rules == ()
    assert arm.path()[-1] == pytest.approx([0.01, 0, 0, 0, 0, -0.02], abs=1e-12)


def test_a_clamped_step_names_its_rules_and_is_counted_once(bench) -> None:
    arm = bench().resume()
    arm.at(0.0, arm.chunk([0.3, 0.4, 0, 1.0, 0, 0, 1.5], observed_s=0.0))
    arm.run(0.3)
    decision = arm.log[0][1]
    assert decision.rules == ("step_clamp_translation", "step_clamp_rotation", "gripper")
    assert decision.step.sent.to_vector() == pytest.approx([0.03, 0.04, 0, 0.25, 0, 0, 1.0])
    assert [arm.pilot.counts[rule] for rule in decision.rules] == [1, 1, 1]


def test_settings_change_only_while_nothing_drives(bench) -> None:
    arm = bench()
    arm.pilot.configure(Settings(action_scale=0.5))
    with pytest.raises(ConfigurationError, match=r"rate_hz 4 is too low.*at least 5 Hz"):
        arm.pilot.configure(Settings(rate_hz=4.0))
    arm.resume()
    with pytest.raises(ConfigurationError, match="HOLD or STOPPED"):
        arm.pilot.configure(Settings())


# ---------------------------------------------------------------------- any input, and real episodes

ANY = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
CHUNKS = st.tuples(st.lists(st.lists(ANY, min_size=7, max_size=7), max_size=2), st.floats(0.01, 1.0), st.integers(-900, 300),
                   st.integers(1, 2), st.integers(0, 3))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), CHUNKS), min_size=1, max_size=25), st.booleans())
def test_whatever_comes_the_arm_gets_finite_twists_inside_its_speeds(bench, inputs: list[object], preempt: bool) -> None:
    pilot, now_ns = Pilot(bench().profile, Settings(preempt=preempt)), 10**12
    pilot.resume(Now(now_ns, now_ns))
    for sequence, item in enumerate(inputs):
        now_ns += 33_333_333
        chunks = []
        if item is not None:
            steps, step_s, age_ms, session, back = item  # type: ignore[misc]
            chunks = [ReceivedChunk(ActionChunk(tuple(map(Action.from_vector, steps)), step_s, now_ns + age_ms * 1_000_000),
                                    ChunkIdentity(session, 1, max(0, 2 * sequence - back)), "arm/base_link")]
        decision = pilot.step(Now(now_ns, now_ns), None, Inputs(chunks))
        if decision.twist is None:
            continue
        linear, angular = decision.twist.linear_m_s, decision.twist.angular_rad_s
        assert np.isfinite(linear).all() and np.isfinite(angular).all()
        assert math.hypot(*linear) <= 0.25 * (1 + 1e-9) and math.hypot(*angular) <= 1.25 * (1 + 1e-9)


@pytest.mark.shared
@pytest.mark.parametrize("episode", ["bridge_v2_broccoli_640x480", "bridge_v2_cloth_640x480_db3", "bridge_v2_pot_640x480_raw"])
@pytest.mark.parametrize("rate_hz", [25.0, 30.0])
def test_bridge_episodes_chain_to_the_recorded_poses(bench, shared: Path, episode: str, rate_hz: float) -> None:
    """One chunk per 0.2 s: positions to 1e-5 m. The labels are Euler differences, so orientations only to about 0.05 rad."""
    record = json.loads((shared / "data" / "bags" / episode / "episode.json").read_text())
    poses, actions = np.array(record["ee_xyz_rpy"]), np.array(record["action7"])
    arm = bench(rate_hz=rate_hz).resume()
    for k, action in enumerate(actions):
        arm.at(0.2 * k, arm.chunk(action.tolist(), observed_s=max(0.0, 0.2 * k - 0.1)))
    arm.run(0.2 * len(actions) + 0.3)
    clamped = arm.pilot.counts["step_clamp_translation"] + arm.pilot.counts["step_clamp_rotation"]
    assert arm.pilot.counts["steps"] == len(actions) and clamped == 0
    path, starts_s = arm.path(), arm.starts()
    edges_s = np.append(arm.times_s(), arm.time_ns / 1e9)
    ends = np.array([np.interp([start + 0.2 for start in starts_s], edges_s, path[:, axis]) for axis in range(6)]).T
    assert np.abs(ends[:, :3] - (poses[1:, :3] - poses[0, :3])).max() < (1e-5 if rate_hz == 25.0 else 2e-5)
    assert np.abs(path[-1, :3] - (poses[-1, :3] - poses[0, :3])).max() < 1e-5
    orientation = Rotation.from_euler("xyz", poses[0, 3:])
    worst_rad = 0.0
    for action, pose in zip(actions, poses[1:], strict=True):
        orientation = Rotation.from_euler("xyz", action[3:6]) * orientation
        worst_rad = max(worst_rad, (orientation * Rotation.from_euler("xyz", pose[3:]).inv()).magnitude())
    assert 1e-4 < worst_rad < 0.06
