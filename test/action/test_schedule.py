"""When a step is played, and that the arm covers exactly the delta. Numbers, no sleeping."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

DELTA_M, STEP_S = 0.04, 0.2
SPEED_M_S = DELTA_M / STEP_S


@pytest.mark.parametrize("chunks_per_s", [2, 5, 6, 50])
@pytest.mark.parametrize("preempt", [False, True])
def test_displacement_per_second_never_exceeds_delta_over_step(bench, chunks_per_s: int, preempt: bool) -> None:
    arm = bench(preempt=preempt).resume()
    for k in range(4 * chunks_per_s):
        arm.at(0.013 + k / chunks_per_s, arm.chunk([DELTA_M], observed_s=k / chunks_per_s))
    arm.run(4.0)
    assert arm.speeds().max() <= SPEED_M_S + 1e-12
    path, ticks_per_s = arm.path()[:, 0], 30
    in_any_second = path[ticks_per_s:] - path[:-ticks_per_s]
    assert in_any_second.max() <= SPEED_M_S * 1.0 + 1e-9
    if chunks_per_s >= 5:  # and it is no slower than that either, once it moves
        assert in_any_second[2:].min() >= SPEED_M_S * 1.0 - 1e-8
    else:
        assert in_any_second[2:].max() <= chunks_per_s * DELTA_M + 1e-12


@pytest.mark.parametrize(("chunks_per_s", "steps"), [(2, 8), (5, 20), (6, 20), (50, 20)])
def test_a_new_chunk_waits_for_the_boundary_and_the_newest_wins(bench, chunks_per_s: int, steps: int) -> None:
    arm = bench(rate_hz=25.0).resume()
    for k in range(4 * chunks_per_s):
        arm.at(k / chunks_per_s, arm.chunk([DELTA_M], observed_s=k / chunks_per_s, sequence=k + 1))
    arm.run(4.0)
    started = [(time_ns, d.step.identity.sequence) for time_ns, d in arm.log if d.step_started]
    assert len(started) == steps
    assert all(later - earlier >= 200_000_000 for (earlier, _), (later, _) in itertools.pairwise(started))
    for start_ns, sequence in started[1:]:
        newest = 1 + start_ns * chunks_per_s // 1_000_000_000
        assert sequence in (newest, newest - 1)  # of two that come in the very tick, the schedule saw the later one


@pytest.mark.parametrize("rate_hz", [20.0, 25.0, 30.0, 47.0, 100.0, 200.0])
def test_the_integral_of_the_twists_is_the_delta(bench, rate_hz: float) -> None:
    arm = bench(rate_hz=rate_hz, max_observation_age_s=5.0).resume()
    step = [0.01, -0.02, 0.03, 0.05, -0.06, 0.07]
    arm.at(0.1, arm.chunk(step, step, step, observed_s=0.05))
    arm.run(1.2)
    turn = Rotation.from_euler("xyz", step[3:]).as_rotvec()
    assert np.abs(arm.path()[-1] - 3 * np.array([*step[:3], *turn])).max() < 1e-12


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("seed", range(5))
def test_jittered_ticks_cost_at_most_speed_times_jitter(bench, steps: int, seed: int) -> None:
    """However many steps follow one another: only where motion ends can a tick be held too long or too briefly."""
    jitter_ns = 2_000_000
    draw = np.random.default_rng(seed)
    arm = bench(max_observation_age_s=5.0).resume()
    arm.at(0.1, arm.chunk(*[[DELTA_M]] * steps, observed_s=0.05))
    arm.run(0.1 + STEP_S * steps + 0.3, jitter=lambda: int(draw.integers(-jitter_ns, jitter_ns)))
    error_m = abs(arm.path()[-1, 0] - steps * DELTA_M)
    assert error_m <= SPEED_M_S * 2 * jitter_ns / 1e9
    assert arm.speeds().max() <= SPEED_M_S + 1e-12


def test_steps_of_a_chunk_follow_one_another_until_a_newer_chunk_comes(bench) -> None:
    arm = bench(rate_hz=25.0).resume()
    arm.at(0.0, arm.chunk([0.01], [0.02], [0.03], observed_s=0.0))
    arm.at(0.25, arm.chunk([-0.01], observed_s=0.2))
    arm.run(0.8)
    assert [d.step.requested.translation_m[0] for _, d in arm.log if d.step_started] == [0.01, 0.02, -0.01]
    assert arm.starts() == [0.0, 0.2, 0.4]
    assert arm.path()[-1, 0] == pytest.approx(0.02, abs=1e-12)  # the third step was never played


def test_preempt_keeps_only_the_executed_fraction(bench) -> None:
    arm = bench(rate_hz=25.0, preempt=True).resume()
    arm.at(0.0, arm.chunk([0.04], observed_s=0.0))
    arm.at(0.08, arm.chunk([0.0, 0.04], observed_s=0.05))
    arm.run(0.6)
    assert arm.path()[-1, :2] == pytest.approx([0.04 * 0.08 / 0.2, 0.04], abs=1e-12)


def test_a_stall_shortens_no_step(bench) -> None:
    """The second step starts when ticks come back, not in the past."""
    arm = bench(rate_hz=25.0, max_observation_age_s=2.0).resume()
    arm.at(0.0, arm.chunk([0.01], [0.04], observed_s=0.0))
    arm.run(0.16)
    arm.time_ns += 500_000_000
    before = len(arm.log)
    arm.run(1.2)
    assert arm.path()[-1, 0] - arm.path()[before, 0] == pytest.approx(0.04, abs=1e-12)


def test_a_chunk_that_comes_while_nothing_plays_starts_at_the_next_tick(bench) -> None:
    arm = bench().resume()
    arm.at(0.1001, arm.chunk([0.01], observed_s=0.05))
    arm.run(0.3)
    assert arm.starts() == [pytest.approx(0.4 / 3, abs=1e-6)]
