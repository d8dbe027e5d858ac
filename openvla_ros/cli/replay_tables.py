"""Results of `openvla-ros replay` as a person reads them in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from openvla_ros.bags.compare import Comparison
from openvla_ros.bags.replay import DimensionError, ReplayedFrame
from openvla_ros.bags.report import median_stage_ms
from openvla_ros.contract import ACTION_NAMES
from openvla_ros.regression.against import Match
from openvla_ros.regression.job import FAILED, GOOD, Result, as_words

COLOURS = {GOOD: "green", FAILED: "red"}


def show(result: Result) -> None:
    """One recording."""
    console, replay = Console(), result.replay
    assert replay is not None
    show_errors(console, f"{replay.policy} on {replay.recording}\nsize of predicted minus recorded, its bias, correlation r", replay.errors)
    faults = [frame for frame in replay.frames if frame.fault]
    console.print(f"{len(replay.frames)} frames, {len(faults)} faults{_first_fault(faults)}")
    console.print("median ms: " + ", ".join(f"{name} {value:.1f}" for name, value in median_stage_ms(replay).items()))
    for note in replay.notes:
        console.print(f"note: {note}", style="yellow", markup=False)
    if result.commanded is not None:
        counts = ", ".join(f"{name} {count}" for name, count in result.commanded.counts.items())
        console.print(f"to the arm: {counts}", soft_wrap=True)
        for change in result.commanded.changes:
            console.print(f"  {change.at_s:.2f} s: {change.driver}: {change.reason}", markup=False, soft_wrap=True)
    if result.margin_bound is not None:
        flips = f"{len(result.flips)} flips below the margin bound {result.margin_bound:g}"
        if result.status == GOOD:
            console.print(f"as expected; {flips}", style="green")
            for line in result.changes:
                console.print(f"  although {line}", markup=False, soft_wrap=True)
        else:
            console.print(as_words(result) + f"\n{flips}", style="red", markup=False, soft_wrap=True)
    for name, file in result.files.items():
        console.print(f"{name}: {file}", soft_wrap=True, markup=False)


def show_all(results: Sequence[Result], summary: Path) -> None:
    """Several recordings: a line for each, then what is wrong."""
    console = Console()
    table = Table()
    for heading in ("recording", "", "frames", "differences", "flips", "s"):
        table.add_column(heading, justify="left" if heading in ("recording", "") else "right")
    for result in results:
        frames = str(len(result.replay.frames)) if result.replay else "-"
        judged = result.margin_bound is not None
        table.add_row(result.name, f"[{COLOURS.get(result.status, 'red')}]{result.status}[/]", frames,
                      str(len(result.differences)) if judged else "-", str(len(result.flips)) if judged else "-", f"{result.seconds:.1f}")
    console.print(table)
    for result in results:
        if result.status != GOOD:
            console.print(f"{result.name}: {as_words(result)}", style="red", markup=False, soft_wrap=True)
    console.print(f"summary: {summary}", soft_wrap=True, markup=False)


def show_comparison(matches: Sequence[Match], whole: Comparison | None, summary: Path) -> None:
    """Two policies with each other."""
    console = Console()
    if whole is not None:
        show_errors(console, f"{whole.other} minus {whole.base}, {whole.frames} frames", whole.errors, whole.agreement)
        if whole.same_ids is not None:
            console.print(f"all ids equal in {whole.same_ids:.1%} of the frames")
    for match in matches:
        if match.comparison is None:
            console.print(f"{match.job.name}: {match.error}", style="red", markup=False, soft_wrap=True)
            continue
        worst = ", ".join(f"{frame.index} ({frame.dimension} {frame.apart[ACTION_NAMES.index(frame.dimension)]:+.4f})"
                          for frame in match.comparison.worst[:5] if frame.score > 0.0)
        console.print(f"{match.job.name}: {f'furthest apart in frames {worst}' if worst else 'equal'}", markup=False, soft_wrap=True)
    console.print(f"summary: {summary}", soft_wrap=True, markup=False)


def show_errors(console: Console, title: str, errors: Sequence[DimensionError], agreement: Sequence[float] | None = None) -> None:
    """One row per dimension. agreement takes the place of two columns, so that the table fits 80 characters."""
    table = Table(title=title, title_justify="left")
    last = ("median", "r") if agreement is None else ("same id",)
    for heading in ("", "unit", "n", "mean", "95 %", "max", "bias", *last):
        table.add_column(heading, justify="left" if heading in ("", "unit") else "right", no_wrap=True)
    for row, error in enumerate(errors):
        numbers = [error.mean_abs, error.p95_abs, error.max_abs, error.bias]
        ends = [_decimal(error.median_abs), _decimal(error.correlation)] if agreement is None else [f"{agreement[row]:.1%}"]
        table.add_row(error.name, error.unit, str(error.pairs), *map(_decimal, numbers), *ends)
    console.print(table)


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _first_fault(faults: list[ReplayedFrame]) -> str:
    return f"; the first, frame {faults[0].index}: {faults[0].fault}" if faults else ""
