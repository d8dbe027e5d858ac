"""A suite: small YAML files, judged before anything runs, as a command and as pytest items."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from openvla_ros.bags.expect import Tolerance
from openvla_ros.cli.app import answer
from openvla_ros.errors import ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.regression.suite import find_suite, read_entry


def entry(folder: Path, name: str, **content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.replay.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_everything_that_a_file_says_arrives(tmp_path: Path, tiny: PolicySettings) -> None:
    (tmp_path / "model").symlink_to(tiny.checkpoint)
    (tmp_path / "mine.yaml").write_text("")
    file = entry(tmp_path / "suite", "night", bag="../bags/night", checkpoint="../model", policy="openvla-7b", expected="night.json",
                 settings={"dtype": "float32"}, through="command", robot="../mine.yaml", latency_s=0.3, instruction="go", stride=2,
                 limit=7, batch=3, image_topic="/left", instruction_topic="/said",
                 tolerances={"margin": 0.5, "translation_m": 0.001, "rotation_rad": 0.002, "gripper": 0.3, "flips": 0.2})
    job = read_entry(file, tmp_path / "out", {"device": "cpu"})
    assert job.name == "night" and job.bag.resolve() == tmp_path / "bags/night" and job.output == tmp_path / "out/night"
    assert Path(job.policy.checkpoint).samefile(tiny.checkpoint) and job.policy.unnorm_key == "untrained"
    assert (job.policy.dtype, job.policy.device, job.policy.resize) == ("float32", "cpu", "bridge")
    assert job.expect == tmp_path / "suite/night.json" and Path(job.robot).samefile(tmp_path / "mine.yaml")
    assert (job.through, job.latency_s, job.instruction, job.stride, job.limit, job.batch) == ("command", 0.3, "go", 2, 7, 3)
    assert (job.image_topic, job.instruction_topic) == ("/left", "/said")
    assert job.tolerance == Tolerance(0.5, (0.001,) * 3 + (0.002,) * 3 + (0.3,), 0.2)


@pytest.mark.parametrize(("content", "word"), [
    ({}, "lacks bag and expected"), ({"bag": "x", "expected": "y"}, "neither a checkpoint nor a policy"), (["bag"], "holds list"),
    ({"bag": "x", "expected": "y", "checkpoint": "scripted", "tolerence": {}}, "unknown keys tolerence; taken are bag"),
    ({"bag": "x", "expected": "y", "checkpoint": "scripted", "tolerances": {"dx": 1}}, "unknown tolerances dx; taken are margin"),
    ({"bag": "x", "expected": "y", "checkpoint": "scripted", "tolerances": {"flips": "many"}}, "tolerance flips is 'many'"),
    ({"bag": "x", "expected": "y", "checkpoint": "scripted", "tolerances": {"flips": 2}}, "share of flips is 2"),
    ({"bag": "x", "expected": "y", "checkpoint": "scripted", "settings": {"colour": 1}}, "unknown settings colour"),
    ({"bag": "x", "expected": "y", "checkpoint": "scripted", "settings": {"dtype": "int3"}}, "int3"),
    ({"bag": "x", "expected": "y", "checkpoint": "scripted", "limit": "all"}, "limit is 'all', expected int"),
    ({"bag": "x", "expected": "y", "checkpoint": "scripted", "stride": True}, "stride is True"),
    ({"bag": 3, "expected": "y", "checkpoint": "scripted"}, "bag is 3, expected str: the recording"),
    ({"bag": "x", "expected": "y", "checkpoint": "scripted", "through": "arm"}, "through is 'arm'")])
def test_what_a_file_may_not_say_is_refused_with_its_name(tmp_path: Path, content: Any, word: str) -> None:
    file = tmp_path / "day.replay.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigurationError, match=r"day\.replay\.yaml") as caught:
        read_entry(file, tmp_path)
    assert word in str(caught.value)


def test_a_folder_without_files_is_no_suite(tmp_path: Path) -> None:
    (tmp_path / "metadata.yaml").write_text("")
    for folder, word in ((tmp_path, "is no suite"), (tmp_path / "nowhere", "no suite folder")):
        with pytest.raises(ConfigurationError, match=word):
            find_suite(folder)


def test_a_suite_of_nothing_but_damaged_files_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry(tmp_path / "suite", "odd", bag="x")
    assert answer(["replay", "--suite", str(tmp_path / "suite"), "--output", str(tmp_path / "out"), "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["failed"] == 1 and "lacks expected" in said["bags"][0]["error"]


@pytest.fixture
def suite(tmp_path: Path, episode: Path, tiny: PolicySettings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two entries of one recording, with expectations that hold, made by the command itself. Its output is in the test's folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "suite"
    settings = {"dtype": "float32", "device": "cpu", "threads": 1, "resize": "direct"}
    entry(folder, "model", bag=str(episode), checkpoint=tiny.checkpoint, settings=settings, expected="expected/model.json", batch=3)
    entry(folder / "deeper", "circle", bag=str(episode), checkpoint="scripted", expected="circle.json", through="command", limit=4)
    assert answer(["replay", "--suite", str(folder), "--update", "--json"]) == 0
    return folder


def spoil(file: Path) -> None:
    content = json.loads(file.read_text())
    content["frames"][2]["action"][1] += 0.01
    file.write_text(json.dumps(content))


def test_a_suite_as_a_command(suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["replay", "--suite", str(suite), "--json", "--junit", str(tmp_path / "junit.xml")]
    capsys.readouterr()
    assert answer(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["good"], said["differs"], said["failed"]) == (2, 0, 0) and said["bags"][0]["name"] == "circle"
    assert json.loads(Path(said["summary"]).read_text())["bags"][1]["margin_bound"] == 0.01

    spoil(suite / "expected" / "model.json")
    assert answer([*command, "--workers", "2"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [bag["status"] for bag in said["bags"]] == ["good", "differs"]
    wrong = said["bags"][1]["differences"]
    assert [(one["frame"], one["cause"], one["dimensions"]) for one in wrong] == [(2, "statistics", ["dy"])]
    assert Path(wrong[0]["picture"]).exists()
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("2", "1", "0")
    assert "statistics" in root.findall("testcase/failure")[0].text

    entry(suite, "lost", bag="nowhere", checkpoint="scripted", expected="expected/model.json")
    assert answer(command) == 2
    said = json.loads(capsys.readouterr().out)
    assert (said["good"], said["differs"], said["failed"]) == (1, 1, 1) and "there is no recording" in said["bags"][1]["error"]
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("errors") == "1"

    (suite / "damaged.replay.yaml").write_text("bag: [")
    assert answer(command) == 2
    said = json.loads(capsys.readouterr().out)
    assert (said["good"], said["differs"], said["failed"]) == (1, 1, 2), "a damaged file takes only itself with it"
    assert said["bags"][-1]["name"] == "damaged" and "damaged.replay.yaml cannot be read" in said["bags"][-1]["error"]
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("errors") == "2"


def test_a_suite_as_pytest_items(suite: Path, tmp_path: Path, clean_environment: dict[str, str]) -> None:
    entry(suite, "lost", bag="nowhere", checkpoint="scripted", expected="expected/model.json")
    spoil(suite / "expected" / "model.json")
    (suite / "metadata.yaml").write_text("no: test")
    command = [sys.executable, "-m", "pytest", "-p", "openvla_ros.pytest_plugin", "-p", "no:cacheprovider", "-v", str(suite),
               "--rootdir", str(tmp_path), "--replay-output", str(tmp_path / "pictures")]
    done = subprocess.run(command, env=clean_environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    out = done.stdout
    assert done.returncode == 1 and "2 failed, 1 passed" in out, out + done.stderr
    assert "model.replay.yaml::model FAILED" in out and "circle.replay.yaml::circle PASSED" in out
    assert "frame 2: statistics: dy" in out and "there is no recording at" in out and "Traceback" not in out
    assert (tmp_path / "pictures/model/frame_000002.png").exists()


def test_the_plugin_is_registered_with_pytest(checkout: Path) -> None:
    assert '"pytest11": ["openvla_ros.pytest_plugin = openvla_ros.pytest_plugin"]' in (checkout / "setup.py").read_text()


@pytest.mark.parametrize(("arguments", "word"), [
    ([], "nothing to replay"), (["--suite", "x", "--against", "y"], "--suite says itself"), (["bag", "--update"], "--update belongs"),
    (["bag", "--checkpoint", "scripted", "--against", "y", "--expect", "z.json"], "takes no --expect"),
    (["one", "two", "--checkpoint", "scripted", "--expect", "z.json"], "Name a folder"), (["bag"], "needs a policy"),
    (["bag", "--checkpoint", "scripted", "--max-flips", "7"], "share of flips"), (["--suite", "nowhere"], "no suite folder")])
def test_options_that_make_no_sense_are_refused(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["replay", *arguments, "--json"]) == 2
    assert word in json.loads(capsys.readouterr().out)["error"]
