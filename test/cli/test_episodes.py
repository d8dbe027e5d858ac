"""`openvla-ros episodes` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.episodes import Dataset
from openvla_ros.cli.app import answer


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    make_episode(tmp_path / "drawn", EpisodeSettings(seconds=2.0, width=64, height=48))
    return tmp_path / "drawn"


def test_recordings_become_a_dataset(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["episodes", str(bag), "--output", str(tmp_path / "set"), "--success", "--key", "lab", "--json"]
    assert answer(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["episodes"], said["rows"], said["failed"]) == (1, 9, {}) and not said["recordings"][0]["kept"]
    assert said["recordings"][0]["left_out"] == [
        {"kind": "picture", "topic": "/camera/image_raw/compressed", "reason": "no step began with it", "count": 1}]
    found = Dataset(tmp_path / "set")
    assert found.episodes[0].success and list(found.statistics) == ["lab"]
    assert answer(command) == 0 and json.loads(capsys.readouterr().out)["recordings"][0]["kept"]


def test_people_see_what_was_left_out_and_why(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert answer(["episodes", str(bag), str(tmp_path / "missing"), "--output", str(tmp_path / "set")]) == 2  # one failed
    said = capsys.readouterr().out
    assert "no step began with it" in said and "there is no recording at" in said and "1 episodes, 9 rows" in said
    assert len(Dataset(tmp_path / "set")) == 9  # and the other is there


@pytest.mark.parametrize(("options", "words"), [
    (["--gap", "0"], "0.05 to 3600 s"), (["--raw-frames", "gif"], "jpeg, png"), (["--source", "sent"], "neither command reports"),
    (["--action-topic", "/instruction"], "expected std_msgs/msg/Float64MultiArray"), (["--min-steps", "50"], "fewer than 50 steps")])
def test_what_cannot_be_done_is_refused_with_the_reason(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str],
                                                        words: str) -> None:
    assert answer(["episodes", str(bag), "--output", str(tmp_path / "set"), *options, "--json"]) == 2
    assert words in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "set" / "dataset.json").exists()
