"""`openvla-ros teleop` in a real terminal (tmux), in front of a real command_node. What counts is what the topics carried."""

from __future__ import annotations

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
from pathlib import Path

import psutil
import pytest

pytest.importorskip("rclpy", reason="needs ROS")
import rclpy
from geometry_msgs.msg import TwistStamped
from openvla_msgs.msg import ActionChunk
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import Float64, String

from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE

pytestmark = [
    pytest.mark.ros,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed; apt install tmux"),
]

DEADLINE_S = 20.0
QUIET_S = 0.5
PROMPT = "shell>"


class Terminal:
    """A terminal of its own tmux server, with a shell in it."""

    def __init__(self, socket: Path, environment: dict[str, str]) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", os.devnull]
        self._environment = {**environment, "TERM": "xterm-256color"}
        (start := socket.with_suffix(".rc")).write_text(f"PS1='{PROMPT}'\n")
        self._run("new-session", "-d", "-x", "120", "-y", "40", f"bash --noprofile --rcfile {shlex.quote(str(start))}")

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], env=self._environment, capture_output=True, text=True, timeout=20,
                              check=True).stdout

    def press(self, *keys: str) -> None:
        """Keys by their tmux names: w, Space, Escape, C-c, Up."""
        self._run("send-keys", *keys)

    def type(self, line: str) -> None:
        """A command line for the shell."""
        self._run("send-keys", "-l", line)
        self.press("Enter")

    @property
    def text(self) -> str:
        """What is on the screen."""
        return self._run("capture-pane", "-p", "-J")

    def until(self, words: str) -> str:
        """Wait until the screen shows a regular expression; returns the screen."""
        end = time.monotonic() + DEADLINE_S
        while not re.search(words, text := self.text):
            assert time.monotonic() < end, f"waited {DEADLINE_S} s for {words!r} on the screen:\n{text}"
            time.sleep(0.05)
        return text

    def settings(self) -> str:
        """What `stty -g` says: all settings of the terminal."""
        self.type("clear; echo settings=$(stty -g)=")
        return re.search(r"settings=([0-9a-f:]+)=", self.until(r"settings=[0-9a-f:]+=\s")).group(1)  # type: ignore[union-attr]

    def child(self) -> psutil.Process:
        """The one process that the shell runs."""
        (child,) = psutil.Process(int(self._run("display-message", "-p", "#{pane_pid}"))).children()
        return child

    def close(self) -> None:
        """The terminal is gone, and with it its shell. Once is enough."""
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=20, check=False)


