"""Where the ids for acceptance come from: episodes end where they end, and the numbers are those of the recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openvla_ros.bags.frames import Frame
from openvla_ros.benchmark.sequences import bridge_coding, closed_loop, demonstrated_ids, recorded_ids, split_episodes, to_array
from openvla_ros.policy.catalogue import DEFAULT, PolicySettings, read_profile
from openvla_ros.policy.openvla.loading import load_openvla


def frame(stamp_ns: int, instruction: str = "go") -> Frame:
    return Frame(0, stamp_ns, stamp_ns, instruction, None, False, None)


def test_an_episode_ends_with_its_instruction_and_where_time_jumps() -> None:
    step = 200_000_000
    shown = [(frame(0), (1, 2)), (frame(step), (1, 3)), (frame(2 * step, "stop"), (4, 4)), (frame(10 * step, "stop"), (5, 5)),
             (frame(9 * step, "stop"), (6, 6))]
    assert [episode.tolist() for episode in split_episodes(shown)] == [[[1, 2], [1, 3]], [[4, 4]], [[5, 5]], [[6, 6]]]


def test_an_answer_that_ended_early_ends_the_episode() -> None:
    assert to_array([(1, 2), (3, 4), (5,), (6, 7)]).tolist() == [[1, 2], [3, 4]]


def test_the_shipped_policy_in_closed_loop() -> None:
    pytest.importorskip("mujoco")
    from openvla_ros.ros.profile import read_robot

    policy, seen = load_openvla(read_profile(DEFAULT)), list[int]()
    driven = closed_loop(policy, read_robot("wx250s_sim").limits, "reach", range(1000, 1002), lambda done, total: seen.append(done))
    assert driven.successes == 2 and seen == [1, 2] and len(driven.ids) == 2
    assert len(driven.passes) == sum(len(ids) - 1 for ids in driven.ids)
    assert all(1 <= passes <= 7 for passes in driven.passes) and np.mean(driven.passes) < 5.0
    assert all(ids.shape[1] == 7 and (ids >= policy.tokens.first_id).all() for ids in driven.ids)


@pytest.mark.shared
def test_recorded_actions_are_coded_as_the_model_says_them(shared: Path) -> None:
    tokens, statistics = bridge_coding()
    episodes = demonstrated_ids(shared / "data" / "bags" / "bridge_octo_debug_64px", tokens, statistics)
    assert len(episodes) == 18 and {len(episode) for episode in episodes} == {10}
    recorded = np.load(shared / "data" / "bridge_octo_debug_64px.npz")["action7"]
    decoded = np.array([[statistics.to_metric(tokens.decode(row)) for row in episode] for episode in episodes])
    expected = np.concatenate([np.clip(recorded[..., :6], statistics.q01[:6], statistics.q99[:6]), recorded[..., 6:]], axis=2)
    half_bins = np.append((np.asarray(statistics.q99) - np.asarray(statistics.q01))[:6] / 255.0, 2.0 / 255.0)
    assert (np.abs(decoded - expected) <= half_bins + 1e-6).all()


@pytest.mark.shared
def test_a_checkpoint_on_a_recording(shared: Path) -> None:
    policy = load_openvla(PolicySettings(str(shared / "golden" / "tiny_fused" / "checkpoint"), "bridge_orig", device="cpu"))
    episodes = recorded_ids(policy, shared / "data" / "bags" / "bridge_v2_pot_640x480_raw")
    assert [episode.shape for episode in episodes] == [(24, 7)]
