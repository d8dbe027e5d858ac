"""The pictures of a run as a short GIF, with what was asked for, who drove and how it went written under each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from openvla_ros.ros.chronicle import Page, Picture

LARGEST_BYTES = 5_000_000
"""A film that is larger loses every second picture until it is not."""

COLOURS = 160
"""One palette for all pictures, so that what stands still costs nothing. GIF takes 256."""

SAMPLES = 12
"""Pictures that the palette is chosen from."""

FRAME_MS, LAST_MS = 100, 2000
"""How long each picture is shown, and the last."""

BAR_PX, TEXT_PX = 46, 15

PAPER, INK, FAINT = (250, 250, 248), (28, 32, 38), (110, 116, 124)
DRIVER_INK = {"POLICY": (22, 128, 57), "HUMAN": (29, 91, 200), "STOPPED": (200, 30, 30)}
"""HOLD and what is unknown are FAINT."""


def write_film(page: Page, path: Path) -> Path | None:
    """Write the GIF whole or not at all. Returns None where nobody ever drove: there is nothing to see. Raises OSError."""
    pictures = list(page.pictures)
    if len(pictures) < 2 or not any(picture.driver in DRIVER_INK for picture in pictures):
        return None
    pace = max(1.0, page.spacing_s * 1000.0 / FRAME_MS)
    while True:
        data = encode(pictures, pace)
        if len(data) <= LARGEST_BYTES or len(pictures) < 8:
            break
        pictures, pace = [*pictures[:-1:2], pictures[-1]], 2.0 * pace
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def encode(pictures: Sequence[Picture], pace: float) -> bytes:
    """The bytes of a GIF. pace: how much faster than life it is shown, at least where nothing stood still."""
    font = load_font(TEXT_PX)
    palette = choose_palette([frame(picture, pace, font) for picture in pictures[::-(-len(pictures) // SAMPLES)]])
    frames = [frame(picture, pace, font).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    with tempfile.TemporaryFile() as file:
        frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], loop=0, disposal=1, optimize=False,
                       duration=[*[FRAME_MS] * (len(frames) - 1), LAST_MS])
        file.seek(0)
        return file.read()


def frame(picture: Picture, pace: float, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> Image.Image:
    """A picture with its caption, RGB."""
    shot = Image.fromarray(picture.rgb())
    made = Image.new("RGB", (shot.width, shot.height + BAR_PX), PAPER)
    made.paste(shot, (0, 0))
    draw = ImageDraw.Draw(made)
    upper, lower, edge = shot.height + 4, shot.height + 24, shot.width - 8
    draw.text((edge, upper), picture.driver, font=font, fill=DRIVER_INK.get(picture.driver, FAINT), anchor="ra")
    room = edge - 16 - draw.textlength(picture.driver, font=font)
    draw.text((8, upper), fitted(draw, picture.instruction or "no instruction", font, room), font=font,
              fill=INK if picture.instruction else FAINT)
    clock = f"{picture.time_s:.1f} s" + (f", {pace:.2g}x" if pace > 1.0 else "")
    draw.text((edge, lower), clock, font=font, fill=FAINT, anchor="ra")
    draw.text((8, lower), fitted(draw, picture.verdict, font, edge - 16 - draw.textlength(clock, font=font)), font=font, fill=FAINT)
    return made


def fitted(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> str:
    """The text, cut where it would not fit."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."


def choose_palette(frames: Sequence[Image.Image]) -> Image.Image:
    """One palette that suits them all."""
    stacked = Image.fromarray(np.concatenate([np.asarray(made) for made in frames]))
    return stacked.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def load_font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own; before Pillow 10.1 it has one size only."""
    try:
        return ImageFont.load_default(size_px)
    except TypeError:
        return ImageFont.load_default()
