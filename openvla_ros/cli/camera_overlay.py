"""`openvla-ros doctor --camera-overlay`: where the camera stands against a frame of the dataset, as a picture and in words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import typer
from PIL import Image, UnidentifiedImageError

from openvla_ros.cli.predict import PICTURE_MODES
from openvla_ros.contract import ByteArray
from openvla_ros.errors import BagError, ConfigurationError, DependencyMissing, ImageError
from openvla_ros.observation.overlay import Comparison, overlay


@dataclass(frozen=True)
class Source:
    """Where the picture to be judged comes from: a file, a recording, or else the running camera."""

    image: Path | None
    bag: Path | None
    topic: str
    namespace: str
    seconds: float


def place_camera(reference: Path, source: Source, output: Path, alpha: float, as_json: bool) -> int:
    """Draw the overlay into `output`, say the numbers, and return the exit code. Raises OpenvlaRosError before anything is written."""
    if source.image is not None and source.bag is not None:
        raise ConfigurationError("--image and --bag both name the picture. Give one of them, or none for the running camera.")
    if output.suffix.lower() != ".png" or not output.resolve().parent.is_dir():
        raise ConfigurationError(f"--output {output} must be a .png file in a folder that exists.")
    wanted = read_picture(reference)
    live, origin = take(source)
    drawn, comparison = overlay(wanted, live, alpha)
    Image.fromarray(drawn).save(output)
    if as_json:
        print(json.dumps({"output": str(output), "picture": origin, "edge_overlap": comparison.edge_overlap,
                          "edge_overlap_by_chance": comparison.edge_chance,
                          "shift_right_down_px": comparison.shift_px, "edge_overlap_shifted": comparison.edge_overlap_shifted,
                          "size_note": comparison.size_note, "advice": comparison.advice}))
    else:
        for line in spoken(comparison, origin, output):
            typer.echo(line)
    return 0


def spoken(comparison: Comparison, origin: str, output: Path) -> list[str]:
    """The comparison for people."""
    lines = [f"picture       {origin}"]
    if comparison.size_note:
        lines.append(f"size          {comparison.size_note}")
    lines.append(f"edges         {100 * comparison.edge_overlap:.0f} % of the reference's edges are met; chance alone meets "
                 f"{100 * comparison.edge_chance:.0f} %, a placed camera about 80 % (arm and objects differ)")
    if comparison.shift_px is not None:
        right, down = comparison.shift_px
        lines.append(f"shift         the view lies {right:+.1f} px right and {down:+.1f} px down of the reference (phase correlation; "
                     f"without it {100 * comparison.edge_overlap_shifted:.0f} % of the edges would be met)")
    return [*lines, f"advice        {comparison.advice}",
            f"written       {output}: magenta where the reference has edges, green where the camera has, white where they meet"]


def take(source: Source) -> tuple[ByteArray, str]:
    """The picture to be judged and where it came from. Raises OpenvlaRosError."""
    if source.image is not None:
        return read_picture(source.image), str(source.image)
    if source.bag is not None:
        return first_frame(source.bag, source.topic)
    for package in ("rclpy", "sensor_msgs"):
        if find_spec(package) is None:
            raise DependencyMissing(f"the running camera needs ROS 2, and {package} is not importable. Give --image or --bag, use make "
                                    "setup, or source a ROS workspace.")
    from openvla_ros.ros.snapshot import take_picture  # late: a file needs no ROS

    return take_picture(source.seconds, source.namespace, source.topic)


def first_frame(bag: Path, topic: str) -> tuple[ByteArray, str]:
    """The first picture of a recording that can be decoded. Raises BagError."""
    if find_spec("rosbags") is None:
        raise DependencyMissing("--bag needs the package rosbags: pip install 'openvla-ros[bags]'")
    from openvla_ros.bags.frames import frames, select
    from openvla_ros.bags.read import Recording

    with Recording(bag) as recording:
        selection = select(recording, topic, instruction="none")  # pictures only: no instruction has to be found
        for frame in frames(recording, selection):
            if frame.rgb is not None:
                return frame.rgb, f"{bag}, {selection.image.name}, frame {frame.index}"
    raise BagError(f"no picture of {bag} on {selection.image.name} can be decoded. Name another topic with --image-topic.")


def read_picture(path: Path) -> ByteArray:
    """A picture file, uint8 [H, W, 3], red first. Raises ImageError."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in PICTURE_MODES:
                raise ImageError(f"{path} has pixels of kind {picture.mode}, expected 8 bits per channel. Convert it to 8-bit PNG.")
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError as error:
        raise ImageError(f"there is no picture {path}. Name a PNG or JPEG file.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, EOFError) as error:
        raise ImageError(f"{path} is not a readable picture: {error}. Name a PNG or JPEG file.") from error
