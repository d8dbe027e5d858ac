"""Runs the parts together: start, wait until they are ready (never for a fixed time), drive the lifecycle, stop in order.

A part that loads slowly is never killed. A part that dies is named, and the rest stops safely: the policy says "stop", then
command_node sends zeros, then all leave.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import Any, Protocol

from openvla_ros.errors import OpenvlaRosError
from openvla_ros.ros.chronicle import Page
from openvla_ros.ros.observer import Observer
from openvla_ros.ros.plan import Plan
from openvla_ros.ros.processes import Part, Process
from openvla_ros.ros.prompter import Prompter
from openvla_ros.ros.tally import View

TICK_S = 0.1
"""How often the supervisor looks at its parts."""

ANSWER_S = 5.0
"""Longest wait for an answer while stopping: the arm must not wait for a node that hangs."""

SILENT_S = 1.0
"""No command on the arm topic for so long means that the arm fell silent (command_node sends zeros for 0.5 s first)."""

SILENCE_DEADLINE_S = 15.0
"""Longest wait for that after a recording has ended."""

ANSWER_AGAIN_S = 1.0
"""Distance of two requests to a service whose answer may have been lost, and that may be asked twice."""

COUNTS_DEADLINE_S = 15.0
"""Longest wait for both nodes' final counts; each says them once per second."""

HANDOVER_AGAIN_S = 0.1
"""Distance of two requests for the driver while a recording plays: it is refused until the recording's clock runs."""

FAREWELL_LINES = 5
"""The player's last words are one JSON line with what it sent; ROS may log a little after it."""


FIRST_MOTION = "first motion"
"""The last step of a start."""

RUNNING = ("playing", "running")
"""The two phases in which the policy is meant to see frames."""

STATES = {"configure": "inactive", "activate": "active"}
"""Where a transition of policy_node leads."""

REFUSED_CODE = 2
"""Exit code of a part that refuses its parameters or its recording: the user's to mend, not a fault."""


ORDERLY_CODES = (0, -signal.SIGTERM)
"""Exit codes of a part that was asked to stop: a part that is still starting has no ear for SIGTERM yet, and just ends."""


class PartDied(OpenvlaRosError):
    """A part ended although nobody asked it to. The message names it and shows the end of its log."""


class Refused(OpenvlaRosError):
    """A part refused its parameters, or policy_node a transition; the message says why."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM."""


class Screen(Protocol):
    """Where progress is shown. All calls come from the main thread."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def update(self, phase: str, view: View) -> None:
        """The newest state; called every TICK_S, drawn as often as it likes."""

    def close(self) -> None:
        """Give the terminal back. More than once does no harm."""


class Input(Protocol):
    """What a person says while it runs. All calls come from the main thread."""

    ended: bool
    """No more lines will come."""

    @property
    def leaving(self) -> bool:
        """The person asks for the end."""

    def wait(self, longest_s: float) -> None:
        """Let time pass, and take what is said meanwhile."""

    def lines(self) -> list[str]:
        """What was said since the last call."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: exit code as in cli/app.py, an error in words (empty when good), and the summary."""

    exit_code: int
    error: str
    summary: Mapping[str, Any]


