"""A run as a picture: where the tool was and was to be, the gripper, who drove, what was asked for, how long the policy thought."""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from openvla_ros.ros.chronicle import Page

BANDS = {"POLICY": "#dff1e3", "HUMAN": "#dde8fb", "STOPPED": "#f9dcdc"}
"""Colour behind the lines while somebody drives; none for HOLD."""

MEASURED = {"x": "#c23b22", "y": "#2f7d32", "z": "#1f4ea8"}
INK, QUIET = "#22272e", "#8a929c"

BEFORE_S = 1.0
"""So much of the time before anybody drove is shown."""

LEAST_NAMED = 0.05
"""Part of the width from which on a band has room for its driver's name."""

LEAST_SPAN_M = 0.1
"""Least height of a panel."""

LONGEST = 42
"""Characters of an instruction in the plot."""


def write_plot(page: Page, title: str, path: Path) -> Path | None:
    """Write a PNG whole or not at all. Returns None where no time passed. Raises OSError, and ImportError without matplotlib."""
    if len(page.rows) < 2 or page.rows[-1].time_s <= page.rows[0].time_s:
        return None
    from matplotlib.figure import Figure  # late: it takes a second

    where = bool(np.isfinite([row.measured_m for row in page.rows]).any() or np.isfinite([row.target_m for row in page.rows]).any())
    heights = {"position": 3.0, "height": 2.0, "gripper": 1.5, "latency": 1.5} if where else {"gripper": 2.0, "latency": 2.0}
    figure = Figure(figsize=(12, 1.6 + sum(heights.values())), dpi=100, layout="constrained", facecolor="white")
    panels = dict(zip(heights, figure.subplots(len(heights), 1, sharex=True, height_ratios=list(heights.values())), strict=True))
    top, *_, bottom = panels.values()
    for panel in panels.values():
        draw_drivers(panel, page, named=panel is top)
    if where:
        draw_way(panels["position"], page, "xy", "tool x and y [m]")
        draw_way(panels["height"], page, "z", "tool z [m]")
    draw_gripper(panels["gripper"], page)
    draw_latencies(panels["latency"], page)
    draw_instructions(top, list(panels.values()), page)
    bottom.set_xlabel("ROS time since the start [s]", color=INK)
    driven_s = next((row.time_s for row in page.rows if row.driver != "HOLD"), page.rows[0].time_s)
    bottom.set_xlim(max(page.rows[0].time_s, driven_s - BEFORE_S), page.rows[-1].time_s)
    figure.suptitle(title, fontsize=15, fontweight="bold", x=0.01, ha="left")
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        figure.savefig(name, format="png")
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def draw_drivers(panel: Any, page: Page, named: bool) -> None:
    """A band for each stretch in which one driver had the arm. named: with the driver's name in it."""
    changes = [page.rows[0], *(after for before, after in pairwise(page.rows) if after.driver != before.driver), page.rows[-1]]
    whole_s = page.rows[-1].time_s - page.rows[0].time_s
    for begin, end in pairwise(changes):
        if begin.driver not in BANDS:
            continue
        panel.axvspan(begin.time_s, end.time_s, color=BANDS[begin.driver], linewidth=0, zorder=0)
        if named and end.time_s - begin.time_s > LEAST_NAMED * whole_s:
            panel.annotate(begin.driver, (begin.time_s, 0.0), xycoords=("data", "axes fraction"), xytext=(4, 5), textcoords="offset points",
                           fontsize=8, color=QUIET)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.grid(axis="y", color=QUIET, alpha=0.25)


def draw_way(panel: Any, page: Page, axes: str, label: str) -> None:
    """Measured as lines, targets as dots of the same colour."""
    time_s = [row.time_s for row in page.rows]
    for axis in axes:
        column = "xyz".index(axis)
        panel.plot(time_s, [row.measured_m[column] for row in page.rows], color=MEASURED[axis], linewidth=1.8, label=axis)
        panel.plot(time_s, [row.target_m[column] for row in page.rows], color=MEASURED[axis], linewidth=0.9, linestyle=(0, (1, 1.5)))
    panel.margins(y=0.12)
    low, high = panel.get_ylim()
    slack = max(0.0, LEAST_SPAN_M - (high - low)) / 2.0  # a resting arm is a straight line, not its noise
    panel.set_ylim(low - slack, high + slack)
    panel.set_ylabel(label, color=INK)
    panel.set_title("line: measured, dots: target", loc="right", fontsize=9, color=QUIET)
    panel.legend(loc="upper right", frameon=False, ncols=2, fontsize=9)


def draw_gripper(panel: Any, page: Page) -> None:
    """What was sent, and what was measured where that is known."""
    sent = [(row.time_s, row.sent[6]) for row in page.rows if row.sent]
    if sent:
        panel.step(*zip(*sent, strict=True), where="post", color=QUIET, linewidth=1.4, label="sent")
    if page.openings:
        panel.plot(*zip(*page.openings, strict=True), color=INK, linewidth=1.6, label="measured")
    panel.set_ylim(-0.05, 1.05)
    panel.set_ylabel("gripper\n0 closed, 1 open", color=INK)
    if sent or page.openings:
        panel.legend(loc="upper right", frameon=False, fontsize=9)


def draw_latencies(panel: Any, page: Page) -> None:
    """One dot per inference."""
    if page.latencies:
        time_s, took_ms = zip(*page.latencies, strict=True)
        panel.plot(time_s, took_ms, ".", color=INK, markersize=4)
        panel.set_title(f"median {np.median(took_ms):.3g} ms, 99 % below {np.percentile(took_ms, 99):.3g} ms", loc="right", fontsize=9,
                        color=QUIET)
    panel.margins(y=0.1)
    panel.set_ylim(bottom=0.0)
    panel.set_ylabel("policy latency [ms]", color=INK)


def draw_instructions(top: Any, panels: list[Any], page: Page) -> None:
    """A line through all panels where the instruction changed, its words above the top one."""
    for number, (time_s, text) in enumerate(page.instructions):
        for panel in panels:
            panel.axvline(time_s, color=INK, linewidth=0.8, linestyle="--", alpha=0.6)
        words = text if len(text) <= LONGEST else text[:LONGEST - 1] + "…"
        top.annotate(words or "(stop)", (time_s, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 4 + 12 * (number % 2)),
                     textcoords="offset points", fontsize=9, color=INK, annotation_clip=False)
