"""A camera frame becomes the numbers the towers see: [H, W, 3] uint8 -> [C, side, side] float32.

Two stages, both as in the released code: what the evaluation scripts do to the frame (`ImagePath`), then the model's own
processor (`Processor`). Only PIL's bicubic gives the pixels the model was trained on: it shrinks with a widened kernel and rounds
to uint8 between its two passes; float resizes of torch or OpenCV differ. No torch here.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvla_ros.contract import ByteArray, Observation
from openvla_ros.errors import CheckpointError

PixelArray = npt.NDArray[np.float32]

STRATEGIES = ("resize-naive", "resize-crop", "letterbox")
JPEG_QUALITY = 95
CROP_AREA = 0.9


@dataclass(frozen=True)
class ImagePath:
    """What happens to a frame before the model's own processor; see PolicySettings for when each is right."""

    resize: str = "direct"
    rotate_180: bool = False
    centre_crop: bool = False

    def apply(self, observation: Observation, side: int) -> ByteArray:
        """[H, W, 3] uint8 -> the same or [side, side, 3], in the order of the evaluation scripts: turn, resize, crop."""
        rgb = observation.rgb
        if self.rotate_180:
            rgb = rgb[::-1, ::-1]
        if self.resize == "bridge":
            rgb = lanczos_resize(rgb if observation.jpeg else jpeg_round_trip(rgb), side)
        if self.centre_crop:
            rgb = crop_centre(rgb, side)
        return np.ascontiguousarray(rgb)


def jpeg_round_trip(rgb: ByteArray) -> ByteArray:
    """Encode as the BridgeData recorder did (quality 95, 4:2:0) and decode: the model has only seen frames with these marks.

    Frames agree with TensorFlow's to about one grey level on average: its decoder uses the fast integer DCT, PIL the accurate one.
    """
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(stream, format="JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(stream))


def lanczos_resize(rgb: ByteArray, side: int) -> ByteArray:
    """[H, W, 3] -> [side, side, 3] like TensorFlow's antialiased Lanczos3: in float, rounded once at the end."""
    rounded: ByteArray = np.clip(np.rint(lanczos_float(rgb, side)), 0, 255).astype(np.uint8)
    return rounded


def lanczos_float(rgb: ByteArray, side: int) -> PixelArray:
    """[H, W, 3] -> [side, side, 3] float32, not clipped."""
    height, width = rgb.shape[:2]
    rows, columns = lanczos_weights(height, side), lanczos_weights(width, side)
    lines = rows @ rgb.reshape(height, -1).astype(np.float32)  # [side, W*3]
    return np.asarray(np.einsum("ow,rwc->roc", columns, lines.reshape(side, width, 3), optimize=True), dtype=np.float32)


@lru_cache(maxsize=16)
def lanczos_weights(source: int, target: int) -> PixelArray:
    """[target, source] weights of a Lanczos3 kernel, widened when shrinking, cut at the border and normalised.

    Positions are float32 and by way of target / source, as in TensorFlow: over 320 columns that moves them by up to 1e-5.
    """
    stride = np.float32(1.0) / (np.float32(target) / np.float32(source))
    centres = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * stride
    places = np.arange(source, dtype=np.float32) + np.float32(0.5)
    distance = ((places - centres[:, None]) * (np.float32(1.0) / max(stride, np.float32(1.0)))).astype(np.float64)
    weights = np.where(np.abs(distance) < 3.0, np.sinc(distance) * np.sinc(distance / 3.0), 0.0)
    normalized: PixelArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    normalized.flags.writeable = False
    return normalized


def crop_centre(rgb: ByteArray, side: int) -> ByteArray:
    """The central 90 % of the area, [H, W, 3] -> [side, side, 3], bilinear without antialias, rounded as TensorFlow does."""
    # convert_image_dtype multiplies by 255.5 and truncates, which is its way of rounding
    levels: ByteArray = (np.clip(crop_centre_float(rgb, side), 0.0, 1.0) * np.float32(255.5)).astype(np.uint8)
    return levels


def crop_centre_float(rgb: ByteArray, side: int) -> PixelArray:
    """[H, W, 3] uint8 -> [side, side, 3] float32 in 0..1."""
    top, bottom, row_share = crop_samples(rgb.shape[0], side)
    left, right, column_share = crop_samples(rgb.shape[1], side)
    pixels = rgb.astype(np.float32) * np.float32(1.0 / 255.0)
    share = column_share[None, :, None]
    upper = pixels[top][:, left] + (pixels[top][:, right] - pixels[top][:, left]) * share
    lower = pixels[bottom][:, left] + (pixels[bottom][:, right] - pixels[bottom][:, left]) * share
    return np.asarray(upper + (lower - upper) * row_share[:, None, None], dtype=np.float32)


def crop_samples(length: int, side: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], PixelArray]:
    """Where the crop samples one axis: index before, index after, share of the latter; each [side]."""
    factor, cells = np.sqrt(np.float32(CROP_AREA)), np.float32(length - 1)
    first = (np.float32(1.0) - factor) / np.float32(2.0)
    step = ((first + factor) - first) * cells / np.float32(side - 1)  # in float32 and in this order: TensorFlow rounds so
    position = first * cells + np.arange(side, dtype=np.float32) * step
    before = np.floor(position).astype(np.int64)
    return before, np.minimum(before + 1, length - 1), (position - before).astype(np.float32)


