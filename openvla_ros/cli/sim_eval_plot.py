"""An evaluation as a picture: how often each task was done, and how soon."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openvla_ros.contract import STEP_S
from openvla_ros.errors import ConfigurationError

if TYPE_CHECKING:
    from openvla_ros.simulation.evaluate import TaskResult

COLOURS = ("#1f4ea8", "#2f7d32", "#c2651b")
WRONG, INK = "#c23b22", "#22272e"


def write_plot(results: Mapping[str, TaskResult], title: str, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises ConfigurationError if it cannot be written."""
    from matplotlib.figure import Figure  # late: it takes a second

    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained", facecolor="white")
    rates, times = figure.subplots(1, 2, width_ratios=(2, 3))
    draw_rates(rates, results)
    draw_times(times, results)
    figure.suptitle(title.replace("$", r"\$"), fontsize=13, fontweight="bold", x=0.01, ha="left", color=INK)
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        figure.savefig(unfinished, format="png")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigurationError(f"--plot {path} cannot be written: {error}. Name a file in a folder of yours.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def draw_rates(panel: Any, results: Mapping[str, TaskResult]) -> None:
    """A bar per task with its 95 % interval, and how often another block was taken."""
    from openvla_ros.simulation.evaluate import wilson

    for place, (result, colour) in enumerate(zip(results.values(), COLOURS, strict=False)):
        interval = wilson(result.successes, result.count)
        panel.bar(place, result.rate, 0.6, color=colour)
        panel.plot([place, place], interval, "-_", color=INK, markersize=12)
        panel.plot(place, result.wrong / result.count, "x", color=WRONG, markersize=9, markeredgewidth=2,
                   label="another block" if place == 0 else None)
    panel.set_xticks(range(len(results)), [f"{kind}\n{result.successes}/{result.count}" for kind, result in results.items()])
    panel.set_xlim(-0.6, len(results) - 0.4)
    panel.set_ylim(-0.03, 1.05)
    panel.set_ylabel("share of episodes (95 % interval)")
    panel.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), fontsize=8, frameon=False)


def draw_times(panel: Any, results: Mapping[str, TaskResult]) -> None:
    """The share of episodes that are done after so much simulated time."""
    longest_s = max(episode.steps for result in results.values() for episode in result.episodes) * STEP_S
    for (kind, result), colour in zip(results.items(), COLOURS, strict=False):
        done_s = sorted(episode.steps * STEP_S for episode in result.episodes if episode.success)
        shares = [number / result.count for number in range(len(done_s) + 1)]
        panel.step([0.0, *done_s, longest_s], [*shares, shares[-1]], where="post", color=colour, label=kind)
    panel.set_ylim(-0.03, 1.05)
    panel.set_xlim(0.0, longest_s)
    panel.set_xlabel("simulated time [s]")
    panel.set_ylabel("done by then")
    panel.legend(loc="lower right", fontsize=8)
    panel.grid(alpha=0.25)
