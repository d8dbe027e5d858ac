"""Hands what a person says to a run: instructions, a stop, another scene; and knows when nothing is left to be done.

A line is an instruction; an empty one stops the arm; `reset` or `reset 7` lays out another scene, where there is a simulation.
Lines that are typed count at once. Lines of a pipe wait until the instruction before them was carried out, or its time has passed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from openvla_ros.errors import InstructionError
from openvla_ros.observation.assemble import check_instruction
from openvla_ros.ros.observer import Observer

ASK_AGAIN_S = 1.0
"""Distance of two requests to a service whose answer may have been lost. Each may be asked twice."""

REFUSED_AGAIN_S, REFUSED_LONG_S = 0.1, 3.0
"""How soon a refused driver is asked for again, and after which time the refusal is told. Parts that have just found each other refuse
at first: the first joint states and chunks are on their way."""

SILENT_S = 0.75
"""So long after HOLD command_node has sent its last word: the ramp of a soft stop and half a second of zeros."""

LINGER_S, HELD_S = 1.5, 5.0
"""How long a run looks on after the last task, so that its film has an end; and after the arm is held, as it may go on."""

CLOCK_RULE = "clock"
"""How command_node counts that simulated time stood still, which it cannot tell from a simulation that died."""

RESET = re.compile(r"reset(?:\s+(\d+))?")

Work = Generator[None, None, None]


class Prompter:
    """Called on the main thread, `tick` often; time is an argument."""

    def __init__(self, observer: Observer, say: Callable[[str], None], seed: int | None, drive: bool) -> None:
        """seed: of the scene that is there; None without a simulation. drive: choose the driver POLICY, also after a new scene."""
        self._observer, self._say, self._drive = observer, say, drive
        self._seed = seed
        self._lines: deque[str] = deque()
        self._ended = False
        self._now_s = 0.0
        self._work: Work | None = None
        self._current, self._heard = "", False  # what was given last, and whether the policy has said it back
        self._over_since_s: float | None = None
        self._stalls = 0  # of the simulated clock that were dealt with
        self._drove = ""  # who did last, other than HOLD

    @property
    def scene(self) -> str:
        """Which one it is, for people; empty without a simulation."""
        return "" if self._seed is None else f"seed {self._seed}"

    def give(self, instruction: str) -> None:
        """The first instruction, as early as one likes."""
        self._instruct(instruction)

    def begin(self, lines: Sequence[str], otherwise: str) -> None:
        """From here on `tick` is called. Lets the policy drive, if it is to. otherwise: the instruction where none came so far."""
        self._lines.extend(lines)
        if not self._lines and not self._current and otherwise:
            self._instruct(otherwise)
        if self._drive:
            self._work = self._drive_soon()

    def tick(self, now_s: float, lines: Sequence[str], patient: bool, ended: bool) -> bool:
        """Do what can be done now. Returns true when nothing is left to be done: no line will come, and the last task is over.

        lines: that came since. patient: each waits for the task before it. ended: there will be no more.
        """
        self._now_s = now_s
        self._lines.extend(lines)
        if self._work is not None and next(self._work, self) is self:
            self._work = None
        if (driver := self._observer.tally.driver) != "HOLD":
            self._drove = driver
        if self._work is None:
            self._work = self._resume()
        if self._work is None and self._lines and (not patient or self._over()):
            self._work = self._obey(self._lines.popleft())
        return ended and self._work is None and not self._lines and self._over()

    # ------------------------------------------------------------------ what a line leads to

    def _obey(self, line: str) -> Work:
        reset = RESET.fullmatch(line.lower())
        if reset is not None and self._seed is not None:
            yield from self._reset(int(reset[1]) if reset[1] else self._seed + 1)
            return
        self._instruct(line)
        if line and self._drive and self._seed is not None and self._observer.tally.driver == "HOLD":
            yield from self._drive_soon()  # POLICY had fallen to HOLD: the person who types lets it go on. In a simulation only

    def _instruct(self, text: str) -> None:
        try:
            instruction = check_instruction(text)
        except InstructionError as error:
            self._say(f"not sent: {error}")
            return
        self._say(f"> {instruction or '(stop)'}")
        self._send(instruction)

    def _send(self, instruction: str) -> None:
        self._current, self._heard, self._over_since_s = instruction, False, None
        self._observer.instruct(instruction)

    def _reset(self, seed: int) -> Work:
        self._say(f"> reset {seed}")
        self._send("")
        yield from self._ask(lambda: self._observer.set_driver("hold"))
        until_s = self._now_s + SILENT_S
        while self._now_s < until_s:
            yield
        answer = yield from self._ask(lambda: self._observer.reset_scene(seed))
        if answer.success:
            self._seed = seed
            self._say(f"scene {seed}: {described(answer.colours)}")
        else:
            self._say(f"the scene stays: {answer.reason}")
        if self._drive:
            yield from self._drive_soon()

    def _resume(self) -> Work | None:
        """On a busy computer simulated time may stand still for a moment, and command_node holds the arm, as it must. Here the simulation
        lives, so POLICY goes on, if it was POLICY that drove. Whatever else ended it stays ended."""
        stalls = self._observer.tally.rule_count(CLOCK_RULE)
        if stalls <= self._stalls or self._seed is None or not self._drive or self._observer.tally.driver != "HOLD" or (
                self._drove != "POLICY"):
            return None
        self._say("simulated time stood still for a moment, and the arm was held: this computer is busy. POLICY goes on")
        return self._drive_soon()

    def _drive_soon(self) -> Work:
        told, began_s = False, self._now_s
        while not (answer := (yield from self._ask(lambda: self._observer.set_driver("policy")))).success:
            if not told and self._now_s - began_s > REFUSED_LONG_S:
                self._say(f"POLICY is refused: {answer.reason}")
                told = True
            until_s = self._now_s + REFUSED_AGAIN_S
            while self._now_s < until_s:
                yield
        self._stalls = self._observer.tally.rule_count(CLOCK_RULE)  # those before it are over

    def _ask(self, request: Callable[[], Any]) -> Generator[None, None, Any]:
        """The answer of a service, however often it must be asked."""
        answers, ask_at_s = [request()], self._now_s + ASK_AGAIN_S
        while not any(answer.done() for answer in answers):
            yield
            if self._now_s >= ask_at_s:
                answers.append(request())
                ask_at_s = self._now_s + ASK_AGAIN_S
        return next(answer for answer in answers if answer.done()).result()

    # ------------------------------------------------------------------ whether a task is over

    def _over(self) -> bool:
        """The instruction given last came to its end, and a little more time passed; true when it was a stop."""
        if not self._current:
            return True
        patience_s = self._patience_s()
        if patience_s is None:
            self._over_since_s = None
            return False
        if self._over_since_s is None:
            self._over_since_s = self._now_s
        return self._now_s - self._over_since_s >= patience_s

    def _patience_s(self) -> float | None:
        """How long to look on from the moment at which the instruction came to its end; None as long as it did not.

        Its end: it was carried out, its time has passed, somebody else gave another one, or nobody drives any more.
        """
        scene = self._observer.scene
        if scene is None:
            return None
        in_force = scene.instruction == self._current
        self._heard = self._heard or in_force
        if self._heard and (scene.over or not in_force):
            return LINGER_S
        return HELD_S if self._heard and self._observer.tally.driver in ("HOLD", "STOPPED") else None


def described(colours: Sequence[str]) -> str:
    """What is on the table, for people."""
    return f"{', '.join(colours)} block and a plate"


def help_text(simulated: bool) -> str:
    """What can be typed, in one line."""
    return f"type what to do; an empty line stops the arm; {'reset or reset 7: another scene; ' if simulated else ''}Ctrl-C ends"
