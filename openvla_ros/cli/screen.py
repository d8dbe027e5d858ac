"""How `openvla-ros run` shows itself: a live table for people, plain lines for logs, nothing for programs."""

from __future__ import annotations

import re
from time import monotonic

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from openvla_ros.ros.tally import View, spoken

TOLD_AGAIN_S = 30.0
"""A line about a problem comes again after so long, when it is still there; its numbers change all the time."""


class Quiet:
    """For `--json`: stdout carries one object, at the end."""

    def say(self, text: str) -> None:
        """Nothing."""

    def update(self, phase: str, view: View) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines:
    """One line per second, and at once when the phase changes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = self._drawn_at = monotonic()
        self._phase = ""
        self._told_at: dict[str, float] = {}  # each problem without its numbers, and when it was printed

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, phase: str, view: View) -> None:
        """Called often; prints when it is time."""
        now = monotonic()
        if phase == self._phase and now - self._drawn_at < 1.0:
            return
        self._phase, self._drawn_at = phase, now
        total = view.stage_ms.get("total")
        self.say(f"[{now - self._began:6.1f} s] {phase}: driver {view.driver}, {view.chunks} chunks"
                 + (f" at {view.hz:.1f} Hz" if view.hz else "") + (f", {total:.0f} ms each" if total else "")
                 + f", {view.steps_started} steps, {view.faults} faults, {view.dropped} frames dropped"
                 + (f"; {view.task}" if view.task else ""))
        for problem in view.problems:
            kind = re.sub(r"[0-9.]+", "", problem)
            if now - self._told_at.get(kind, -TOLD_AGAIN_S) >= TOLD_AGAIN_S:
                self._told_at[kind] = now
                self.say(f"           {problem}")

    def close(self) -> None:
        """Nothing to tidy."""


class LiveTable:
    """A table that is drawn anew four times per second, in a terminal, with a line below it where somebody types."""

    def __init__(self, console: Console, hint: str = "") -> None:
        """hint: what can be typed; empty where nothing can."""
        self._began = monotonic()
        self._hint, self._text = hint, ""
        self._shown: tuple[str, View] = ("starting", View())
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._live.start()

    def type(self, text: str) -> None:
        """The unfinished line; drawn at once, so that keys are seen as they are pressed."""
        self._text = text
        self._live.update(self._draw(), refresh=True)

    def say(self, text: str) -> None:
        """A line that stays, above the table."""
        self._live.console.print(text, markup=False, highlight=False)

    def update(self, phase: str, view: View) -> None:
        """Hand over the newest state; drawn when it is time."""
        self._shown = phase, view
        self._live.update(self._draw())

    def _draw(self) -> Group:
        table = draw(self._shown[0], monotonic() - self._began, self._shown[1])
        if not self._hint:
            return table
        line = Text("> ", style="bold") + Text(self._text, style="bold") + Text("▏" if self._live.is_started else "")
        return Group(table, line, Text(f"  {self._hint}", style="dim"))

    def close(self) -> None:
        """Leave the last table on the screen, without the line."""
        self._hint = ""
        self._live.update(self._draw())
        self._live.stop()


def draw(phase: str, seconds: float, view: View) -> Group:
    """The table and, below it, what the nodes complain about."""
    table = Table(title=f"openvla-ros run: {phase}, {seconds:.0f} s", title_justify="left", show_header=False, min_width=72)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    driver = {"POLICY": "green", "STOPPED": "red"}.get(view.driver, "yellow")
    table.add_row("instruction", Text(view.instruction or "none yet"))
    if view.objects:
        table.add_row("", Text(view.task or "nothing to do", style="bold green" if view.task.startswith("done") else "dim"))
        table.add_row(f"scene, {view.scene}", Text(view.objects.replace("; ", "\n")))
    table.add_row("driver", Text(view.driver, style=driver) + Text(f"  {view.stop_reason}", style="dim"))
    table.add_row("chunks", f"{view.chunks}" + (f" at {view.hz:.1f} Hz" if view.hz else ""))
    latency = "  ".join(f"{name} {duration:.0f}" for name, duration in view.stage_ms.items())
    table.add_row("latency", f"{latency} ms" if latency else "none yet")
    table.add_row("last step", spoken(view.delta))
    table.add_row("steps started", str(view.steps_started))
    table.add_row("frames dropped", f"{view.dropped}    faults {view.faults}")
    table.add_row("safety rules", ", ".join(f"{name} {count}" for name, count in view.rules.items()) or "none acted")
    return Group(table, *(Text(f"! {problem}", style="yellow") for problem in view.problems))