class Supervisor:
    """One run. `run` must be called on the main thread (signals), once."""

    def __init__(self, plan: Plan, screen: Screen, said: Input, log_folder: Path, began_s: float,
                 started: Sequence[Process] = ()) -> None:
        """began_s: steady time from which the seconds of the start are counted. started: parts that run already; they are its own now."""
        self._plan, self._screen, self._said, self._log_folder = plan, screen, said, log_folder
        self._step_began_s = self._began_s = began_s
        self._took_s: dict[str, float] = {}  # each step of the start, in order
        self._processes: dict[str, Process] = {process.name: process for process in started}
        self._stop_asked = False
        self._active = False  # before that, nobody drives and there is nothing to silence
        self._complete = False  # the recording came to its end and the final counts came after it
        self._observer: Observer | None = None
        self._prompter: Prompter | None = None
        self.page = Page()
        """What the run kept of itself, once it has ended."""

    def run(self) -> Outcome:
        """From start to the last process's end. Never leaves a process behind."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        error, code = "", 0
        plan = self._plan
        observer = self._observer = Observer(plan.namespace, plan.command_topic, plan.instruction_topic, plan.gripper, plan.film)
        try:
            try:
                self._conduct(observer)
            except Interrupted:
                self._screen.say("stopping")
            except PartDied as trouble:
                error, code = str(trouble), 1
            except Refused as trouble:
                error, code = str(trouble), 2
            observer.tally.on_end()
            if observer.scene is not None:
                observer.scene.close()
            error, code = self._stop(observer, error, code)
            self.page = observer.chronicle.page()
            return Outcome(code, error, self._summary(observer))
        finally:
            for process in self._processes.values():
                process.kill()
            observer.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _summary(self, observer: Observer) -> dict[str, Any]:
        summary = observer.tally.summary(self._frames_played(), self._complete)
        tasks = {} if observer.scene is None else {"tasks": [attempt.plain() for attempt in observer.scene.attempts]}
        took_s = {name: round(seconds, 2) for name, seconds in self._took_s.items()}
        return {**summary, **tasks, "start_s": took_s, "log_folder": str(self._log_folder)}

    # ------------------------------------------------------------------ the way up

    def _conduct(self, observer: Observer) -> None:
        plan = self._plan
        for part in plan.first:
            if part.name not in self._processes:
                self._start(part)
        if plan.player is None and plan.instruction_topic:
            drives = plan.driver == "policy" and plan.simulation is not None
            self._prompter = Prompter(observer, self._screen.say, plan.seed if plan.simulation else None, drives)
            if plan.instruction:
                self._prompter.give(plan.instruction)
        elif plan.instruction_topic:
            observer.instruct(plan.instruction)
        self._wait("starting", lambda: observer.policy_answers)
        self._step_is_done("start")
        self._transit(observer, "configure", "loading the policy")
        self._wait("waiting for command_node", lambda: observer.command_answers)
        self._transit(observer, "activate", "activating")
        self._step_is_done("loading")
        self._active, active_at = True, monotonic()
        if plan.player is not None:
            self._begin_recording(observer, plan.player)
            return self._play(observer, self._processes[plan.player.name], active_at)
        if plan.simulation is None:
            self._hand_over_to_robot(observer)
        else:
            self._wait("waiting for the simulation", lambda: observer.scene_answers)
        self._listen(active_at)

    def _begin_recording(self, observer: Observer, player: Part) -> None:
        """Start the player, which waits, and let it begin when policy_node has found its camera.

        A frame that is sent before that is lost, and only the reader's side can tell: the writer may know of the reader seconds earlier.
        """
        self._start(player)
        self._wait("starting the recording", lambda: observer.tally.camera_publishers() > 0)
        answer, ask_at = None, 0.0
        while answer is None or not answer.done():
            if monotonic() >= ask_at:  # an answer is lost when it comes before its reader was found: ask again
                answer, ask_at = observer.resume_player(), monotonic() + ANSWER_AGAIN_S
            self._look("starting the recording")

    def _play(self, observer: Observer, player: Process, active_at: float) -> None:
        """Until the recording has ended, and the arm fell silent after it."""
        plan = self._plan
        asking, ask_at = None, 0.0
        handed_over = plan.driver != "policy"
        again = plan.loops and not handed_over
        while plan.seconds is None or monotonic() - active_at < plan.seconds:
            self._look(RUNNING[0] if handed_over else "starting the recording")
            if player.exit_code == 0:
                return self._wait_for_silence(observer)
            if handed_over and not (again and observer.tally.driver == "HOLD"):
                continue
            if asking is not None and asking.done():
                handed_over, asking = bool(asking.result().success), None
            elif asking is None and monotonic() >= ask_at:
                asking, ask_at = observer.set_driver("policy"), monotonic() + HANDOVER_AGAIN_S

    def _listen(self, active_at: float) -> None:
        """Until the time is over, or the last task of a simulation whose input has ended."""
        plan, prompter, said = self._plan, self._prompter, self._said
        if prompter is not None:
            prompter.begin(said.lines(), plan.suggestion)
        while plan.seconds is None or monotonic() - active_at < plan.seconds:
            self._look(RUNNING[1])
            if prompter is None:
                continue
            idle = prompter.tick(monotonic(), said.lines(), plan.patient, said.ended)
            if idle and plan.simulation is not None and plan.driver == "policy" and plan.seconds is None:
                return

    def _hand_over_to_robot(self, observer: Observer) -> None:
        """A real arm gets one request; a refusal stays a refusal until a person asks again."""
        if self._plan.driver != "policy":
            self._screen.say("driver is HOLD: nothing moves. To hand over: ros2 service call "
                             f"{self._plan.namespace}/set_driver openvla_msgs/srv/SetDriver '{{driver: 1}}', or start with --driver policy")
            return
        answer = self._answer(observer.set_driver("policy"), "asking for the driver POLICY")
        self._screen.say("driver is POLICY" if answer.success else
                         f"driver stays {observer.tally.driver}: {answer.reason} Correct that, then call set_driver.")

    def _transit(self, observer: Observer, transition: str, phase: str) -> None:
        answer = observer.change_state(transition)
        # Its own word counts too: an answer may be lost, and the same transition cannot be asked for twice.
        self._wait(phase, lambda: answer.done() or observer.tally.policy_state() == STATES[transition])
        if not answer.done() or answer.result().success:
            return
        heard = observer.tally.heard(self._plan.policy.name)
        until = monotonic() + ANSWER_S
        while not (reason := observer.tally.refusal()) and monotonic() < until:  # its diagnostics come once per second
            self._look(phase)
        tail = "" if reason else ":\n" + "\n".join(self._processes[self._plan.policy.name].tail())
        raise Refused(reason or f"policy_node refused to {transition}{tail}" + ("" if heard else "\n(it sent no diagnostics)"))

    def _wait_for_silence(self, observer: Observer) -> None:
        until = monotonic() + SILENCE_DEADLINE_S
        self._screen.say("the recording has ended; waiting until the arm is silent")
        while observer.arm_silent_s() < SILENT_S:
            if monotonic() > until:
                raise PartDied(f"command_node still sends commands {SILENCE_DEADLINE_S:g} s after the recording ended; it is stopped now. "
                               "This is a fault: please report it with the logs.")
            self._look("waiting for silence")
        nodes = (self._plan.policy.name, self._plan.command.name)
        heard, until = {name: observer.tally.heard(name) for name in nodes}, monotonic() + COUNTS_DEADLINE_S
        # Nothing has come in for a second, so what each says from here on are its final counts.
        while not (said := all(observer.tally.heard(name) > heard[name] for name in nodes)) and monotonic() < until:
            self._look("collecting")
        self._complete = said

    # ------------------------------------------------------------------ the way down

    def _stop(self, observer: Observer, error: str, code: int) -> tuple[str, int]:
        """Player, policy silent, arm held, then all processes. Returns the error and exit code, worse if one hung or broke down."""
        plan = self._plan
        hung = [plan.player.name] if plan.player is not None and not self._end(plan.player.name) else []
        for ready, ask, who in ((observer.policy_answers, lambda: observer.change_state("deactivate"), plan.policy.name),
                                (observer.command_answers, lambda: observer.set_driver("hold"), plan.command.name)):
            process = self._processes.get(who)
            if ready and process is not None and process.exit_code is None and self._active:
                future, until = ask(), monotonic() + ANSWER_S
                while not future.done() and monotonic() < until and process.exit_code is None:
                    sleep(TICK_S / 10)
        hung += [part.name for part in plan.first if not self._end(part.name)]  # the simulation last: the others live by its clock
        troubles = [f"{' and '.join(hung)} did not leave after SIGTERM and had to be killed; see the log in {self._log_folder}."
                    ] if hung else []
        troubles += [story(process) for name, process in self._processes.items()
                     if name not in hung and process.exit_code not in ORDERLY_CODES and process.obituary() not in error]
        return "\n".join([*([error] if error else []), *troubles]), 1 if troubles else code

    def _frames_played(self) -> int | None:
        """Camera frames that the player says it sent; None without a player, or when it did not come to say so."""
        player = self._processes.get(self._plan.player.name) if self._plan.player else None
        for line in reversed(player.tail(FAREWELL_LINES) if player else []):
            if line.startswith('{"recording"'):
                return int(json.loads(line)["sent"].get(self._plan.camera_topic, 0))
        return None

    def _end(self, name: str) -> bool:
        process = self._processes.get(name)
        return process is None or process.stop()

    # ------------------------------------------------------------------ looking after the parts

    def _start(self, part: Part) -> None:
        self._processes[part.name] = Process(part, self._log_folder)

    def _look(self, phase: str) -> None:
        """One tick: stop asked? everybody alive? show it. Raises Interrupted or PartDied."""
        assert self._observer is not None
        view, scene = self._observer.tally.view(), self._observer.scene
        if view.steps_started and FIRST_MOTION not in self._took_s:
            self._step_is_done(FIRST_MOTION)
        if scene is not None:
            view = replace(view, task=scene.verdict(), objects=scene.objects(), scene=self._prompter.scene if self._prompter else "")
        # Before and after, nodes complain about what is not there yet or any more: cameras, instructions, drivers.
        self._screen.update(phase, view if phase in RUNNING else replace(view, problems=()))
        self._said.wait(TICK_S)
        if self._stop_asked or self._said.leaving:
            raise Interrupted
        for process in self._processes.values():
            done = process is self._processes.get(self._plan.player.name) if self._plan.player else False
            if process.exit_code is not None and not (done and process.exit_code == 0):
                raise Refused(story(process)) if process.exit_code == REFUSED_CODE else PartDied(story(process))

    def _step_is_done(self, name: str) -> None:
        """Note how long a step of the start took, and say it."""
        now_s = monotonic()
        self._took_s[name] = now_s - self._step_began_s
        self._step_began_s = now_s
        together = f" ({now_s - self._began_s:.1f} s since the start)" if name == FIRST_MOTION else ""
        self._screen.say(f"{name}: {self._took_s[name]:.1f} s{together}")

    def _wait(self, phase: str, ready: Callable[[], bool]) -> None:
        while not ready():
            self._look(phase)

    def _answer(self, future: Any, phase: str) -> Any:
        self._wait(phase, future.done)
        return future.result()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop_asked:
            for process in self._processes.values():
                process.kill()
            self._screen.close()
            print("killed: the parts were not given the time to stop in order.", file=sys.stderr)
            sys.stderr.flush()
            # Not sys.exit: the main thread may be inside a wait that would catch it, and ROS threads are still running.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        self._stop_asked = True


def story(process: Process) -> str:
    """How a part ended, and the end of its log."""
    return "\n".join([process.obituary(), *(f"  {line}" for line in process.tail())])
