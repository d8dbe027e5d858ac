"""The engine's result as one picture: a bar per mode made of its stages, the baseline on top, the device's limit at the bottom."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openvla_ros.benchmark.table import OURS, STAGES
from openvla_ros.errors import ConfigurationError, DependencyMissing

COLOURS = {"preprocess": "#8c8c8c", "upload": "#c9a227", "vision": "#2a9d8f", "prefill": "#2f6db3", "decode": "#d1495b", "host": "#3d3d3d"}


def check_picture(path: Path) -> None:
    """Refuse now what would lose a long measurement at its end. Raises ConfigurationError, DependencyMissing."""
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigurationError(f"--picture {path} is no file in an existing folder. Name a .png file.")
    if not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"--picture {path}: nothing can be written to {path.parent}. Name a file in a folder of yours.")
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise DependencyMissing("--picture needs matplotlib. Install it with: pip install matplotlib") from error


def write_picture(content: dict[str, Any], path: Path) -> None:
    """Draw `table.to_mapping`'s content into a file whose ending says its format (.png, .svg)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modes = [mode for mode in content["modes"] if "total" in mode and mode["rows"] == 1]
    bars: list[tuple[str, dict[str, float], Any]] = [
        (mode["name"], {stage: mode["stages"][stage]["median_ms"] for stage in STAGES if stage in mode["stages"]}, mode) for mode in modes]
    least = content["limits"]["stage_ms"]
    confirmed = {"vision": least["vision"], "prefill": least["prefill"]}
    passes = max((mode["passes"] for mode in modes), default=7.0)
    bars.append(("limit, token by token", confirmed | {"decode": least["decode"] * (passes - 1)}, None))
    bars.append(("limit, all confirmed", confirmed, None))
    curve = [(mode["rows"], mode["hz"]) for mode in content["modes"] if "total" in mode and (mode["rows"] > 1 or mode["name"] == OURS)]
    figure = Figure(figsize=(12.0, 1.6 + 0.5 * len(bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes, beside_it = figure.subplots(1, 2, width_ratios=(3, 1))
    draw_curve(beside_it, curve)
    for row, (_, stages, mode) in enumerate(bars):
        left = 0.0
        for stage, value in stages.items():
            axes.barh(row, value, left=left, color=COLOURS[stage], alpha=1.0 if mode else 0.55, height=0.7)
            left += value
        total = mode["total"]["median_ms"] if mode else left
        beside = f" {mode['ratio']:.2f} x" if mode and mode["ratio"] else ""
        axes.text(left, row, f"  {total:.1f} ms, {1e3 / max(total, 1e-9):.1f} Hz{beside}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel("median time per action [ms]")
    about = content["about"]
    weights = about["checkpoint"] or f"{about['size']}, random weights"
    axes.set_title(f"{weights}, {about['dtype']}, {about['device']}, {about['rounds']} rounds", fontsize=9, loc="left")
    handles = [axes.barh(0, 0, color=COLOURS[stage], label=stage) for stage in STAGES]
    axes.legend(handles=handles, fontsize=8, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)


def draw_curve(axes: Any, curve: Sequence[tuple[int, float]]) -> None:
    """Actions per second over the number of observations at once."""
    axes.plot(*zip(*sorted(curve), strict=True) if curve else ([], []), marker="o", color=COLOURS["prefill"])
    axes.set_xlabel("observations at once")
    axes.set_ylabel("actions per second, all together")
    axes.set_xticks(sorted({rows for rows, _ in curve}))
    axes.set_ylim(0.0, 1.08 * max((rate for _, rate in curve), default=1.0))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