class Listener(Node):
    """What an arm and a command_node would hear."""

    def __init__(self, context: rclpy.Context) -> None:
        super().__init__("listener", context=context)
        self.asked: list[TwistStamped] = []
        self.openings: list[float] = []
        self.arm: list[TwistStamped] = []
        self.drivers: list[str] = []
        self.create_subscription(TwistStamped, "teleop/delta_twist_cmds", self.asked.append, QoSProfile(depth=200))
        self.create_subscription(Float64, "teleop/gripper", lambda message: self.openings.append(message.data), 200)
        self.create_subscription(TwistStamped, "delta_twist_cmds", self.arm.append, QoSProfile(depth=200))
        self.create_subscription(String, "driver", lambda message: self.drivers.append(message.data), LATCHED)

    def until(self, good: Callable[[], object], what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while not good():
            assert time.monotonic() < end, f"waited {DEADLINE_S} s for: {what}; drivers {self.drivers[-3:]}"
            time.sleep(0.01)

    def rest(self) -> None:
        """Wait until neither topic carried anything for QUIET_S."""
        count, since = (0, 0), time.monotonic()
        while time.monotonic() - since < QUIET_S:
            if count != (now := (len(self.asked), len(self.arm))):
                count, since = now, time.monotonic()
            time.sleep(0.01)


@pytest.fixture
def listener(ros_domain_id: int) -> Iterator[Listener]:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain_id)
    executor = SingleThreadedExecutor(context=context)
    node = Listener(context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown()
    thread.join()
    node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def terminal(ros_environment: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path / "tmux", ros_environment)
    try:
        terminal.until(PROMPT)
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def command_node(ros_environment: dict[str, str], tmp_path: Path) -> Iterator[None]:
    """With the profile that has no joints, as no arm answers here."""
    command = ["timeout", "-k", "5", "120", sys.executable, "-m", "openvla_ros.ros.command_node",
               "--ros-args", "-p", "robot:=wx250s_replay"]
    with (tmp_path / "command_node.log").open("w") as log:
        process = subprocess.Popen(command, env=ros_environment, stdout=log, stderr=subprocess.STDOUT)
    yield
    process.terminate()
    process.wait(15)


TELEOP = shlex.join([sys.executable, "-c", "from openvla_ros.cli.app import main; main()", "teleop"])


def test_without_command_node_it_says_so_and_sends_nothing(terminal: Terminal, listener: Listener) -> None:
    before = terminal.settings()
    terminal.type(f"{TELEOP} --namespace left; echo code=$?")
    terminal.until("no command_node is heard: looked for /left/command_node in ROS domain")
    for key, words in (("w", "no command_node is heard"), ("t", "take over: nobody answers"), ("W", "Is caps lock on"),
                       ("y", "'y' does nothing"),
                       ("Space", "emergency stop: nobody answers. Use the hardware stop.")):
        terminal.press(key)
        terminal.until(words)
    terminal.press("q")
    terminal.until("code=0")
    assert terminal.settings() == before
    assert listener.asked == [] and listener.openings == []


def test_stop_and_reset_by_key(terminal: Terminal, listener: Listener, command_node: None) -> None:
    terminal.type(f"{TELEOP} --step-mm 20; echo code=$?")
    terminal.until(r"driver +HOLD")
    terminal.until(r"dry run +no: the arm moves")
    listener.until(lambda: listener.drivers == ["HOLD"], "HOLD")
    for key, words in (("w", "the driver is HOLD: press t to take over"), ("+", r"step +20 mm, 5 degrees"), ("-", "10 mm, 5 degrees"),
                       (",", "10 mm, 2 degrees"), ("p", "policy: refused: nobody publishes /action_chunk"),
                       ("Space", r"emergency stop: done"), ("w", "the arm is STOPPED. Find out why"), ("R", "reset: done. HOLD"),
                       ("R", "reset: refused"), ("Escape", r"driver +STOPPED")):
        terminal.press(key)
        terminal.until(words)
    listener.until(lambda: listener.drivers == ["HOLD", "STOPPED", "HOLD", "STOPPED"], "each change of driver")
    terminal.press("C-c")
    terminal.until("code=0")
    assert all(twist.twist == TwistStamped().twist for twist in [*listener.asked, *listener.arm])


def take_over(terminal: Terminal, listener: Listener, options: str = "") -> None:
    """Start teleop and let it drive."""
    terminal.type(f"clear; {TELEOP} {options}; echo code=$?")
    terminal.until(r"driver +HOLD")
    listener.until(lambda: listener.drivers[-1:] == ["HOLD"], "HOLD")
    listener.until(lambda: len(listener.get_publishers_info_by_topic("teleop/delta_twist_cmds")) == 1, "the teleop's topics")
    terminal.press("t")
    terminal.until(r"driver +HUMAN")


def way_m(twists: list[TwistStamped]) -> float:
    """How far the arm goes along x when each command holds until the next one [m]."""
    stamps_s = [twist.header.stamp.sec + twist.header.stamp.nanosec / 1e9 for twist in twists]
    assert stamps_s == sorted(stamps_s)
    return sum(twist.twist.linear.x * (after_s - stamp_s) for twist, stamp_s, after_s in zip(twists, stamps_s, stamps_s[1:], strict=False))


def test_a_key_press_is_one_jog_on_the_teleop_topic_and_on_the_arm(terminal: Terminal, listener: Listener, command_node: None) -> None:
    take_over(terminal, listener, "--step-mm 10")
    assert not any(twist.twist.linear.x for twist in listener.asked)
    started = len(listener.asked)
    terminal.press("w")
    listener.until(lambda: any(twist.twist.linear.x for twist in listener.arm), "the arm to move")
    listener.until(lambda: not listener.asked[-1].twist.linear.x and not listener.arm[-1].twist.linear.x, "zeros")
    listener.rest()
    jog = listener.asked[started:]
    speeds = [twist.twist.linear.x for twist in jog]
    assert {twist.header.frame_id for twist in jog} == {"wx250s/base_link"} and sorted(set(speeds)) == pytest.approx([0.0, 0.05])
    assert speeds == sorted(speeds, reverse=True) and speeds[-3:] == [0.0] * 3, "a jog, then zeros, then silence"
    assert way_m(jog) == pytest.approx(0.010, abs=0.002)
    assert 0.005 < way_m(listener.arm) < 0.013, "to a tick of command_node at both ends"

    before = way_m(listener.asked)
    terminal.press("-N", "30", "s")  # as a key that is held, all at once
    listener.until(lambda: listener.asked[-1].twist.linear.x < 0, "the way back")
    listener.rest()
    assert way_m(listener.asked) - before == pytest.approx(-0.010, abs=0.002), "one jog, and nothing was queued"

    terminal.press("c")
    listener.until(lambda: listener.openings, "the gripper to be asked")
    listener.rest()
    assert set(listener.openings) == {0.0}
    terminal.press("q")
    terminal.until("code=0")
    listener.until(lambda: listener.drivers[-2:] == ["HUMAN", "HOLD"], "HOLD before leaving")
    assert listener.asked[-1].twist == listener.arm[-1].twist == TwistStamped().twist


def jog_and(listener: Listener, terminal: Terminal, end: Callable[[], None], driver: str) -> None:
    """While the human drives: begin a jog of 20 mm, end it otherwise, and see zeros and the new driver."""
    for _ in range(5):  # a key that a busy machine read late moves nothing, as promised: press again
        way_before_m, asked, moved = way_m(listener.asked), len(listener.asked), len(listener.arm)
        terminal.press("w")
        patience = time.monotonic() + 3.0
        while not (moving := any(twist.twist.linear.x for twist in listener.arm[moved:])) and time.monotonic() < patience:
            time.sleep(0.01)
        if moving:
            break
        listener.rest()
    assert moving, "five presses, and the arm did not move"
    end()
    listener.until(lambda: listener.drivers[-2:] == ["HUMAN", driver], f"{driver} instead of HUMAN")
    listener.rest()
    assert len(listener.asked) > asked and listener.asked[-1].twist == listener.arm[-1].twist == TwistStamped().twist
    assert way_m(listener.asked) - way_before_m < 0.022, "one step of 20 mm and a tick"


def test_every_key_that_gives_the_arm_away_ends_the_jog_first(terminal: Terminal, listener: Listener, command_node: None) -> None:
    listener.create_publisher(ActionChunk, "action_chunk", NEWEST_RELIABLE)  # somebody whom the arm can be given to
    take_over(terminal, listener, "--step-mm 20")
    for key, driver in (("p", "POLICY"), ("h", "HOLD"), ("C-z", "HOLD"), ("Space", "STOPPED")):
        jog_and(listener, terminal, lambda key=key: terminal.press(key), driver)  # type: ignore[misc]
        if key == "C-z":
            terminal.until("Stopped")
            terminal.type("fg")
            terminal.until("continued; press t")
            terminal.press("w")
            terminal.until("the driver is HOLD: press t to take over")
        if key != "Space":
            terminal.press("t")
            terminal.until(r"driver +HUMAN")


@pytest.mark.parametrize("end", ["Ctrl-C", "SIGTERM", "hang up"])
def test_however_teleop_ends_the_arm_holds(terminal: Terminal, listener: Listener, command_node: None, end: str) -> None:
    take_over(terminal, listener, "--step-mm 20")
    process = terminal.child()
    ways = {"Ctrl-C": lambda: terminal.press("C-c"), "SIGTERM": process.terminate, "hang up": terminal.close}  # closed: a lost connection
    jog_and(listener, terminal, ways[end], "HOLD")
    process.wait(DEADLINE_S)


def test_a_second_teleop_is_refused_by_name(terminal: Terminal, listener: Listener, command_node: None) -> None:
    listener.create_publisher(TwistStamped, "teleop/delta_twist_cmds", 1)
    terminal.type(TELEOP)
    terminal.until("/teleop/delta_twist_cmds has another publisher: listener. End it: only one hand may drive.")
    terminal.press("w")
    terminal.until("> /teleop/delta_twist_cmds has another publisher")


def test_the_terminal_is_given_back_on_pause_signal_and_error(terminal: Terminal, command_node: None) -> None:
    before = terminal.settings()
    terminal.type(TELEOP)
    terminal.until(r"driver +HOLD")
    terminal.press("C-z")
    terminal.until("Stopped")
    assert terminal.settings() == before
    terminal.type("fg")
    terminal.until("continued; press t to take over")
    terminal.press("Space")
    terminal.until(r"driver +STOPPED")
    terminal.child().send_signal(signal.SIGTERM)
    terminal.until(re.escape(PROMPT) + r"\s*$")
    assert terminal.settings() == before

    terminal.type(f"{TELEOP} --namespace 'not a name'; echo code=$?")
    terminal.until(r"namespace 'not a name' is not one of ROS(.|\n)*code=2")
    assert terminal.settings() == before


@pytest.mark.parametrize(("options", "words"), [
    (["--step-mm", "25"], "25 mm is not taken; give 1 to 20 mm"), (["--step-deg", "0"], "0 degrees is not taken"),
    ([], "needs a terminal")])
def test_a_wrong_call_is_refused(options: list[str], words: str, clean_environment: dict[str, str]) -> None:
    done = subprocess.run([*shlex.split(TELEOP), *options], env=clean_environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 2 and words in done.stderr, done.stderr
