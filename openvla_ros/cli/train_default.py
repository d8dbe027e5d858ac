"""`openvla-ros train-default`: make the default policy again, from nothing, on this computer's processor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from openvla_ros.errors import ConfigurationError, DependencyMissing, TrainingError
from openvla_ros.robot import Limits, from_mapping
from openvla_ros.share import share_folder

if TYPE_CHECKING:
    from openvla_ros.training.default_policy.run import Outcome, Report

ROBOT = "wx250s_sim"
"""Profile of the arm that is driven."""

LEARNED_SHARE = 0.8
"""A smoke run has learned when the error of the tokens at its end is below this share of that at the beginning."""

LINE_EVERY_S = 20.0
"""Without a terminal: a line of progress so often."""


def main(
    output: Annotated[Path, typer.Option(help="Folder for the run: the checkpoint comes to lie in DIR/checkpoint, about 2 GB of frames and "
                                         "the state of the run in DIR/work.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder, wherever it was ended or killed.")] = False,
    smoke: Annotated[bool, typer.Option("--smoke", help="Two minutes that only show that it learns; exit code 2 if not.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, processes and computer give the same weights.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes of one thread; they share each update's frames.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")] = False,
) -> None:
    """Train the small default policy: data from the simulation, training, DAgger rounds, evaluation, checkpoint with card and plots.

    Takes about an hour on two free cores and no GPU. It may be ended or killed at any time and goes on with --resume.
    The folder DIR/checkpoint then works as any checkpoint does: --checkpoint DIR/checkpoint.
    """
    try:
        from openvla_ros.training.default_policy.recipe import RECIPES  # late: torch and MuJoCo take seconds
        from openvla_ros.training.default_policy.run import train
    except ImportError as error:
        raise DependencyMissing(f"training needs torch and MuJoCo ({error}). Install them with: "
                                "pip install 'openvla-ros[policy,simulation]'") from error
    recipe = RECIPES["smoke" if smoke else "full"]
    if math.gcd(recipe.picture_frames, recipe.batch_frames) % workers:
        raise ConfigurationError(f"{workers} workers cannot share the {recipe.picture_frames} and {recipe.batch_frames} frames of an "
                                 "update evenly. Take a divisor of both.")
    with shown_progress(as_json) as report:
        outcome = train(output, recipe, seed, workers, read_limits(), resume, report)
    if smoke:
        check_learning(outcome)
    if as_json:
        print(json.dumps(as_plain(outcome, seed)))
    else:
        show(outcome)


def read_limits() -> Limits:
    """Of the simulated robot."""
    path = share_folder() / "config" / "robots" / f"{ROBOT}.yaml"
    return from_mapping(yaml.safe_load(path.read_text(encoding="utf-8")), str(path)).limits


def check_learning(outcome: Outcome) -> None:
    """Raises TrainingError if the error of the tokens did not fall clearly."""
    errors = [record["l1_bins"] for record in outcome.log if "l1_bins" in record]
    if errors[-1] > LEARNED_SHARE * errors[0]:
        raise TrainingError(f"the smoke run did not learn: its tokens were off by {errors[0]:.1f} bins at the beginning and are by "
                            f"{errors[-1]:.1f} at the end, expected less than {LEARNED_SHARE:.0%} of that.")


def as_plain(outcome: Outcome, seed: int) -> dict[str, Any]:
    """For --json."""
    measured = [record for record in outcome.log if "l1_bins" in record]
    return {"checkpoint": str(outcome.checkpoint), "parameters": outcome.parameters, "seed": seed, "updates": outcome.log[-1]["step"],
            "wall_s": outcome.log[-1]["wall_s"], "cpu_s": outcome.log[-1]["cpu_s"],
            "l1_bins": {"first": measured[0]["l1_bins"], "last": measured[-1]["l1_bins"]}, "evaluation": outcome.trials}


def show(outcome: Outcome) -> None:
    """For people."""
    console, kinds = Console(), list(next(iter(outcome.trials.values())))
    table = Table("what", *kinds, title=f"successes on unseen layouts ({outcome.parameters / 1e6:.2f} million parameters)")
    for name, rows in outcome.trials.items():
        table.add_row(name, *(f"{row['successes']}/{row['episodes']}" for row in rows.values()))
    console.print(table)
    console.print(f"checkpoint, card and plots: {outcome.checkpoint}", markup=False, highlight=False)


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Report]:
    """On stderr: a bar for what is going on, with the time left for it; a line now and then where stderr is no terminal."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    if not console.is_terminal:
        yield lines_now_and_then(console)
        return
    with Progress(*columns, console=console, speed_estimate_period=120.0) as bars:
        open_bars: dict[str, Any] = {}

        def report(stage: str, done: int, count: int) -> None:
            name = stage.split(",")[0]
            if name not in open_bars:
                open_bars[name] = bars.add_task(stage, total=count)
            bars.update(open_bars[name], description=stage, completed=done, total=count)

        yield report


def lines_now_and_then(console: Console) -> Callable[[str, int, int], None]:
    """A report that prints a line when something new begins, and every LINE_EVERY_S."""
    said: dict[str, float] = {}

    def report(stage: str, done: int, count: int) -> None:
        name = stage.split(",")[0]
        if monotonic() - said.get(name, -LINE_EVERY_S) >= LINE_EVERY_S:
            said[name] = monotonic()
            console.print(f"{stage}: {done} of {count}", markup=False, highlight=False)

    return report
