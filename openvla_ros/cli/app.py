"""The command `openvla-ros`: one small module per subcommand, one place for errors and exit codes.

Exit codes: 0 good; 2 bad input or a refused action (the message says what to do); 1 a fault of ours.
With `--json`, stdout carries exactly one JSON object, also for errors: `{"error": "..."}`.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import typer

from openvla_ros.errors import OpenvlaRosError

UsageError: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises for a command line it cannot read. Newer typer carries its own copy of click, so `click` would miss it."""

COMMANDS = ("run", "teleop", "predict", "record", "play", "replay", "episodes", "sim-eval", "train-default", "doctor", "bench",
            "make-checkpoint", "make-episode")
"""Each is the function `main` of `openvla_ros/cli/<name with underscores>.py`. They import torch and ROS late."""


def build(names: Sequence[str]) -> typer.Typer:
    """The command tree with these commands. With all of them its `--help` is the shortest manual of the package."""
    app = typer.Typer(name="openvla-ros", no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
                      help="A vision-language-action model in charge of a real robot arm, on ROS 2.")
    app.callback()(lambda: None)  # else typer makes the only command of a tree its root, and its name an unknown argument
    for name in names:
        module = import_module(f"openvla_ros.cli.{name.replace('-', '_')}")
        app.command(name)(module.main)
    return app


def main() -> None:
    """Entry point of the console script."""
    sys.exit(answer(sys.argv[1:]))


def answer(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    as_json = "--json" in arguments
    asked = [name for name in arguments[:1] if name in COMMANDS]  # importing the others would take half of the start-up
    try:
        result = build(asked or COMMANDS)(arguments, prog_name="openvla-ros", standalone_mode=False)
    except OpenvlaRosError as error:
        return refuse(str(error), as_json)
    except UsageError as error:
        if as_json:
            return refuse(error.format_message(), as_json)  # type: ignore[attr-defined]
        error.show()  # type: ignore[attr-defined]
        return 2
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:
        traceback.print_exc()
        if as_json:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    return result if isinstance(result, int) else 0


def refuse(message: str, as_json: bool) -> int:
    """Show why the command did not do its work, in the form that was asked for."""
    if as_json:
        print(json.dumps({"error": message}))
    else:
        typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    return 2
