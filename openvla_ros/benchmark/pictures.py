"""Camera frames for the benchmark: made up, or out of a recording."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from openvla_ros.benchmark.sequences import decoded_frames
from openvla_ros.contract import ByteArray

HEIGHT, WIDTH = 480, 640
"""Of the cameras of BridgeData."""


@dataclass(frozen=True)
class Frame:
    """A picture [480, 640, 3] as it comes out of its JPEG file. instruction: "" for one of the benchmark's own."""

    rgb: ByteArray
    jpeg: bytes
    instruction: str = ""


def made_frames(count: int, seed: int = 0) -> list[Frame]:
    """Coloured patches of several sizes over each other, with a little noise, every time others."""
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        picture = np.full((HEIGHT, WIDTH, 3), 128.0)
        for grain in (160, 80, 40, 20):
            patches = random.normal(0.0, 40.0, (-(-HEIGHT // grain), WIDTH // grain, 3))
            picture += patches.repeat(grain, axis=0)[:HEIGHT].repeat(grain, axis=1)
        picture += random.normal(0.0, 4.0, picture.shape)
        frames.append(to_frame(np.clip(picture, 0, 255).astype(np.uint8)))
    return frames


def recorded_frames(bag: Path, count: int) -> list[Frame]:
    """The first frames of a recording. Raises BagError."""
    return [to_frame(frame.rgb, frame.instruction) for frame in islice(decoded_frames(bag), count) if frame.rgb is not None]


def to_frame(rgb: ByteArray, instruction: str = "") -> Frame:
    """Through a JPEG file of quality 95, as most cameras send."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(stream, format="JPEG", quality=95)
    return Frame(np.array(Image.open(stream)), stream.getvalue(), instruction)
