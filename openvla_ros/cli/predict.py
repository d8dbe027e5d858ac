"""`openvla-ros predict`: one picture and one instruction through a model, with everything it computed on the way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table

from openvla_ros.contract import ACTION_NAMES, Observation
from openvla_ros.errors import ConfigurationError, ImageError
from openvla_ros.policy.catalogue import SCRIPTED, PolicySettings

if TYPE_CHECKING:
    from openvla_ros.policy.openvla.policy import OpenvlaPolicy, Prediction

PICTURE_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's 8-bit kinds. Deeper ones would be cut to 255 without a word."""


def main(
    checkpoint: Annotated[str, typer.Option(help="'default', a checkpoint folder, or a hub name such as openvla/openvla-7b.")],
    image: Annotated[Path, typer.Option(help="Picture: PNG, JPEG, ... or a .npy file with uint8 \\[height, width, 3], red first.")],
    instruction: Annotated[str, typer.Option(help='What to do, in plain words: "put the spoon on the towel".')],
    unnorm_key: Annotated[str, typer.Option(help="Action statistics to use, such as bridge_orig. Optional where there is only one.")] = "",
    dtype: Annotated[str, typer.Option(help="bfloat16 (as released) or float32 (twice the memory, for comparisons).")] = "bfloat16",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quantization: Annotated[str, typer.Option(help="none; not exact: int8, nf4 or w8a8 (less memory).")] = "none",
    attention: Annotated[str, typer.Option(help="sdpa (torch's own) or flash (needs flash-attn).")] = "sdpa",
    resize: Annotated[str, typer.Option(help="direct, or bridge: JPEG 95 and Lanczos3 first, as in the BridgeData evaluation.")] = "direct",
    rotate_180: Annotated[bool, typer.Option(help="Turn the picture by 180 degrees first (LIBERO cameras).")] = False,
    centre_crop: Annotated[bool, typer.Option(help="Keep the central 90 % of the area (models fine-tuned with random crops).")] = False,
    prompt_style: Annotated[str, typer.Option(help="auto asks the checkpoint; openvla or v01 force a prompt.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of torch; 0 for its own choice.")] = 0,
    logits: Annotated[Path | None, typer.Option(help="Write the array 'logits' [steps, vocab] float32 to this .npz file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")] = False,
) -> None:
    """Run a model once on a picture and show tokens, action and time per stage.

    Works for statistics of any action length. A fault of the model (early end of sequence, a token that is no action) is shown
    with the numbers it would have given; a robot never gets those.
    """
    settings = PolicySettings(checkpoint=checkpoint, unnorm_key=unnorm_key, device=device, dtype=dtype, quantization=quantization,
                              attention=attention, resize=resize, rotate_180=rotate_180, centre_crop=centre_crop,
                              prompt_style=prompt_style, threads=threads)
    if checkpoint == SCRIPTED:
        raise ConfigurationError("the scripted policy has no tokens to show. Name a checkpoint folder; "
                                 "openvla-ros make-checkpoint makes one.")
    observation = read_observation(image, instruction)
    unfinished = None if logits is None else reserve(logits)  # before the model is loaded, which may take minutes
    try:
        from openvla_ros.policy.openvla.loading import load_openvla  # late: torch takes a second, and --help needs none

        policy = load_openvla(settings, progress=False if as_json else None)
        prediction = policy.predict(observation, keep_logits=logits is not None)
        if logits is not None and unfinished is not None and prediction.logits is not None:
            write_logits(prediction.logits, unfinished, logits)
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
    if as_json:
        print(json.dumps(as_plain(policy, prediction)))
    else:
        show(policy, prediction)


def reserve(path: Path) -> Path:
    """An empty file beside `path`, to be filled and moved there. Raises ConfigurationError where none can be made."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"--logits {path}: there is no folder {path.parent}. Make it first.")
    if path.exists() and not path.is_file():
        raise ConfigurationError(f"--logits {path} is a folder or a device, expected the name of an .npz file.")
    unfinished = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    try:
        unfinished.touch()
    except OSError as error:
        raise ConfigurationError(f"--logits {path} cannot be written: {error}. Name a file in a folder of yours.") from error
    return unfinished


def write_logits(logits: npt.NDArray[np.float32], unfinished: Path, path: Path) -> None:
    """Write through `unfinished`, so that `path` is whole or untouched. Raises ConfigurationError."""
    try:
        with unfinished.open("wb") as file:  # an open file, because numpy would change a name without .npz
            np.savez_compressed(file, logits=logits)
        unfinished.replace(path)
    except OSError as error:
        raise ConfigurationError(f"--logits {path} cannot be written: {error}. Free some room, or name another file.") from error


def read_observation(path: Path, instruction: str) -> Observation:
    """A picture file as an observation: alpha is dropped, grey replicated. Raises ImageError or ObservationError."""
    try:
        if path.suffix == ".npy":
            return Observation(np.load(path, allow_pickle=False), instruction, stamp_ns=0)
        with Image.open(path) as picture:
            if picture.mode not in PICTURE_MODES:
                raise ImageError(f"{path} has pixels of kind {picture.mode}, expected 8 bits per channel. Convert it to 8-bit PNG.")
            return Observation(np.asarray(picture.convert("RGB")), instruction, stamp_ns=0, jpeg=picture.format == "JPEG")
    except FileNotFoundError as error:
        raise ImageError(f"there is no picture {path}. Give --image the path of a PNG or JPEG file.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, EOFError) as error:
        raise ImageError(f"{path} is not a readable picture: {error}. Give --image a PNG or JPEG file.") from error


def as_plain(policy: OpenvlaPolicy, prediction: Prediction) -> dict[str, Any]:
    """The prediction for JSON. input_ids are those the model read; action is in metres, radians and gripper 0 closed .. 1 open."""
    return {
        "input_ids": list(prediction.input_ids), "generated_ids": list(prediction.generated_ids), "token_ids": list(prediction.token_ids),
        "normalized_action": prediction.normalized_action.tolist(), "action": prediction.action.tolist(),
        "fault": prediction.fault or None, "stage_ms": dict(prediction.stage_ms),
        "pass_ms": list(prediction.pass_ms), "passes": prediction.passes,
        "policy": policy.name, "unnorm_key": policy.statistics.key, "notes": list(policy.notes),
    }


def show(policy: OpenvlaPolicy, prediction: Prediction) -> None:
    """The prediction in a terminal."""
    console = Console()
    table = Table(title=f"{policy.name}, statistics {policy.statistics.key}", title_justify="left")
    for heading in ("", "token", "normalized", "action"):
        table.add_column(heading, justify="left" if not heading else "right")
    length = len(prediction.action)
    names = ACTION_NAMES if length == len(ACTION_NAMES) else tuple(map(str, range(length)))
    for row in zip(names, prediction.token_ids, prediction.normalized_action, prediction.action, strict=True):
        table.add_row(row[0], str(row[1]), f"{row[2]:+.4f}", f"{row[3]:+.6f}")
    console.print(table)
    console.print("time: " + ", ".join(f"{stage} {value:.1f} ms" for stage, value in prediction.stage_ms.items()))
    for note in policy.notes:
        console.print(f"note: {note}", markup=False)
    if prediction.fault:
        console.print(f"fault: {prediction.fault}. These numbers must not move a robot.", style="red", markup=False)
