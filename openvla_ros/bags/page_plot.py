"""Numbers in, pieces of SVG out: lines over time, strips of events, histograms, bars. Colours are names that the page's style knows."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from openvla_ros.contract import FloatArray

WIDTH, HEIGHT = 420, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 20
"""Size of a panel and its margins, in units of its own that the browser scales."""

INNER_W, INNER_H = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
BINS = 41


class Span(NamedTuple):
    """Something that lasted: from and to [s], its kind (a class of the style), and its words."""

    start_s: float
    end_s: float
    kind: str
    words: str


def lines(time_s: FloatArray, series: Mapping[str, FloatArray], label: str, columns: int, faults_s: Sequence[float] = (),
          zero: bool = True) -> str:
    """One panel. series: name (also its class) -> [n] values over time_s [n], NaN for a gap. columns: most points across."""
    low, high = _range(np.concatenate([values[np.isfinite(values)] for values in series.values()] or [np.zeros(0)]), zero)
    start_s, end_s = (float(time_s[0]), float(time_s[-1])) if len(time_s) else (0.0, 0.0)
    scale = INNER_W / max(end_s - start_s, 1e-9)
    parts = [_axes(low, high, start_s, end_s)]
    for x in (f"{LEFT + scale * (at - start_s):.1f}" for at in thinned(faults_s, columns)):
        parts.append(f'<line class="fault-line" x1="{x}" x2="{x}" y1="{TOP}" y2="{TOP + INNER_H}"/>')
    for name, values in series.items():
        if np.isfinite(values).any():
            across, down = LEFT + scale * (time_s - start_s), TOP + INNER_H * (high - values) / (high - low)
            parts.append(f'<path class="line {name}" d="{_path(across, down, columns)}"/>')
    return _panel("".join(parts) + f'<line class="cursor" y1="{TOP}" y2="{TOP + INNER_H}" x1="-9" x2="-9"/>', label)


def strip(rows: Mapping[str, Sequence[Span]], start_s: float, end_s: float, label: str) -> str:
    """A timeline: one row of spans per name."""
    width, row_height, left = 2 * WIDTH, 22, 110
    height = row_height * len(rows) + BOTTOM
    inner, parts = width - left - RIGHT, []
    for number, (name, spans) in enumerate(rows.items()):
        top = number * row_height + 3
        parts.append(f'<text class="row" x="{left - 8}" y="{top + 12}" text-anchor="end">{html.escape(name)}</text>'
                     f'<rect class="ground" x="{left}" y="{top}" width="{inner}" height="{row_height - 6}" rx="2"/>')
        for span in spans:
            x = left + inner * (span.start_s - start_s) / max(end_s - start_s, 1e-9)
            wide = max(1.6, inner * (span.end_s - span.start_s) / max(end_s - start_s, 1e-9))
            title = f"<title>{html.escape(span.words)}</title>"
            parts.append(f'<rect class="span {html.escape(span.kind)}" x="{min(x, width - RIGHT - 1.6):.1f}" y="{top}" width="{wide:.1f}" '
                         f'height="{row_height - 6}" rx="1">{title}</rect>')
            if (room := int(wide / 6.2)) >= 4:
                words = span.words if len(span.words) <= room else span.words[:room - 1] + "…"
                parts.append(f'<text class="inside" x="{x + 4:.1f}" y="{top + 12}">{html.escape(words)}</text>')
    bottom = row_height * len(rows)
    for at in ticks(start_s, end_s, 8):
        x = left + inner * (at - start_s) / max(end_s - start_s, 1e-9)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 13}" text-anchor="middle">{_number(at)} s</text>')
    return f'<svg class="strip" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def histogram(samples: Mapping[str, FloatArray], label: str) -> str:
    """Signed errors around zero. samples: name (also its class) -> numbers; the first is filled, the others are outlines."""
    known = {name: values[np.isfinite(values)] for name, values in samples.items()}
    largest = max((float(np.abs(values).max()) for values in known.values() if values.size), default=0.0) or 1.0
    edges = np.linspace(-largest, largest, BINS + 1)
    shares = {name: np.histogram(values, edges)[0] / values.size for name, values in known.items() if values.size}
    top = max((float(share.max()) for share in shares.values()), default=1.0)
    parts = [_axes(0.0, 100.0 * top, -largest, largest, unit="%")]
    for number, (name, share) in enumerate(shares.items()):
        x = LEFT + INNER_W * (edges + largest) / (2 * largest)
        y = TOP + INNER_H * (1.0 - share / top)
        outline = "".join(f"V{height:.1f}H{right:.1f}" for height, right in zip(y, x[1:], strict=True))
        kind = "bars" if number == 0 else "outline"
        parts.append(f'<path class="{kind} {name}" d="M{x[0]:.1f} {TOP + INNER_H}{outline}V{TOP + INNER_H}Z"/>')
    middle = LEFT + INNER_W / 2
    parts.append(f'<line class="zero" x1="{middle}" x2="{middle}" y1="{TOP}" y2="{TOP + INNER_H}"/>')
    return _panel("".join(parts), label)


def bars(rows: Mapping[str, tuple[float, float]], label: str) -> str:
    """Horizontal bars to a median with a whisker to a 95th percentile [ms]."""
    width, row_height, left, right = 2 * WIDTH, 24, 110, 150
    most = max((p95 for _, p95 in rows.values()), default=0.0) or 1.0
    parts = []
    for number, (name, (median, p95)) in enumerate(rows.items()):
        y, scale = number * row_height + 4, (width - left - right) / most
        parts.append(f'<text class="row" x="{left - 8}" y="{y + 12}" text-anchor="end">{html.escape(name)}</text>'
                     f'<rect class="bar" x="{left}" y="{y}" width="{median * scale:.1f}" height="16" rx="2"/>'
                     f'<line class="whisker" x1="{left + median * scale:.1f}" x2="{left + p95 * scale:.1f}" y1="{y + 8}" y2="{y + 8}"/>'
                     f'<text class="tick" x="{left + p95 * scale + 8:.1f}" y="{y + 12}">{_number(median)} ms, 95 %: {_number(p95)}</text>')
    height = row_height * len(rows) + 6
    return f'<svg class="strip" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most about so many of them, evenly chosen."""
    return list(values[::max(1, math.ceil(len(values) / most))])


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    rough = (high - low) / max(1, count)
    if not (math.isfinite(rough) and rough > 0.0):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough), 10.0 * power)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _axes(low: float, high: float, start: float, end: float, unit: str = "") -> str:
    parts = []
    for value in ticks(low, high, 4):
        y = TOP + INNER_H * (high - value) / (high - low)
        kind = "zero" if value == 0.0 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{_number(value)}{unit}</text>')
    for value in ticks(start, end, 5):
        x = LEFT + INNER_W * (value - start) / max(end - start, 1e-9)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{_number(value)}</text>')
    return "".join(parts)


