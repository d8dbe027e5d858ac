"""`openvla-ros replay` as a user meets it: output, files, exit codes, words for what is wrong."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.cli.app import answer


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replayed") / "episode"
    make_episode(folder, EpisodeSettings(seconds=2.0, width=64, height=48))
    return folder


def test_json_and_files(episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["replay", str(episode), "--checkpoint", "scripted", "--output", str(tmp_path / "out"), "--limit", "4", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["policy"] == "scripted" and said["frame_count"] == 4 and said["fault_count"] == 0
    assert [error["pairs"] for error in said["errors"]] == [4] * 7
    report = json.loads(Path(said["report"]).read_text())
    assert report["digest"] == said["digest"] and len(report["frames"]) == 4 and "frames" not in said
    assert Path(said["picture"]).read_bytes().startswith(b"\x89PNG")
    assert "<title>scripted on episode</title>" in Path(said["page"]).read_text(encoding="utf-8") and "rerun" not in said


def test_one_page_for_several_recordings_and_for_two_policies(episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.mcap"
    broken.write_bytes(b"nothing")
    command = ["replay", str(episode), str(broken), "--checkpoint", "scripted", "--output", str(tmp_path / "out"), "--json"]
    assert answer(command) == 2
    text = Path(json.loads(capsys.readouterr().out)["page"]).read_text(encoding="utf-8")
    assert "scripted on 2 recordings" in text and "broken.mcap</b> could not be run" in text
    del command[2]
    assert answer([*command, "--against", "step_s=0.5"]) == 0
    text = Path(json.loads(capsys.readouterr().out)["page"]).read_text(encoding="utf-8")
    assert "Where scripted and scripted, step_s=0.5 are furthest apart" in text


def test_a_page_that_cannot_be_written_does_not_lose_the_result(episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = tmp_path / "expected.json"
    (tmp_path / "out" / "replay.html").mkdir(parents=True)  # in the way of the page
    command = ["replay", str(episode), "--checkpoint", "scripted", "--output", str(tmp_path / "out"), "--json"]
    assert answer([*command, "--write-expected", str(expected)]) == 0
    assert "page" not in json.loads(capsys.readouterr().out)
    content = json.loads(expected.read_text())
    content["frames"][1]["action"][0] += 0.01
    expected.write_text(json.dumps(content))
    assert answer([*command, "--expect", str(expected)]) == 1, "the exit code is that of the comparison"
    said = json.loads(capsys.readouterr().out)
    assert said["status"] == "differs" and "cannot be written" in said["not_written"]
    assert answer([*command[:-1], "--expect", str(expected)]) == 1
    assert "not written: " in capsys.readouterr().out


@pytest.mark.skipif(find_spec("rerun") is not None, reason="rerun-sdk is installed")
def test_a_viewer_that_is_not_installed_is_named_before_anything_runs(episode: Path, tmp_path: Path,
                                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["replay", str(episode), "--checkpoint", "scripted", "--output", str(tmp_path / "out"), "--rerun",
                   str(tmp_path / "run.rrd"), "--json"]) == 2
    assert "openvla-ros[viewer]" in json.loads(capsys.readouterr().out)["error"] and not (tmp_path / "out").exists()


def test_words_for_people(episode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer(["replay", str(episode), "--checkpoint", "scripted", "--stride", "2"]) == 0
    shown = capsys.readouterr().out
    assert "gripper" in shown and "5 frames, 0 faults" in shown and "looks at neither picture" in shown
    assert sorted(path.name for path in (tmp_path / "replay-episode").iterdir()) == ["replay.html", "replay.json", "replay.png"]
    assert "page: replay-episode/replay.html" in shown


@pytest.mark.parametrize(("arguments", "word"), [
    (["--checkpoint", "nowhere"], "nowhere"), (["--checkpoint", "scripted", "--image-topic", "/nothing"], "has no topic '/nothing'"),
    (["--checkpoint", "scripted", "--instruction", "x" * 300], "300 characters"), (["--checkpoint", "scripted", "--dtype", "int3"], "int3"),
    (["--checkpoint", "scripted", "--stride", "0"], "stride"), ([], "checkpoint")])
def test_what_is_wrong_is_said_as_json_with_exit_code_2(episode: Path, tmp_path: Path, arguments: list[str], word: str,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["replay", str(episode), "--output", str(tmp_path / "out"), "--json", *arguments]) == 2
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["error"] and word in said["error"]
    assert not (tmp_path / "out").exists()


def test_a_missing_recording_is_said_to_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["replay", str(tmp_path / "none"), "--checkpoint", "scripted"]) == 2
    assert "there is no recording at" in capsys.readouterr().err


@pytest.mark.shared
def test_a_camera_only_recording_needs_an_instruction(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["replay", str(shared / "data/bags/raspicam_single_frame_1280x960"), "--checkpoint", "scripted", "--output",
               str(tmp_path / "out"), "--json"]
    assert answer(command) == 2
    assert "--instruction" in json.loads(capsys.readouterr().out)["error"]
    assert answer([*command, "--instruction", "pick up the marker"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["frame_count"] == 1 and said["action_topic"] is None and said["instruction_topic"] is None


@pytest.mark.shared
def test_the_tiny_checkpoint_replays(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["replay", str(shared / "data/bags/bridge_v2_pot_640x480_raw"), "--checkpoint",
               str(shared / "golden/tiny_fused/checkpoint"), "--output", str(tmp_path / "out"), "--limit", "2", "--json"]
    assert answer([*command, "--unnorm-key", "unknown"]) == 2
    assert "bridge_orig" in json.loads(capsys.readouterr().out)["error"]  # the message lists the keys there are
    digests = set()
    for _ in range(2):
        assert answer([*command, "--unnorm-key", "bridge_orig", "--dtype", "float32"]) == 0
        digests.add(json.loads(capsys.readouterr().out)["digest"])
    assert len(digests) == 1