@dataclass(frozen=True)
class TowerInput:
    """What one tower takes: side length [px], mean and standard deviation per colour for values in 0..1."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Processor:
    """The model's own image processor, as stored in preprocessor_config.json.

    strategy: one of STRATEGIES. letterbox_fill: colour of the border for `letterbox`.
    """

    strategy: str
    towers: tuple[TowerInput, ...]
    letterbox_fill: tuple[int, ...] = (127, 127, 127)

    @property
    def side(self) -> int:
        """Side length of the picture that all towers look at [px]."""
        return self.towers[0].side

    def to_picture(self, rgb: ByteArray) -> ByteArray:
        """[H, W, 3] uint8 -> the [side, side, 3] uint8 that every tower looks at."""
        picture = Image.fromarray(rgb)
        if self.strategy == "letterbox":
            picture = pad_to_square(picture, self.letterbox_fill)
        return self.resize(picture, self.side)

    def to_pixels(self, rgb: ByteArray) -> PixelArray:
        """[H, W, 3] uint8 -> [3 per tower, side, side] float32, first tower first."""
        return self.shade(self.to_picture(rgb))

    def shade(self, picture: ByteArray) -> PixelArray:
        """[side, side, 3] uint8 -> [3 per tower, side, side] float32: each grey level as `levels` says."""
        planes, levels = picture.transpose(2, 0, 1), self.levels()
        return np.stack([levels[colour][planes[colour % 3]] for colour in range(len(levels))])

    def levels(self) -> PixelArray:
        """[3 per tower, 256] what each grey level becomes: (value/255 - mean) / std, every step in float32, as the released code."""
        grey = np.arange(256, dtype=np.float32) / np.float32(255.0)
        mean, std = (np.array([getattr(tower, name) for tower in self.towers], dtype=np.float32).reshape(-1, 1) for name in ("mean", "std"))
        return np.asarray((grey - mean) / std, dtype=np.float32)

    def resize(self, picture: Image.Image, side: int) -> ByteArray:
        """[side, side, 3] uint8 by the strategy; bicubic. A picture of the right size stays as it is."""
        width, height = picture.size
        if self.strategy == "resize-naive":
            target = (side, side)
        else:
            short = min(width, height)
            target = (int(side * width / short), int(side * height / short))
        if target != picture.size:
            picture = picture.resize(target, Image.Resampling.BICUBIC)
        left, top = round((target[0] - side) / 2.0), round((target[1] - side) / 2.0)
        return np.asarray(picture.crop((left, top, left + side, top + side)))


def pad_to_square(picture: Image.Image, fill: tuple[int, ...]) -> Image.Image:
    """Equal borders left and right, or above and below. An odd difference leaves it one pixel short of square, as released."""
    width, height = picture.size
    longer = max(width, height)
    across, down = (longer - width) // 2, (longer - height) // 2
    square = Image.new("RGB", (width + 2 * across, height + 2 * down), fill)
    square.paste(picture, (across, down))
    return square


def read_processor(folder: Path) -> Processor:
    """The processor of a checkpoint folder. Raises CheckpointError for a missing, damaged or unknown description."""
    path = folder / "preprocessor_config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return parse_processor(content)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no preprocessor_config.json. It is part of the published layout: copy it from the "
                              "model's page (for a fine-tuned model: from the model it was made from).") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not an OpenVLA image processor: {type(error).__name__}: {error}. Copy it again.") from error


def parse_processor(content: dict[str, Any]) -> Processor:
    """From the content of preprocessor_config.json. Raises ValueError, KeyError or TypeError for what it cannot take."""
    strategy = content["image_resize_strategy"]
    if strategy not in STRATEGIES:
        raise ValueError(f"image_resize_strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    sides = []
    for channels, height, width in content["input_sizes"]:
        if channels != 3 or height != width or height < 1:
            raise ValueError(f"input size {[channels, height, width]} is not 3 colours of a square")
        sides.append(int(height))
    # The stored tvf_* numbers are what the released processor applies. They are rounded to bfloat16 in the published files and
    # win over the exact `means` and `stds` beside them.
    stored = content.get("tvf_normalize_params") or [{"mean": mean, "std": std}
                                                     for mean, std in zip(content["means"], content["stds"], strict=True)]
    towers = tuple(TowerInput(side, tuple(map(float, item["mean"])), tuple(map(float, item["std"])))
                   for side, item in zip(sides, stored, strict=True))
    if len(set(sides)) != 1:
        raise ValueError(f"input sizes {sides} differ, but all towers look at one picture")
    if any(len(tower.mean) != 3 or len(tower.std) != 3 or min(tower.std) <= 0 for tower in towers):
        raise ValueError("mean and std must be three numbers per tower, std above 0")
    fill = content.get("tvf_letterbox_fill") or [int(255 * value) for value in content["means"][-1]]
    return Processor(strategy, towers, tuple(int(value) for value in fill))
