"""A frame to be looked at in, a picture for people out: what the camera saw, two actions side by side, and what is to be said of them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from openvla_ros.bags.expect import CAUSES, Difference
from openvla_ros.bags.replay import ACTION_UNITS
from openvla_ros.contract import ACTION_NAMES, ByteArray, FloatArray
from openvla_ros.errors import BagError

WIDTH_PX, LINE_PX, EDGE_PX = 640, 18, 12
PAPER, INK, QUIET, ALARM = "#ffffff", "#20242b", "#5b6472", "#c0392b"


@dataclass(frozen=True)
class Exhibit:
    """What is said beside a picture. actions: two of them with their names, [7] or None; alarming: dimensions to point out."""

    heading: str
    detail: str
    actions: tuple[tuple[str, FloatArray | None], tuple[str, FloatArray | None]]
    alarming: tuple[str, ...] = ()


def of_difference(difference: Difference) -> Exhibit:
    """A frame that is not as expected."""
    expected, found = (None if frame is None else frame.action for frame in (difference.expected, difference.found))
    return Exhibit(f"frame {difference.index}: {difference.cause} ({CAUSES[difference.cause]})", difference.detail,
                   (("expected", expected), ("found", found)), difference.dimensions)


def write_exhibit(rgb: ByteArray | None, exhibit: Exhibit, path: Path) -> None:
    """Write a PNG. rgb: the frame's picture; None where it has none. Raises BagError."""
    lines = textwrap.wrap(exhibit.detail, 88)
    height = LINE_PX * (len(lines) + len(ACTION_NAMES) + 4) + 2 * EDGE_PX
    picture = _picture(rgb)
    sheet = Image.new("RGB", (WIDTH_PX, picture.height + height), PAPER)
    sheet.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    y = picture.height + EDGE_PX
    draw.text((EDGE_PX, y), exhibit.heading, ALARM, font)
    for line in lines:
        y += LINE_PX
        draw.text((EDGE_PX, y), line, INK, font)
    y += 2 * LINE_PX
    columns = (EDGE_PX, 120, 260, 400)
    (left, base), (right, other) = exhibit.actions
    for x, heading in zip(columns, ("", left, right, "difference"), strict=True):
        draw.text((x, y), heading, QUIET, font)
    for row, (name, unit) in enumerate(zip(ACTION_NAMES, ACTION_UNITS, strict=True)):
        y += LINE_PX
        old, new = (None if action is None else float(action[row]) for action in (base, other))
        apart = f"{new - old:+.5f}" if old is not None and new is not None else ""
        colour = ALARM if name in exhibit.alarming else INK
        for x, text in zip(columns, (f"{name} [{unit}]", _text(old), _text(new), apart), strict=True):
            draw.text((x, y), text, colour, font)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path, "PNG")
    except OSError as error:
        raise BagError(f"{path} cannot be written: {error}. Choose another --output.") from error


def _picture(rgb: ByteArray | None) -> Image.Image:
    if rgb is None:
        return Image.new("RGB", (WIDTH_PX, LINE_PX), "#9aa3ad")
    return Image.fromarray(rgb).resize((WIDTH_PX, max(1, round(WIDTH_PX * rgb.shape[0] / rgb.shape[1]))), Image.Resampling.BICUBIC)


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:+.5f}"
