"""The real-time benchmark: real nodes, and numbers that hold together. No duration is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from openvla_ros.benchmark import decoding, jitter, nodes, overhead
from openvla_ros.benchmark.overhead import Answer
from openvla_ros.benchmark.spread import Spread, spread
from openvla_ros.errors import BagError, ConfigurationError, DependencyMissing

MS = 1_000_000


def holds_together(row: Spread, count: int) -> bool:
    return row.count == count and 0.0 <= row.median <= row.p99 <= row.largest < math.inf


def test_spread_of_known_values() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(3, 2.0, pytest.approx(2.98), 3.0)
    assert spread([]).count == 0 and math.isnan(spread([]).median)


def test_overhead_is_what_the_stages_do_not_name() -> None:
    def answer(stamp_ms: int, sent_ms: int, fault: str = "", **stage_ms: float) -> Answer:
        return Answer(stamp_ms * MS, sent_ms * MS, (sent_ms + 1) * MS, stage_ms, fault)

    answers = [answer(100, 130, image=2.0, preprocess=3.0, vision=10.0, decode=11.0),  # before the window
               answer(200, 230, image=2.0, preprocess=3.0, vision=10.0, decode=11.0),
               answer(229, 260, image=2.0, preprocess=3.0, vision=10.0, decode=11.0),  # it waited for the one before
               answer(300, 301, fault="out of memory", image=2.0),
               answer(320, 320),  # a word of the node: no inference ran
               answer(400, 428, image=2.0, preprocess=3.0, vision=10.0, decode=11.0),
               answer(500, 530, image=2.0)]
    times = overhead.evaluate(answers, 150 * MS, 500 * MS)
    assert (times.answered, times.waited) == (3, 1)
    assert times.overhead_ms == spread([31.0 - 26.0, 29.0 - 26.0])
    assert times.with_image_ms == spread([31.0 - 21.0, 29.0 - 21.0])
    assert times.to_sent_ms == spread([30.0 - 26.0, 28.0 - 26.0])
    assert times.image_ms == spread([5.0, 5.0]) and times.model_ms == spread([21.0, 21.0])


def test_a_tick_is_late_by_what_its_interval_exceeds_the_period() -> None:
    assert jitter.lateness_ms([0, 20 * MS, 45 * MS, 60 * MS], 50.0) == pytest.approx([0.0, 5.0, 0.0])


@pytest.mark.ros
@pytest.mark.parametrize(("transport", "reliability", "fastdds"), [("raw", "reliable", True), ("compressed", "best_effort", False)])
def test_overhead_through_the_real_node(transport: str, reliability: str, fastdds: bool) -> None:
    before = dict(os.environ)
    said: list[str] = []
    row = overhead.measure_overhead(transport, seconds=1.5, warm_s=0.5, rate_hz=5.0, reliability=reliability, fastdds=fastdds,
                                    report=said.append)
    assert dict(os.environ) == before, "the environment is what it was"
    times = row.times
    assert times.answered and times.answered >= times.waited
    for part in (times.overhead_ms, times.with_image_ms, times.to_sent_ms, times.image_ms, times.model_ms):
        assert part.count == times.answered - times.waited
        assert not part.count or holds_together(part, part.count)
    assert (row.transport, row.reliability, bool(row.profile)) == (transport, reliability, fastdds)
    assert row.threads == max(1, row.cores - 1) and int(row.nice) >= 10
    assert row.goal_ms == (overhead.GOAL_MS if row.cores > 1 else None)
    assert said and json.loads(json.dumps(asdict(row)))["transport"] == transport


@pytest.mark.ros
def test_jitter_of_the_real_node_under_each_load() -> None:
    rows = jitter.measure_jitter(seconds=1.0, realtime_priority=0)
    assert [row.load for row in rows] == ["idle", "policy", "saturated"]
    for row in rows:
        assert row.scheduling == "normal" and row.ticks > 1 and holds_together(row.late_ms, row.ticks - 1)
        assert row.goal_ms == jitter.GOALS_MS[row.load]
    idle, policy, saturated = rows
    assert policy.policy_threads == max(1, policy.cores - 1) and int(policy.policy_nice or 0) >= 10
    assert policy.inferences is not None and idle.inferences is saturated.inferences is None
    assert json.loads(json.dumps([asdict(row) for row in rows]))[0]["load"] == "idle"


def test_decoding_of_a_drawn_recording() -> None:
    inline, ahead = decoding.measure_decoding(seconds=0.1)
    for row in (inline, ahead):
        assert row.frames == round(decoding.EPISODE_S * decoding.EPISODE_FPS) and row.picture == "640x480 jpeg or png"
        assert 0.0 < row.slowest_hz <= row.rate_hz.median
    assert (inline.ahead, inline.goal_hz, ahead.ahead, ahead.goal_hz) == (0, None, decoding.AHEAD, decoding.GOAL_HZ)


@pytest.mark.shared
@pytest.mark.parametrize(("bag", "picture"), [
    ("bridge_v2_broccoli_640x480", "640x480 jpeg or png"), ("bridge_v2_pot_640x480_raw", "640x480 raw")])
def test_decoding_of_real_recordings(shared: Path, bag: str, picture: str) -> None:
    rows = decoding.measure_decoding(shared / "data" / "bags" / bag, seconds=0.1)
    assert {(row.recording, row.picture) for row in rows} == {(bag, picture)} and rows[0].frames == rows[1].frames > 0


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected one of raw, compressed"):
        overhead.measure_overhead("theora")
    with pytest.raises(ConfigurationError, match="expected some of idle, policy, saturated"):
        jitter.measure_jitter(["moon"])
    with pytest.raises(BagError):
        decoding.measure_decoding(tmp_path / "nothing")


def test_without_ros_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvla_ros.benchmark.needs.find_spec", lambda name: None)
    for measure in (overhead.measure_overhead, jitter.measure_jitter, nodes.measure_nodes):
        with pytest.raises(DependencyMissing, match=r"needs ROS 2, and rclpy is not importable"):
            measure()


def test_the_room_imports_neither_torch_nor_ros(clean_environment: dict[str, str]) -> None:
    code = ("import sys; import openvla_ros.benchmark.nodes; "
            "sys.exit([name for name in ('torch', 'rclpy', 'openvla_msgs', 'rosbags') if name in sys.modules] or 0)")
    done = subprocess.run([sys.executable, "-c", code], env=clean_environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
