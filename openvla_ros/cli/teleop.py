"""`openvla-ros teleop`: drive the arm with the keys of a terminal. Each key press is one bounded jog; nothing else is needed.

This module joins the keyboard (`cli/terminal.py`), the jogs (`ros/jog.py`) and ROS (`ros/teleop_link.py`), and draws the screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from time import monotonic, sleep
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from openvla_ros.action.teleop import TeleopRequest
from openvla_ros.cli.terminal import Keyboard
from openvla_ros.contract import FloatArray
from openvla_ros.errors import DependencyMissing
from openvla_ros.ros.jog import ESCAPE, MOVES, OPENINGS, STALE_S, Jogger, StepSize, spell

if TYPE_CHECKING:
    from openvla_ros.ros.teleop_link import Status, TeleopLink

SEND_S = 0.02
"""Between two messages while a jog or its zeros are sent: 50 Hz."""

IDLE_S = 0.05
DRAW_S = 0.1

ANSWER_S = 2.0
"""Longest wait for an answer of command_node."""

STOPS = (" ", ESCAPE)
ASKS = {"t": ("take over", "HUMAN"), "p": ("policy", "POLICY"), "h": ("hold", "HOLD")}
RESET, QUIT = "R", "q"
SIZES: dict[str, Callable[[StepSize], StepSize]] = {
    "+": lambda size: size.longer(1), "=": lambda size: size.longer(1), "-": lambda size: size.longer(-1),
    ".": lambda size: size.wider(1), ",": lambda size: size.wider(-1)}

HELP = (
    ("w s a d", "forward, back, left, right; or arrows", "r f", "up, down"),
    ("i k j l", "tip forward, back; turn left, right", "u o", "tilt left, right"),
    ("c v", "close, open the gripper", "- + , .", "step size; angle"),
    ("SPACE ESC", "EMERGENCY STOP (not safety-rated)", "R", "reset the stop"),
    ("t", "take over: the keys drive", "p h", "policy drives; hold"),
    ("q Ctrl-C", "quit; the arm holds", "", ""),
)


def main(
    namespace: Annotated[str, typer.Option(help="Namespace of command_node, such as /left_arm.")] = "",
    step_mm: Annotated[float, typer.Option(help="Translation per key press, 1 to 20 mm.")] = 5.0,
    step_deg: Annotated[float, typer.Option(help="Rotation per key press, 1 to 10 degrees.")] = 5.0,
    sim_time: Annotated[bool, typer.Option("--sim-time", help="command_node uses simulated time (/clock).")] = False,
) -> None:
    """Drive the arm with the keyboard: take over, jog, open and close, hand back to the policy, stop.

    Each key press is one bounded jog of 0.2 s; a held key is not queued. Jogs are sent only while the driver is HUMAN (key t).
    Not a safety device: keep the hand at the hardware stop.
    """
    for package in ("rclpy", "openvla_msgs"):
        if find_spec(package) is None:
            raise DependencyMissing(f"teleop needs ROS 2, and {package} is not importable. Use make setup, or source a ROS workspace in "
                                    "which openvla_msgs is built.")
    jogger = Jogger(StepSize(step_mm, step_deg))
    with Keyboard() as keyboard:
        from openvla_ros.ros.teleop_link import TeleopLink  # late: --help needs no ROS

        link = TeleopLink(namespace, sim_time)
        try:
            Session(keyboard, link, jogger, Console()).run()
        finally:
            link.close()


@dataclass
class Question:
    """What command_node was asked and has not answered yet."""

    what: str
    future: Any
    until_s: float


class Session:
    """One sitting at the keyboard, from taking the terminal to giving it back."""

    def __init__(self, keyboard: Keyboard, link: TeleopLink, jogger: Jogger, console: Console) -> None:
        self._keyboard, self._link, self._jogger, self._console = keyboard, link, jogger, console
        self._questions: list[Question] = []
        self._message, self._grave = "", False
        self._opening = ""

    def run(self) -> None:
        """Until the human or a signal ends it. Whatever the reason, zeros are sent and a human driver becomes HOLD."""
        try:
            with Live(console=self._console, auto_refresh=False) as live:
                self._loop(live)
        finally:
            self._let_go()

    def _loop(self, live: Live) -> None:
        drawn_s, read_s = -math.inf, monotonic()
        while not self._keyboard.leaving:
            now_s = monotonic()
            sending = self._jogger.request(now_s) is not None
            keys = spell(self._keyboard.read(self._jogger.until_s(now_s, SEND_S if sending else IDLE_S)))
            if self._keyboard.pausing:
                self._pause(live)
                read_s = monotonic()
                continue
            now_s = monotonic()
            self._obey(keys, now_s, stale=now_s - read_s > STALE_S)
            read_s = now_s
            self._send(monotonic())
            self._listen(monotonic())
            if now_s - drawn_s >= DRAW_S or keys:
                live.update(self._screen(now_s), refresh=True)
                drawn_s = now_s

    # ------------------------------------------------------------------ keys

    def _obey(self, keys: tuple[str, ...], now_s: float, stale: bool) -> None:
        if any(key in STOPS for key in keys):  # whatever else was typed before or after it
            self._stop(now_s)
            return
        for key in keys:
            if key == QUIT:
                self._keyboard.leaving = True
            elif stale:
                self._say("these keys waited too long and were not obeyed", grave=True)
            elif key in MOVES or key in OPENINGS:
                self._jog(key, now_s)
            elif key in SIZES:
                self._jogger.size = SIZES[key](self._jogger.size)
            elif key in ASKS:
                what, driver = ASKS[key]
                self._rest(now_s)
                self._ask(what, self._link.choose(driver), now_s)
            elif key == RESET:
                self._rest(now_s)
                self._ask("reset", self._link.trigger("reset_stop"), now_s)
            else:
                self._say(f"the key {key!r} does nothing" + (". Is caps lock on?" if key.lower() in MOVES else ""))

    def _jog(self, key: str, now_s: float) -> None:
        if obstacle := self._obstacle(self._link.status()):
            self._say(obstacle, grave=True)
        elif self._jogger.press(key, now_s):
            self._say("")
            if key in OPENINGS:
                self._opening = "open" if OPENINGS[key] else "close"

    @staticmethod
    def _obstacle(status: Status) -> str:
        """Why no jog may be sent now."""
        if status.trouble:
            return status.trouble
        if status.driver == "STOPPED":
            return "the arm is STOPPED. Find out why, press R (reset), then t (take over)."
        return "" if status.driver == "HUMAN" else f"the driver is {status.driver}: press t to take over."

    def _rest(self, now_s: float) -> None:
        """End a jog before something else is asked: while the hand is on the keys, command_node does not give the arm away."""
        if self._jogger.running(now_s) is not None:
            self._jogger.cancel(now_s)
            self._link.send(TeleopRequest(deadman=True))

    def _stop(self, now_s: float) -> None:
        self._jogger.cancel(now_s)
        self._questions.clear()  # an answer that comes late is about a world before the stop
        self._ask("emergency stop", self._link.trigger("emergency_stop"), now_s)

    def _ask(self, what: str, future: Any, now_s: float) -> None:
        if future is None:
            urgent = "Use the hardware stop. " if what == "emergency stop" else ""
            self._say(f"{what}: nobody answers. {urgent}{self._link.status().trouble or 'command_node lacks the service.'}", grave=True)
        else:
            self._questions.append(Question(what, future, now_s + ANSWER_S))
            self._say(f"{what}: asked")

    # ------------------------------------------------------------------ the arm

    def _send(self, now_s: float) -> None:
        jog = self._jogger.running(now_s)
        if jog is not None and (obstacle := self._obstacle(self._link.status())):
            self._jogger.cancel(now_s)  # somebody else took the arm, or nobody listens any more
            self._say(obstacle, grave=True)
        request = self._jogger.request(now_s)
        if request is not None:
            self._link.send(request)

    def _listen(self, now_s: float) -> None:
        for question in tuple(self._questions):
            if question.future.done():
                self._questions.remove(question)
                answer = question.future.result()
                reason = answer.reason if hasattr(answer, "reason") else answer.message
                self._say(f"{question.what}: {'done. ' if answer.success else 'refused: '}{reason}".rstrip(), grave=not answer.success)
            elif now_s > question.until_s:
                self._questions.remove(question)
                urgent = "Use the hardware stop. " if question.what == "emergency stop" else ""
                self._say(f"{question.what}: no answer within {ANSWER_S:g} s. {urgent}Is command_node alive?", grave=True)

    def _let_go(self) -> None:
        """Zeros, and HOLD if the human drives; waits for the answer, but not for ever."""
        self._jogger.cancel(monotonic())
        self._questions.clear()
        future: Any = self._link.choose("HOLD") if self._link.status().driver == "HUMAN" else None
        self._link.send(TeleopRequest())
        until_s = monotonic() + ANSWER_S
        while future is not None and not future.done() and monotonic() < until_s:
            sleep(SEND_S)
            self._link.send(TeleopRequest())
        self._link.flush()

    def _pause(self, live: Live) -> None:
        self._let_go()
        live.stop()
        self._keyboard.pause()
        live.start()
        self._say("continued; press t to take over")

    # ------------------------------------------------------------------ the screen

    def _say(self, message: str, grave: bool = False) -> None:
        self._message, self._grave = message, grave

    def _screen(self, now_s: float) -> Group:
        status, size = self._link.status(), self._jogger.size
        state = Table.grid(padding=(0, 2))
        dry = {None: "unknown", True: "yes: nothing reaches the arm", False: "no: the arm moves"}[status.dry_run]
        rows = (("driver", status.driver or "unknown"), ("arm", status.stop_reason or ("moving" if status.base_frame else "unknown")),
                ("dry run", dry), ("rules", ", ".join(status.rules) or "none acted"),
                ("measured", spoken_pose(status.measured)), ("target", spoken_pose(status.target)),
                ("step", f"{size.translation_mm:g} mm, {size.rotation_deg:g} degrees"), ("gripper", self._opening or "not asked yet"))
        for name, value in rows:
            state.add_row(Text(name, style="bold"), Text(value, style="reverse" if value == "HUMAN" else ""))
        keys = Table.grid(padding=(0, 2))
        for row in HELP:
            keys.add_row(Text(row[0], style="bold"), row[1], Text(row[2], style="bold"), row[3])
        jog = self._jogger.running(now_s)
        said = Text(f"> {self._message}" + (f" [{jog.key}]" if jog else ""), style="yellow" if self._grave else "")
        trouble = Text(f"! {status.trouble}" if status.trouble and status.trouble != self._message else "", style="yellow")
        title = Text(f"openvla-ros teleop: {self._link.place}", style="bold")
        return Group(title, state, said, trouble, keys)  # the keys last: a small window cuts them off first


def spoken_pose(pose: FloatArray | None) -> str:
    """[7] x y z and quaternion x y z w, for people."""
    if pose is None:
        return "not known"
    from scipy.spatial.transform import Rotation

    with np.errstate(all="ignore"):
        roll, pitch, yaw = Rotation.from_quat(pose[3:]).as_euler("xyz", degrees=True)
    return (f"x {pose[0]:+.3f}  y {pose[1]:+.3f}  z {pose[2]:+.3f} m   "
            f"roll {roll:+.1f}  pitch {pitch:+.1f}  yaw {yaw:+.1f} degrees")
