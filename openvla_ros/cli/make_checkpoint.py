"""`openvla-ros make-checkpoint`: a small untrained checkpoint of the true architecture, to try everything out with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def main(
    output: Annotated[Path, typer.Option(help="Folder to make. It appears when everything is in it.")],
    size: Annotated[str, typer.Option(help="tiny: about a million parameters, milliseconds per action on one CPU core.")] = "tiny",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it is such a checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a checkpoint with RANDOM weights in the published OpenVLA layout.

    Its actions mean nothing: it exists so that the whole system runs, is timed and is tested without a trained model.
    Statistics key: untrained. It is small, safe to delete, and must not drive a real arm.
    """
    from openvla_ros.policy.openvla.untrained import KEY, write_untrained  # late: torch takes a second

    parameters = write_untrained(output, size, seed, force)
    if as_json:
        print(json.dumps({"checkpoint": str(output), "untrained": True, "unnorm_key": KEY, "parameters": parameters, "seed": seed}))
    else:
        typer.echo(f"{output}: untrained checkpoint with random weights, {parameters / 1e6:.2f} million parameters, statistics {KEY!r}. "
                   "Its actions mean nothing.")
