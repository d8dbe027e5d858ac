"""The results of a run in, one HTML file for people out: it needs no network, no server and no other file."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from openvla_ros import __version__
from openvla_ros.bags import page_plot
from openvla_ros.bags.highlights import Highlight, most_different, most_interesting, pictures, tool_position
from openvla_ros.bags.motion import overlay
from openvla_ros.bags.page_content import PageFrame, PageRun, Track, action_table, distances
from openvla_ros.bags.page_look import SCRIPT, STYLE
from openvla_ros.bags.replay import ACTION_UNITS, action_errors
from openvla_ros.bags.report import write_whole
from openvla_ros.contract import ACTION_NAMES, ByteArray, FloatArray
from openvla_ros.errors import BagError

__all__ = ["PAGE_NAME", "PageFrame", "PageRun", "Track", "write_page"]

PAGE_NAME = "replay.html"
MAX_BYTES = 3_000_000
SERIES = ("recorded", "predicted", "sent", "against")
"""Fields of PageFrame that are actions; they are also the names of their colours."""

PREDICTED_LAST = ("recorded", "sent", "against", "predicted")
"""The order of drawing: what is drawn last lies on top."""

COUNTED = ("difference", "fault", "rules")
"""Fields of PageFrame whose frames are counted per recording."""

LONGEST_TABLE = 400
"""Rows of a table of recordings. More are in the JSON report, and nobody reads them here."""

JPEG_QUALITY = 82
POLICY = ("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'")
"""What the page may load: nothing but itself. A browser refuses the rest, whatever an instruction or a topic name contains."""


class Detail(NamedTuple):
    """How much a page shows."""

    tracks: int  # recordings with plots
    columns: int  # points across a plot
    picture_px: int
    frames: int  # pictures per gallery


DETAILS = (Detail(8, 500, 512, 10), Detail(5, 300, 448, 10), Detail(3, 200, 320, 10), Detail(1, 100, 256, 6))
"""From full to frugal: the first that keeps the page below MAX_BYTES is taken."""


def write_page(run: PageRun, place: Path) -> Path:
    """Write the page to `place`, a file that ends in .html or a folder in which it is `replay.html`; returns the file.

    It appears whole or not at all, and replaces an older one. It stays below 3 MB: long recordings are drawn with fewer points, and
    of many recordings the worst are drawn. Pictures are read again from the recordings; where one cannot be read any more, the
    reason stands in its place. Raises BagError when the page cannot be written.
    """
    file = place if place.suffix == ".html" else place / PAGE_NAME
    text = next((page for detail in DETAILS if len(page := render(run, detail).encode()) <= MAX_BYTES), None)
    if text is None:
        raise BagError(f"the page of {run.title!r} would be larger than {MAX_BYTES // 1_000_000} MB even with one recording drawn. "
                       "Run fewer recordings at once, or shorten `facts` and `notes`.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda path: path.write_bytes(text))
    except OSError as error:
        raise BagError(f"the page cannot be written to {file}: {error}. Choose another --output.") from error
    return file


def render(run: PageRun, detail: Detail) -> str:
    """The page as text."""
    drawn = worst_tracks(run, detail.tracks)
    title = html.escape(run.title)
    body = "".join([
        _head(run), _gallery(run, most_interesting(run, detail.frames), "frames", "Frames to look at", detail),
        _gallery(run, most_different(run, detail.frames), "apart", f"Where {run.policy} and {run.against} are furthest apart", detail)
        if run.against else "",
        _errors(run), _recordings(run, drawn), *(_track(run, number, detail.columns) for number in drawn), _latency(run), _facts(run)])
    script = SCRIPT % {"width": page_plot.WIDTH, "left": page_plot.LEFT, "right": page_plot.RIGHT}
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"><title>{title}</title>'
            f'<style>{STYLE}</style></head><body><a class="skip" href="#frames">to the frames</a><main>{body}</main>'
            f'<dialog aria-label="picture, enlarged"></dialog><script>{script}</script></body></html>\n')


def worst_tracks(run: PageRun, count: int) -> list[int]:
    """Places of at most `count` recordings: those with differences, faults and large errors first; then back in their order."""
    def badness(track: Track) -> tuple[float, ...]:
        frames = track.frames
        return (sum(bool(frame.difference) for frame in frames), sum(bool(frame.fault) for frame in frames), _mean_error_m(frames) or 0.0)

    order = sorted(range(len(run.tracks)), key=lambda number: badness(run.tracks[number]), reverse=True)
    return sorted(order[:count])


# ---------------------------------------------------------------------- parts of the page


def _head(run: PageRun) -> str:
    frames = _frames(run)
    kind, word = {True: ("passed", "passed"), False: ("failed", "failed"), None: ("", "nothing asserted")}[run.passed]
    faults, ruled = sum(bool(frame.fault) for frame in frames), sum(bool(frame.rules) for frame in frames)
    differing = sum(bool(frame.difference) for frame in frames)
    totals = [frame.stage_ms["total"] for frame in frames if "total" in frame.stage_ms]
    error_m, error = _mean_error_m(frames), _mean(_errors_m_rad(frames, "recorded"))
    tiles = [_tile(f"{len(run.tracks)}", "recording" if len(run.tracks) == 1 else "recordings"), _tile(f"{len(frames):,}", "frames")]
    if run.failed:
        tiles.append(_tile(f"{len(run.failed)}", "recordings not run", bad=True))
    if run.passed is not None or differing:
        tiles.append(_tile(f"{differing}", "frames differ", bad=differing > 0))
    tiles.append(_tile(f"{faults}", "faults", bad=faults > 0))
    if any(frame.sent is not None or frame.rules for frame in frames):
        tiles.append(_tile(f"{ruled}", "changed by safety"))
    if error_m is not None:
        tiles += [_tile(f"{error_m * 1000:.1f} mm", "mean error"), _tile(f"{math.degrees(error[1]):.1f}°", "mean rotation error")]
    if run.against and (apart := _mean(_errors_m_rad(frames, "against"))) is not None and math.isfinite(apart[0]):
        tiles.append(_tile(f"{apart[0] * 1000:.1f} mm", "mean distance of the two"))
    if totals:
        tiles.append(_tile(f"{np.median(totals):.3g} ms", "median per frame"))
    against = f' <span class="soft">against</span> <b class="key against">{html.escape(run.against)}</b>' if run.against else ""
    notes = [f'<p class="note">{html.escape(_shorten(note, 600))}</p>' for note in list(run.notes)[:12]]
    failed = [f'<p class="note bad"><b>{html.escape(name)}</b> could not be run: {html.escape(_shorten(why, 600))}</p>'
              for name, why in list(run.failed.items())[:40]]
    if len(run.failed) > 40:
        failed.append(f'<p class="note bad">and {len(run.failed) - 40} more recordings; all are in the JSON report.</p>')
    return (f'<header><h1>{html.escape(run.title)}</h1><p><span class="verdict {kind}">{word}</span> &ensp;'
            f'<b class="key predicted">{html.escape(run.policy)}</b>{against}</p><div class="tiles">{"".join(tiles)}</div>'
            f'{"".join(failed + notes)}</header>')


def _gallery(run: PageRun, highlights: Sequence[Highlight], name: str, heading: str, detail: Detail) -> str:
    items = []
    for number in dict.fromkeys(highlight.track for highlight in highlights):
        track = run.tracks[number]
        found = pictures(track, [highlight.frame for highlight in highlights if highlight.track == number], detail.picture_px)
        items += [(place, _item(run, highlight, found[highlight.frame.index]))
                  for place, highlight in enumerate(highlights) if highlight.track == number]
    listed = "".join(item for _, item in sorted(items)) or '<li><p class="words">None stands out.</p></li>'
    keys = page_plot.legend((series, _series_words(run, series)) for series in SERIES
                            if any(getattr(highlight.frame, series) is not None for highlight in highlights))
    return f'<section id="{name}"><h2>{html.escape(heading)}</h2>{keys}<ul class="frames">{listed}</ul></section>'


def _item(run: PageRun, highlight: Highlight, picture: ByteArray | str) -> str:
    frame, track = highlight.frame, run.tracks[highlight.track]
    steps = {series: step for series in SERIES if (step := getattr(frame, series)) is not None}
    if isinstance(picture, str):
        shown, projected = f'<div class="nothing"><span>no picture: {html.escape(_shorten(picture, 300))}</span></div>', False
    else:
        tool_m = tool_position(track, frame) if track.camera is not None else None
        ordered = {series: steps[series] for series in PREDICTED_LAST if series in steps}
        drawing, projected = overlay(ordered, picture.shape, track.camera, tool_m)
        height, width = picture.shape[:2]
        words = f"frame {frame.index} of {html.escape(track.name)}"
        shown = (f'<button class="zoom" aria-label="enlarge {words}"><img alt="{words}" width="{width}" height="{height}" '
                 f'src="{data_uri(picture)}">{drawing}</button>')
    reasons = "".join(f'<span class="reason{" bad" if reason.startswith("differs") else ""}">{html.escape(_shorten(reason, 400))}</span>'
                      for reason in highlight.reasons)
    rows = "".join(f'<tr><td><span class="key {series}">{html.escape(_series_words(run, series, 14))}</span></td>{_cells(step)}</tr>'
                   for series, step in steps.items())
    table = (f'<div class="scroll"><table><tr><th></th><th>dx</th><th>dy</th><th>dz mm</th><th>roll</th><th>pitch</th><th>yaw °</th>'
             f"<th>grip</th></tr>{rows}</table></div>") if rows else ""
    margin = "" if frame.margin is None else f", margin {frame.margin:.2g}"
    where = (f"frame {frame.index} at {(frame.stamp_ns - track.frames[0].stamp_ns) / 1e9:.2f} s{margin}"
             f"{', arrows are 3 steps long' if projected else ''}")
    name = f"<b>{html.escape(_shorten(track.name, 80))}</b>, " if len(run.tracks) > 1 else ""
    said = html.escape(_shorten(frame.instruction, 120))
    return f'<li>{shown}<div class="words">{reasons}<p>{name}{where}<br><span class="soft">“{said}”</span></p>{table}</div></li>'


def _errors(run: PageRun) -> str:
    """Tables and histograms of the differences per dimension."""
    frames, parts = _frames(run), []
    predicted = action_table(frames, "predicted")
    others = {name: action_table(frames, name) for name in ("recorded", "against")}
    for name, other in others.items():
        if not (np.isfinite(predicted) & np.isfinite(other)).any():
            continue
        rows = []
        for error in action_errors(predicted, other):
            numbers = (error.mean_abs, error.median_abs, error.p95_abs, error.max_abs, error.bias, error.correlation)
            rows.append(f"<tr><td>{error.name}</td><td>{error.unit}</td><td>{error.pairs:,}</td>"
                        + "".join(f"<td>{'-' if value is None else f'{value:.4f}'}</td>" for value in numbers) + "</tr>")
        parts.append(f'<h3>{html.escape(run.policy)} minus {html.escape(_series_words(run, name))}</h3><div class="card scroll"><table><tr>'
                     "<th></th><th>unit</th><th>n</th><th>mean</th><th>median</th><th>95 %</th><th>max</th><th>bias</th><th>r</th></tr>"
                     f'{"".join(rows)}</table></div>')
    if not parts:
        return ""
    panels = "".join(_figure(dimension, unit, page_plot.histogram(
        {"predicted" if name == "recorded" else name: predicted[:, column] - other[:, column] for name, other in others.items()
         if np.isfinite(other).any()}, f"histogram of the error in {dimension}"))
        for column, (dimension, unit) in enumerate(zip(ACTION_NAMES, ACTION_UNITS, strict=True)))
    words = [("predicted", "minus recorded")] if np.isfinite(others["recorded"]).any() else []
    words += [("against", f"minus {run.against}")] if np.isfinite(others["against"]).any() else []
    return (f'<section><h2>Errors</h2>{"".join(parts)}<h3>How they are spread</h3>{page_plot.legend(words)}'
            f'<div class="panels">{panels}</div></section>')


def _recordings(run: PageRun, drawn: Sequence[int]) -> str:
    if len(run.tracks) < 2:
        return ""
    rows = []
    for number, track in list(enumerate(run.tracks))[:LONGEST_TABLE]:
        name, error_m = html.escape(_shorten(track.name, 100)), _mean_error_m(track.frames)
        link = f'<a href="#track-{number}">{name}</a>' if number in drawn else name
        counts = [len(track.frames), *(sum(bool(getattr(frame, kind)) for frame in track.frames) for kind in COUNTED)]
        rows.append(f'<tr><td class="words">{link}</td>{"".join(f"<td>{count:,}</td>" for count in counts)}'
                    f"<td>{'-' if error_m is None else f'{error_m * 1000:.1f}'}</td></tr>")
    left = len(run.tracks) - len(drawn)
    more = (f'<p class="soft">{left} of {len(run.tracks)} recordings are not drawn below; those with the most differences, faults and '
            "errors are. All numbers are in the JSON report.</p>") if left else ""
    return ('<section><h2>Recordings</h2><div class="card scroll"><table><tr><th></th><th>frames</th><th>differ</th><th>faults</th>'
            f'<th>safety</th><th>mean error, mm</th></tr>{"".join(rows)}</table></div>{more}</section>')


def _track(run: PageRun, number: int, columns: int) -> str:
    """Plots of one recording, and the numbers behind them for the cursor."""
    track = run.tracks[number]
    frames = track.frames
    if not frames:
        return ""
    time_s = np.array([(frame.stamp_ns - frames[0].stamp_ns) / 1e9 for frame in frames])
    faults_s = [float(time) for time, frame in zip(time_s, frames, strict=True) if frame.fault]
    tables = {series: table for series in SERIES if np.isfinite(table := action_table(frames, series)).any()}
    ordered = {series: tables[series] for series in PREDICTED_LAST if series in tables}
    panels = [_figure(name, "0 closed, 1 open" if name == "gripper" else unit, page_plot.lines(
        time_s, {series: table[:, column] for series, table in ordered.items()}, f"{name} over time", columns, faults_s), column)
        for column, (name, unit) in enumerate(zip(ACTION_NAMES, ACTION_UNITS, strict=True))]
    total = np.array([frame.stage_ms.get("total", math.nan) for frame in frames])
    if np.isfinite(total).any():
        panels.append(_figure("time per frame", "ms", page_plot.lines(time_s, {"total": total}, "time per frame", columns, faults_s), 7))
    shown = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), columns)).round().astype(int))
    data = {"time_s": _short(time_s[shown]), "index": [frames[place].index for place in shown], "series": {
        **{series: [_short(table[shown, column]) for column in range(7)] for series, table in tables.items()},
        "ms": [None] * 7 + [_short(total[shown])]}}
    keys = page_plot.legend((series, _series_words(run, series)) for series in tables)
    skipped = "" if len(shown) == len(frames) else f" The cursor stops at every {len(frames) // len(shown)}. frame or so."
    return (f'<section class="track" id="track-{number}" tabindex="0" aria-label="plots of {html.escape(track.name)}: arrow keys move the '
            f'cursor"><h2>{html.escape(track.name)}</h2><p class="soft">{len(frames):,} frames of {html.escape(track.image_topic)}, '
            f'time in seconds since the first. Point at a plot, or focus here and press ← →.{skipped}</p>{keys}'
            f'<div class="panels">{"".join(panels)}</div><h3>What happened when</h3>'
            f'<div class="card scroll">{_timeline(frames, time_s)}</div>'
            f'<script type="application/json">{json.dumps(data, separators=(",", ":"), allow_nan=False)}</script></section>')


def _timeline(frames: Sequence[PageFrame], time_s: FloatArray) -> str:
    end_s = float(time_s[-1]) + (float(np.median(np.diff(time_s))) if len(frames) > 1 else 0.1)
    until_s = [*time_s[1:], end_s]

    def spans(words: Iterable[str], kind: str = "") -> list[page_plot.Span]:
        found: list[page_plot.Span] = []
        for text, start, end in zip(words, time_s, until_s, strict=True):
            if found and found[-1].words == text and abs(found[-1].end_s - start) < 1e-9:
                found[-1] = found[-1]._replace(end_s=float(end))
            elif text:
                found.append(page_plot.Span(float(start), float(end), kind or text.lower(), text))
        return found if len(found) <= 400 else [found[place] for place in np.linspace(0, len(found) - 1, 400).astype(int)]

    said = [span._replace(kind="plain" if number % 2 == 0 else "odd")
            for number, span in enumerate(spans((frame.instruction for frame in frames), "plain"))]
    rows = {"driver": spans(frame.driver for frame in frames), "instruction": said,
            "faults": spans((frame.fault for frame in frames), "fault"),
            "safety rules": spans((", ".join(frame.rules) for frame in frames), "rule"),
            "differs": spans((frame.difference for frame in frames), "differs")}
    kept = {name: row for name, row in rows.items() if row or name == "faults"}
    return page_plot.strip(kept, 0.0, end_s, "driver, instruction, faults and safety rules over time")


def _latency(run: PageRun) -> str:
    frames = _frames(run)
    names = list(dict.fromkeys(name for frame in frames for name in frame.stage_ms))
    if not names:
        return ""
    names.sort(key=lambda name: name == "total")  # last, and otherwise in the order in which they ran
    samples = {name: np.array([frame.stage_ms[name] for frame in frames if name in frame.stage_ms]) for name in names}
    rows = {name: (float(np.median(values)), float(np.quantile(values, 0.95))) for name, values in samples.items()}
    return f'<section><h2>Latency per stage</h2><div class="card scroll">{page_plot.bars(rows, "latency per stage")}</div></section>'


def _facts(run: PageRun) -> str:
    rows = {**run.facts, "openvla_ros": __version__}
    listed = "".join(f'<tr><td>{html.escape(name)}</td><td class="words">{html.escape(_shorten(str(value), 600))}</td></tr>'
                     for name, value in list(rows.items())[:80])
    return f'<section><h2>What was run</h2><div class="card scroll"><table>{listed}</table></div></section>'


# ---------------------------------------------------------------------- small things


def data_uri(rgb: ByteArray) -> str:
    """The picture inside of an address, as JPEG."""
    done, file = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise BagError("OpenCV could not encode a JPEG. Install opencv-python-headless again.")
    return "data:image/jpeg;base64," + base64.b64encode(file.tobytes()).decode()


def _errors_m_rad(frames: Sequence[PageFrame], other: str) -> FloatArray:
    return distances(action_table(frames, "predicted"), action_table(frames, other))


def _mean(errors: FloatArray) -> FloatArray:
    return np.array([float(column[good].mean()) if (good := np.isfinite(column)).any() else math.nan for column in errors.T])


def _mean_error_m(frames: Sequence[PageFrame]) -> float | None:
    mean = float(_mean(_errors_m_rad(frames, "recorded"))[0])
    return mean if math.isfinite(mean) else None


def _frames(run: PageRun) -> list[PageFrame]:
    return [frame for track in run.tracks for frame in track.frames]


def _series_words(run: PageRun, series: str, length: int = 40) -> str:
    return _shorten(run.against or "against", length) if series == "against" else series


def _cells(step: FloatArray) -> str:
    shown = [*(f"{1000 * value:+.1f}" for value in step[:3]), *(f"{math.degrees(value):+.1f}" for value in step[3:6]), f"{step[6]:.2f}"]
    return "".join(f"<td>{'-' if not math.isfinite(value) else text}</td>" for text, value in zip(shown, step, strict=True))


def _figure(name: str, unit: str, drawing: str, column: int | None = None) -> str:
    here = "" if column is None else f' data-column="{column}"'
    said = f"<span>{unit}</span>" if column is None else f"<output>{unit}</output>"
    return f"<figure{here}><figcaption>{name}{said}</figcaption>{drawing}</figure>"


def _tile(number: str, words: str, bad: bool = False) -> str:
    return f'<div class="tile{" bad" if bad else ""}"><b>{number}</b><span>{words}</span></div>'


def _short(values: FloatArray) -> list[float | None]:
    """Numbers for the cursor, with four digits."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