def _path(x: FloatArray, y: FloatArray, columns: int) -> str:
    """A line with gaps at NaN. Where there are more points than columns, each column keeps its lowest and highest."""
    if len(x) > 2 * columns:
        x, y = _envelope(x, y, columns)
    known = np.isfinite(y)
    begins = known & ~np.concatenate([[False], known[:-1]])
    alone = begins & ~np.concatenate([known[1:], [False]])
    return "".join(f"{'M' if begin else 'L'}{one:.1f} {other:.1f}{'h.1' if single else ''}"  # a stroke of no length is not drawn
                   for one, other, begin, single, good in zip(x, y, begins, alone, known, strict=True) if good)


def _envelope(x: FloatArray, y: FloatArray, columns: int) -> tuple[FloatArray, FloatArray]:
    chosen: list[npt.NDArray[np.intp]] = []
    for part in np.array_split(np.arange(len(x)), columns):
        good = part[np.isfinite(y[part])]
        chosen.append(np.unique([good[np.argmin(y[good])], good[np.argmax(y[good])]]) if good.size else part[:1])
    places = np.concatenate(chosen)
    return x[places], y[places]


def _range(values: FloatArray, zero: bool) -> tuple[float, float]:
    """Lowest and highest value with a little air; never empty."""
    if not values.size:
        return -1.0, 1.0
    low, high = float(values.min()), float(values.max())
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    air = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    return low - (air if low < 0.0 or not zero else 0.0), high + air


def _panel(content: str, label: str) -> str:
    return (f'<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">'
            f"{content}</svg>")


def _number(value: float) -> str:
    """Three digits, without the noise of binary fractions."""
    return "0" if value == 0.0 else f"{value:.3g}"


def legend(names: Iterable[tuple[str, str]]) -> str:
    """A line of swatches. names: class, words."""
    return '<p class="legend">' + "".join(
        f'<span><svg viewBox="0 0 26 10" aria-hidden="true"><path class="line {kind}" d="M1 5H25"/></svg>{html.escape(words)}</span>'
        for kind, words in names) + "</p>"
