"""`openvla-ros replay --live`: the real nodes over DDS say what the offline replay says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openvla_ros.bags.agreement import agree
from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.expect import Tolerance, read_expectation
from openvla_ros.cli.app import answer
from openvla_ros.cli.replay_live import finish

pytestmark = pytest.mark.ros

COMMAND = ("timeout", "-k", "5", "150", sys.executable, "-c", "import sys; from openvla_ros.cli.app import main; sys.exit(main())")


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "episode"
    make_episode(folder, EpisodeSettings(seconds=2.0, width=64, height=48))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    untrained = pytest.importorskip("openvla_ros.policy.openvla.untrained")
    folder = tmp_path_factory.mktemp("live") / "tiny"
    untrained.write_untrained(folder)
    return folder


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """A policy profile, as the nodes and the offline replay both read it."""
    file = tmp_path / "patient.yaml"
    file.write_text("dtype: float32\ndevice: cpu\nthreads: 1\nresize: bridge\n")
    return file


def test_live(bag: Path, checkpoint: Path, patient: Path, tmp_path: Path, ros_environment: dict[str, str]) -> None:
    command = [*COMMAND, "replay", str(bag), "--checkpoint", str(checkpoint), "--policy", str(patient), "--live", "--json", "--output",
               str(tmp_path / "out"), "--rate", "0.4"]  # 5 s of wall time: longer than it takes to discover the clock
    done = subprocess.run(command, env=ros_environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=160)
    said = json.loads(done.stdout)
    assert done.returncode == 0, (said, done.stderr)
    live = said["live"]
    assert live["agrees"] is True and live["frames"] == 10 and live["compared"] >= 1
    assert live["unknown_stamps"] == live["answered_twice"] == live["differences"] == []
    assert live["age_ms"] is not None and {"preprocess", "upload", "vision", "prefill", "decode"} <= live["stage_ms"].keys()
    assert live["clock"] is not None  # how it ran depends on what else this computer does
    assert said["run"]["frames_played"] == 10 and said["run"]["frames_inferred"] >= said["live"]["compared"]
    assert json.loads(Path(said["report"]).read_text())["live"] == said["live"]


def test_attached_to_a_player_without_nodes(bag: Path, tmp_path: Path, ros_environment: dict[str, str]) -> None:
    """The listener hears the clock come and go, and nobody answers."""
    from openvla_ros.cli.replay_live import listen
    from openvla_ros.ros.live_listener import LiveListener

    expected = tmp_path / "expected.json"
    assert answer(["replay", str(bag), "--checkpoint", "scripted", "--output", str(tmp_path / "a"), "--write-expected", str(expected)]) == 0
    listener = LiveListener()
    try:
        play = [*COMMAND, "play", str(bag), "--rate", "0.4"]  # 5 s of wall time: longer than it takes to discover the clock
        with subprocess.Popen(play, env=ros_environment, stdout=subprocess.DEVNULL) as player:
            listen(listener, patience_s=90.0)
            assert player.wait(60) == 0
        agreement = agree(read_expectation(expected), listener.chunks, listener.ticks, Tolerance(), rate=0.4)
    finally:
        listener.close()
    assert finish(agreement, {}, tmp_path / "out", as_json=False) == 1
    live = json.loads((tmp_path / "out" / "live.json").read_text())["live"]
    assert live["agrees"] is False and live["compared"] == 0 and live["skipped"] == list(range(10))
    assert live["clock"] is not None


@pytest.mark.parametrize(("arguments", "word"), [
    (["--live", "--stride", "2"], "plays the whole recording"), (["--live", "--junit", "x.xml"], "--live takes one bag"),
    (["--attach", "--through", "command"], "--live takes one bag")])
def test_options_that_make_no_sense_live_are_refused(bag: Path, tmp_path: Path, arguments: list[str], word: str,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    assert answer(["replay", str(bag), "--checkpoint", "scripted", "--output", str(tmp_path / "out"), "--json", *arguments]) == 2
    assert word in json.loads(capsys.readouterr().out)["error"] and dict(os.environ) == before
