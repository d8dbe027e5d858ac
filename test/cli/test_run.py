"""`openvla-ros run`: what it decides, and the whole system as real processes, through good ends and bad ones."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import yaml
from PIL import Image

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.cli import app, run, surroundings
from openvla_ros.ros.domain import free_domain

DEADLINE_S = 60.0
SIMULATED_DEADLINE_S = 240.0
"""For some seconds of simulated time, which passes slowly on a loaded computer."""

GONE_WITHIN_S = 20.0
"""A node leaves within seconds of SIGTERM; twenty leave room for a loaded computer."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained checkpoint that `make run` uses."""
    pytest.importorskip("torch", reason="needs torch")
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    assert app.answer(["make-checkpoint", "--size", "tiny", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "episode"
    make_episode(folder, EpisodeSettings(seconds=3.0, width=160, height=120))
    return folder


# ---------------------------------------------------------------------- what it decides


def test_arguments_keep_their_values_through_yaml() -> None:
    values = {"text": 'it\'s "so": é 1', "number_like": "007", "flag": True, "real": 0.5, "whole": 3}
    arguments = run.ros_arguments(values, {"image": "/camera", "instruction": "instruction"}, "left/", Path("file.yaml"))
    given = dict(argument.split(":=", 1) for flag, argument in pairwise(arguments) if flag == "-p")
    assert {name: yaml.safe_load(value) for name, value in given.items()} == values
    assert arguments[:3] == ("--ros-args", "--params-file", "file.yaml")
    assert "image:=/camera" in arguments and "instruction:=instruction" not in arguments and arguments[-1] == "__ns:=/left"


def test_a_recording_is_private_whatever_the_shell_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    monkeypatch.setenv("ROS_STATIC_PEERS", "10.0.0.1")
    monkeypatch.setenv("FASTRTPS_DEFAULT_PROFILES_FILE", "/my/own.xml")
    private = surroundings.surroundings(True, None)
    assert private["ROS_DOMAIN_ID"] not in ("7", "0") and private["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert private["ROS_STATIC_PEERS"] == "" and "FASTRTPS_DEFAULT_PROFILES_FILE" not in private
    monkeypatch.setattr(surroundings, "free_domain", lambda: pytest.fail("one was given"))
    assert surroundings.surroundings(True, 42)["ROS_DOMAIN_ID"] == "42"
    assert surroundings.surroundings(False, None) == {}


def test_the_profile_for_images_is_set_where_none_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in surroundings.PROFILE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert all(Path(surroundings.surroundings(False, None)[name]).is_file() for name in surroundings.PROFILE_VARIABLES)


@pytest.mark.ros
@pytest.mark.parametrize(("arguments", "words"), [
    (["--rate", "2"], "belong to a recording"), (["--driver", "human"], "expected policy or hold"),
    (["--image-topic", "/camera"], "the simulation has its own"), (["--rerun", "no/folder/run.rrd"], "rerun"),
    (["--params-file", "no.yaml"], "does not exist"), (["--bag", "no/bag"], "no recording at"),
    (["--robot", "nobody"], "no robot profile 'nobody'")])
def test_wrong_options_are_refused_before_anything_starts(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.answer(["run", "--checkpoint", "scripted", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.ros
@pytest.mark.parametrize("mode", [["--robot", "wx250s"], ["--bag", "episode"]])
def test_only_the_simulation_has_a_policy_of_its_own(mode: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.answer(["run", *mode]) == 2
    assert "--checkpoint is needed" in capsys.readouterr().err


@pytest.mark.ros
def test_a_recording_never_meets_a_real_arm(episode: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.answer(["run", "--checkpoint", "scripted", "--bag", str(episode), "--robot", "wx250s"]) == 2
    assert "must not move it" in capsys.readouterr().err


@pytest.mark.ros
def test_a_child_starts_its_own_libraries(tmp_path: Path) -> None:
    from openvla_ros.ros.processes import BOOTSTRAP_GUARD, child_environment

    outside, inside = str(tmp_path / "cuda"), f"{sys.prefix}/lib"
    started = {BOOTSTRAP_GUARD: "1", "LD_LIBRARY_PATH": os.pathsep.join([inside, outside]), "HOME": "/home/me"}
    assert child_environment(started) == {"LD_LIBRARY_PATH": outside, "HOME": "/home/me"}
    sourced = {"LD_LIBRARY_PATH": "/opt/ros/jazzy/lib"}
    assert child_environment(sourced) == sourced


def test_the_report_says_what_went_wrong_first_and_where_chunks_went() -> None:
    summary: dict = {
        "headline": "POLICY fell to HOLD after 6 steps: no fresh chunk", "frames_played": 20, "frames_received": 20, "frames_inferred": 18,
        "frames_replaced_by_newer": 2, "frames_refused": {}, "chunks": 15, "chunks_overtaken": 3, "steps_started": 6, "hz": 5.0,
        "latency_ms": {}, "faults": {}, "rules": {}, "stop_reasons": {}, "driver": "HOLD", "notes": ["untrained"], "log_folder": "logs"}
    lines = run.report(summary)
    assert lines[:3] == ["", "summary", "  POLICY fell to HOLD after 6 steps: no fresh chunk"]
    chunks = next(index for index, line in enumerate(lines) if "15 published at 5.00 Hz" in line)
    assert "3 overtaken" in lines[chunks + 1]
    quiet = run.report(summary | {"headline": "", "chunks_overtaken": None})
    assert quiet[2].startswith("  frames") and not any("overtaken" in line for line in quiet)


# ---------------------------------------------------------------------- the whole system


NODES = ("policy_node", "command_node", "simulation_node")


class System:
    """One `openvla-ros run` as a process, and the processes that it started."""

    def __init__(self, environment: dict[str, str], folder: Path, *arguments: str) -> None:
        self.logs = folder / "logs"
        self.out, self.err = (folder / "out").open("w+"), (folder / "err").open("w+")
        patient = folder / "patient.yaml"  # a loaded computer is slow, but that is not what is tested here
        patient.write_text("".join(f"/**/{name}:\n  ros__parameters:\n    max_observation_age_s: 5.0\n" for name in NODES[:2]))
        command = [sys.executable, "-c", "from openvla_ros.cli.app import main; main()", "run", "--log-dir", str(self.logs),
                   "--params-file", str(patient), "--threads", "1", *arguments]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=self.out, stderr=self.err)
        self.family: dict[int, psutil.Process] = {}

    def parts(self) -> dict[str, psutil.Process]:
        """Its children that run now, by the name of their part."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []:
            self.family[child.pid] = child
            try:
                line = " ".join(child.cmdline())
            except psutil.Error:
                continue
            found |= {name: child for name in NODES if f"{name}:main" in line}
            if "app:main play" in line:
                found["player"] = child
        return found

    def guards(self) -> int:
        """How many guards there are (`ros/guard.py`)."""
        self.parts()
        count = 0
        for child in self.family.values():
            with suppress(psutil.Error):
                count += "guard.py" in " ".join(child.cmdline())
        return count

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline and self.process.poll() is None, self.said()
            time.sleep(0.05)

    def until_playing(self) -> None:
        self.until(lambda: set(self.parts()) == {"policy_node", "command_node", "player"})
        self.until(lambda: "listening" in (self.logs / "policy_node.log").read_text())  # it has found the camera

    def say(self, *lines: str) -> None:
        """Give it these lines, and the end of its input."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self.process.stdin.close()

    def ended(self, deadline_s: float = DEADLINE_S) -> int:
        self.process.wait(deadline_s)
        return self.process.returncode

    def left_over(self) -> list[psutil.Process]:
        """Children that outlived it, after the time that they need to leave."""
        return psutil.wait_procs(list(self.family.values()), timeout=GONE_WITHIN_S)[1]

    def said(self) -> str:
        texts = []
        for stream in (self.out, self.err):
            stream.seek(0)
            texts.append(stream.read())
        return "\n".join(texts)

    def result(self) -> dict:
        self.out.seek(0)
        return json.loads(self.out.read())


@pytest.fixture
def system(clean_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., System]]:
    """Starts a run; whatever happens, nothing of it outlives the test."""
    made: list[System] = []

    def start(*arguments: str) -> System:
        made.append(System(clean_environment | {"OMP_NUM_THREADS": "1"}, tmp_path, *arguments))
        return made[-1]

    yield start
    for one in made:
        one.parts()
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        for child in one.family.values():
            if child.is_running():
                child.kill()
        if one.process.stdin is not None:
            one.process.stdin.close()
        one.out.close()
        one.err.close()


@pytest.mark.ros
def test_a_recording_from_end_to_end(system: Callable[..., System], checkpoint: Path, episode: Path) -> None:
    live = system("--bag", str(episode), "--checkpoint", str(checkpoint), "--json")
    live.until(lambda: "policy_node" in live.parts())
    slow = live.parts()["policy_node"]
    slow.suspend()  # a part that is slow to load is waited for
    time.sleep(3.0)
    slow.resume()
    live.until(lambda: "player" in live.parts())
    assert live.ended() == 0, live.said()
    summary = live.result()
    assert summary["frames_played"] == 15 and summary["frames_received"] >= 12  # each is seen coming; a busy computer may take two at once
    assert summary["chunks"] >= 5 and summary["steps_started"] >= 3 and "error" not in summary
    assert not any("was not waited for" in note for note in summary["notes"])
    assert list(summary["latency_ms"])[-1] == "total" and summary["latency_ms"]["decode"]["median"] > 0
    assert any("untrained" in note for note in summary["notes"])
    assert not live.left_over()
    assert {path.name for path in live.logs.glob("*.log")} == {"policy_node.log", "command_node.log", "player.log"}


@pytest.mark.ros
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_in_order(system: Callable[..., System], checkpoint: Path, episode: Path, number: int) -> None:
    live = system("--bag", str(episode), "--checkpoint", str(checkpoint), "--loop", "--plain", "--instruction", "push the block")
    live.until_playing()
    live.process.send_signal(number)
    assert live.ended() == 0, live.said()
    assert "summary" in live.said() and "export ROS_DOMAIN_ID=" in live.said()
    assert not live.left_over()


@pytest.mark.ros
def test_a_killed_run_leaves_no_orphan(system: Callable[..., System], checkpoint: Path, episode: Path) -> None:
    live = system("--bag", str(episode), "--checkpoint", str(checkpoint), "--loop", "--json")
    live.until_playing()
    live.until(lambda: live.guards() == 3)  # one beside each of them
    live.process.kill()
    live.process.wait()
    assert not live.left_over()


@pytest.mark.ros
def test_a_second_signal_kills_at_once(system: Callable[..., System], checkpoint: Path, episode: Path) -> None:
    live = system("--bag", str(episode), "--checkpoint", str(checkpoint), "--loop", "--json")
    live.until_playing()
    live.parts()["policy_node"].suspend()  # it cannot answer the polite request
    live.process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # two signals that come at the same time are one
    live.process.send_signal(signal.SIGINT)
    assert live.ended() == -signal.SIGINT, live.said()
    assert not live.left_over()


@pytest.mark.ros
def test_a_part_that_dies_is_named_and_the_rest_stops(system: Callable[..., System], checkpoint: Path, episode: Path) -> None:
    live = system("--bag", str(episode), "--checkpoint", str(checkpoint), "--loop", "--json")
    live.until_playing()
    live.parts()["policy_node"].kill()
    assert live.ended() == 1, live.said()
    error = live.result()["error"]
    assert "policy_node was ended by SIGKILL" in error and "policy_node.log" in error and "is ready after" in error
    assert not live.left_over()


@pytest.mark.ros
def test_a_part_that_breaks_down_while_it_stops_is_named(system: Callable[..., System], checkpoint: Path, episode: Path) -> None:
    live = system("--bag", str(episode), "--checkpoint", str(checkpoint), "--loop", "--plain")
    live.until_playing()
    policy = live.parts()["policy_node"]
    policy.suspend()  # the stop waits for its answer
    live.process.send_signal(signal.SIGINT)
    live.until(lambda: "\nstopping\n" in Path(live.out.name).read_text())
    policy.send_signal(signal.SIGABRT)
    policy.resume()
    assert live.ended() == 1, live.said()
    assert "error: policy_node was ended by SIGABRT; its log is" in live.said()
    assert not live.left_over()


@pytest.mark.ros
def test_what_policy_node_refuses_is_said(system: Callable[..., System], checkpoint: Path, episode: Path) -> None:
    live = system("--bag", str(episode), "--checkpoint", str(checkpoint), "--unnorm-key", "mars", "--json")
    live.until(lambda: len(live.parts()) == 2)
    assert live.ended() == 2, live.said()
    assert "'mars'" in live.result()["error"] and "untrained" in live.result()["error"]
    assert not live.left_over()


@pytest.mark.ros
def test_on_a_robot_the_driver_is_hold(system: Callable[..., System], ros_domain_id: int) -> None:
    live = system("--checkpoint", "scripted", "--robot", "wx250s_replay", "--seconds", "1", "--plain", "--domain", str(ros_domain_id),
                  "--namespace", "/left")
    live.until(lambda: len(live.parts()) == 2)
    assert live.ended() == 0, live.said()
    assert "driver is HOLD: nothing moves" in live.said() and "/left/set_driver" in live.said()
    assert "driver at the end HOLD" in live.said()
    assert not live.left_over()


# ---------------------------------------------------------------------- in the simulation


@pytest.fixture
def simulation(system: Callable[..., System], tmp_path: Path) -> Callable[..., System]:
    """A run with the simulation and the policy that draws circles: none of what is tested here asks for skill."""
    pytest.importorskip("mujoco", reason="needs the simulation")
    return lambda *arguments: system("--checkpoint", "scripted", *arguments)


@pytest.mark.ros
def test_lines_of_a_pipe_are_done_one_after_the_other(simulation: Callable[..., System]) -> None:
    live = simulation("--json")
    live.say("reset 5", "move to the green block", "x" * 300, "")
    assert live.ended(SIMULATED_DEADLINE_S) == 0, live.said()
    summary = live.result()
    assert summary["tasks"] == [{"instruction": "move to the green block", "outcome": "not done", "steps": 30, "wrong": ""}]
    assert summary["steps_started"] >= 25 and summary["driver"] == "HOLD" and not summary["headline"]
    assert list(summary["start_s"]) == ["start", "loading", "first motion"] and all(took_s >= 0.0 for took_s in summary["start_s"].values())
    assert summary["file_notes"] == [] and summary["files"] == {"plot": str(live.logs / "run.png"), "film": str(live.logs / "run.gif")}
    with Image.open(summary["files"]["film"]) as gif:
        assert gif.n_frames > 10
    assert not live.left_over()


@pytest.mark.ros
def test_a_simulation_may_stall_but_one_that_dies_is_named(simulation: Callable[..., System], monkeypatch: pytest.MonkeyPatch) -> None:
    domain = free_domain()
    live = simulation("--domain", str(domain), "--plain")
    said = Path(live.out.name)
    live.until(lambda: "first motion" in said.read_text())
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with heard_trajectories(domain) as heard:
        world = live.parts()["simulation_node"]
        world.suspend()
        live.until(lambda: "driver HOLD" in said.read_text().partition("first motion")[2])
        world.resume()
        live.until(lambda: "driver POLICY" in said.read_text().partition("POLICY goes on")[2])
        moved = len(heard)
        live.until(lambda: len(heard) > moved)
        world.kill()
        killed_at = time.monotonic()
        assert live.ended() == 1, live.said()
        assert "error: simulation_node was ended by SIGKILL" in live.said() and "simulation_node.log" in live.said()
        assert heard[-1] < killed_at + CLOCK_STANDS_STILL_S
    assert not live.left_over()


CLOCK_STANDS_STILL_S = 2.0
"""A clock that stands still stops the arm after 0.25 s, and the run stops it too; the rest is for a loaded computer."""


@contextmanager
def heard_trajectories(domain: int) -> Iterator[list[float]]:
    """When each command to the arm was heard [s, steady]."""
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from trajectory_msgs.msg import JointTrajectory

    heard: list[float] = []
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node("ear", context=context)
    node.create_subscription(JointTrajectory, "arm_controller/joint_trajectory", lambda message: heard.append(time.monotonic()), 10)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.try_shutdown(context=context)


@pytest.mark.ros
@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed; apt install tmux")
def test_instructions_are_typed_while_it_runs(clean_environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("mujoco", reason="needs the simulation")
    tmux = ["tmux", "-S", str(tmp_path / "tmux"), "-f", os.devnull]
    environment = {**clean_environment, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}

    def ask(*words: str) -> str:
        return subprocess.run([*tmux, *words], env=environment, capture_output=True, text=True, timeout=20, check=True).stdout

    def until(pattern: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not re.search(pattern, screen := ask("capture-pane", "-p", "-J", "-S", "-200")):
            assert time.monotonic() < end, f"waited for {pattern!r} on the screen:\n{screen}"
            time.sleep(0.1)

    run_it = shlex.join([sys.executable, "-c", "from openvla_ros.cli.app import main; main()", "run", "--checkpoint", "scripted",
                         "--log-dir", str(tmp_path / "logs")])
    try:
        ask("new-session", "-d", "-x", "120", "-y", "45", f"stty -g; {run_it}; echo code=$?; stty -g; sleep 60")
        until(r"first motion: .*\n(.*\n)*.*scene, seed 0")
        ask("send-keys", "-l", "pick up the blx")
        until(r"> pick up the blx")
        ask("send-keys", "BSpace")
        ask("send-keys", "-l", "ue block")
        ask("send-keys", "Enter")
        until(r"instruction +│ pick up the blue block(.*\n)*.*step [1-9]")
        ask("send-keys", "Enter")
        until(r"> \(stop\)(.*\n)*.*instruction +│ none yet")
        ask("send-keys", "-l", "Reset 7")
        ask("send-keys", "Enter")
        until(r"scene 7: red, green, blue block and a plate(.*\n)*.*scene, seed 7")
        ask("send-keys", "C-c")
        until(r"(?s)pick up the blue block: broken off after \d+ steps.*film +.*run\.gif.*code=0")
        before, after = re.findall(r"^[0-9a-f:]{40,}$", ask("capture-pane", "-p", "-J", "-S", "-200"), re.MULTILINE)
        assert before == after, "the terminal was given back"
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, timeout=20, check=False)
