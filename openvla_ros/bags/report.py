"""A Replay in, a report on disk out: `replay.json` for programs and `replay.png` for people. Both appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from openvla_ros.bags.replay import ACTION_UNITS, DimensionError, Replay
from openvla_ros.contract import ACTION_NAMES, FloatArray
from openvla_ros.errors import BagError

JSON_NAME, PICTURE_NAME = "replay.json", "replay.png"

RECORDED, PREDICTED, FAULT, QUIET = "#5b6472", "#d1495b", "#edae49", "#9aa3ad"
"""Colours: what was recorded, what the policy says, where it failed, and what may stand back."""


def write_report(replay: Replay, folder: Path) -> tuple[Path, Path]:
    """Write both files into `folder` (made if absent, older reports in it are replaced) and return their paths.

    Raises BagError when the folder cannot be written.
    """
    content = json.dumps(as_plain(replay), indent=1, allow_nan=False)
    json_path, picture_path = folder / JSON_NAME, folder / PICTURE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(picture_path, lambda path: draw(replay, path))
        write_whole(json_path, lambda path: path.write_text(content + "\n", encoding="utf-8"))
    except OSError as error:
        raise BagError(f"the report cannot be written to {folder}: {error}. Choose another --output.") from error
    return json_path, picture_path


def as_plain(replay: Replay, with_frames: bool = True) -> dict[str, Any]:
    """The replay as JSON values: no NaN (null instead), stamps in whole nanoseconds, actions in the order of `action_names`."""
    plain: dict[str, Any] = {
        "recording": replay.recording,
        "policy": replay.policy,
        "notes": list(replay.notes),
        "image_topic": replay.image_topic,
        "instruction_topic": replay.instruction_topic or None,
        "action_topic": replay.action_topic or None,
        "action_names": list(ACTION_NAMES),
        "action_units": list(ACTION_UNITS),
        "digest": replay.digest,
        "frame_count": len(replay.frames),
        "fault_count": sum(bool(frame.fault) for frame in replay.frames),
        "images_in_recording": replay.tally.images,
        "images_without_instruction": replay.tally.without_instruction,
        "recorded_actions": replay.tally.actions,
        "unmatched_actions": replay.tally.unmatched_actions,
        "errors": [asdict(error) for error in replay.errors],
        "median_ms": median_stage_ms(replay),
    }
    if with_frames:
        plain["frames"] = [
            {"index": frame.index, "stamp_ns": frame.stamp_ns, "instruction": frame.instruction,
             "token_ids": list(frame.token_ids), "action": _numbers(frame.action), "recorded": _numbers(frame.recorded),
             "fault": frame.fault or None, "stage_ms": {name: round(value, 3) for name, value in frame.stage_ms.items()}}
            for frame in replay.frames]
    return plain


def median_stage_ms(replay: Replay) -> dict[str, float]:
    """Median milliseconds per stage, in the order in which the stages ran; `total` is the whole call."""
    names = list(dict.fromkeys(name for frame in replay.frames for name in frame.stage_ms))
    return {name: round(float(np.median([frame.stage_ms[name] for frame in replay.frames if name in frame.stage_ms])), 3)
            for name in names}


def draw(replay: Replay, path: Path) -> None:
    """A PNG with one panel per dimension over time, recorded and predicted, in its unit."""
    from matplotlib.figure import Figure  # late: it takes a second, and no other command needs it

    figure = Figure(figsize=(15, 10.5), dpi=100, layout="constrained", facecolor="white")
    panels = figure.subplots(3, 3, sharex=True).ravel()
    first_ns = replay.frames[0].stamp_ns
    time_s = np.array([(frame.stamp_ns - first_ns) / 1e9 for frame in replay.frames])
    predicted, recorded = _column_table(replay, "action"), _column_table(replay, "recorded")
    faults_s = [time for time, frame in zip(time_s, replay.frames, strict=True) if frame.fault]
    for column, (panel, error) in enumerate(zip(panels, replay.errors, strict=False)):
        _draw_dimension(panel, time_s, predicted[:, column], recorded[:, column], error, faults_s)
    _draw_latency(panels[7], time_s, replay)
    _draw_legend(panels[8], replay)
    for panel in panels[:8]:
        panel.tick_params(labelbottom=True)
    for panel in panels[6:8]:
        panel.set_xlabel("time since the first frame [s]", color=RECORDED)
    figure.suptitle(f"{replay.policy}  on  {replay.recording}", fontsize=17, fontweight="bold", x=0.01, ha="left")
    figure.savefig(path, format="png")


def _draw_dimension(panel: Any, time_s: FloatArray, predicted: FloatArray, recorded: FloatArray, error: DimensionError,
                    faults_s: list[float]) -> None:
    panel.axhline(0.0, color=QUIET, linewidth=0.8)
    for fault_s in faults_s:
        panel.axvline(fault_s, color=FAULT, linewidth=2.0, alpha=0.6, zorder=0)
    marker = "o" if len(time_s) <= 80 else ""
    panel.plot(time_s, recorded, color=RECORDED, linewidth=2.2, marker=marker, markersize=3.5)
    panel.plot(time_s, predicted, color=PREDICTED, linewidth=1.6, marker=marker, markersize=3.5)
    panel.set_title(error.name, loc="left", fontsize=13, fontweight="bold")
    panel.set_ylabel("0 closed, 1 open" if error.name == "gripper" else error.unit, color=RECORDED)
    if error.mean_abs is not None:
        correlation = "" if error.correlation is None else f"   r {error.correlation:+.2f}"
        panel.set_title(f"mean |error| {error.mean_abs:.3g}   bias {error.bias:+.3g}{correlation}", loc="right", fontsize=9.5,
                        color=RECORDED)
    _tidy(panel)


def _draw_latency(panel: Any, time_s: FloatArray, replay: Replay) -> None:
    total = np.array([frame.stage_ms.get("total", math.nan) for frame in replay.frames])
    panel.fill_between(time_s, 0.0, total, color=QUIET, alpha=0.35, linewidth=0)
    panel.plot(time_s, total, color=RECORDED, linewidth=1.4)
    panel.set_ylim(bottom=0.0)
    panel.set_title("time per frame", loc="left", fontsize=13, fontweight="bold")
    if np.isfinite(total).any():
        panel.set_title(f"median {np.nanmedian(total):.3g} ms", loc="right", fontsize=9.5, color=RECORDED)
    panel.set_ylabel("ms", color=RECORDED)
    _tidy(panel)


def _draw_legend(panel: Any, replay: Replay) -> None:
    panel.axis("off")
    keys = [(RECORDED, f"recorded  ({replay.action_topic})" if replay.action_topic else "recorded: no action topic"),
            (PREDICTED, f"predicted by {replay.policy}")]
    faults = sum(bool(frame.fault) for frame in replay.frames)
    if faults:
        keys.append((FAULT, f"fault: no action ({faults} of {len(replay.frames)} frames)"))
    for row, (colour, text) in enumerate(keys):
        height = 0.93 - 0.1 * row
        panel.plot([0.0, 0.08], [height, height], color=colour, linewidth=4, transform=panel.transAxes, clip_on=False)
        panel.text(0.11, height, text, transform=panel.transAxes, va="center", fontsize=11.5)
    texts = list(dict.fromkeys(frame.instruction for frame in replay.frames))
    said = [f"“{_shorten(text, 46)}”" for text in texts[:4]] + ([f"and {len(texts) - 4} more"] if len(texts) > 4 else [])
    lines = [*said, "", f"{len(replay.frames)} frames of {replay.image_topic}", *textwrap.wrap("; ".join(replay.notes), 56)]
    panel.text(0.0, 0.9 - 0.1 * len(keys), "\n".join(lines), transform=panel.transAxes, va="top", fontsize=10.5, color=RECORDED,
               linespacing=1.5)


def _tidy(panel: Any) -> None:
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.grid(axis="y", color=QUIET, alpha=0.25)
    panel.margins(x=0.01)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _column_table(replay: Replay, name: str) -> FloatArray:
    """[frames, 7] with NaN where a frame has none: a gap in the line, not a zero."""
    nothing = np.full(len(ACTION_NAMES), np.nan)
    return np.array([nothing if (value := getattr(frame, name)) is None else value for frame in replay.frames])


def _numbers(values: FloatArray | None) -> list[float | None] | None:
    return None if values is None else [float(value) if math.isfinite(value) else None for value in values]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then put it there at once: a reader meets the old one or the new one, never a part."""
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        write(unfinished)
        unfinished.chmod(0o644)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
