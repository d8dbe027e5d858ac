"""The page of a replay, and its file for the Rerun viewer: where they lie, and a word about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from openvla_ros.bags.page import write_page
from openvla_ros.bags.viewer import write_rerun
from openvla_ros.errors import DependencyMissing, OpenvlaRosError
from openvla_ros.regression.job import Job, Result
from openvla_ros.regression.pages import page_of


def refuse_without_viewer(rerun: Path | None) -> None:
    """Before a model is loaded for minutes. Raises DependencyMissing."""
    if rerun is not None and find_spec("rerun") is None:
        raise DependencyMissing("--rerun needs the Python package rerun-sdk, which is not installed. Install it with: "
                                "pip install 'openvla-ros[viewer]'")


def write_pages(jobs: Sequence[Job], results: Sequence[Result], folder: Path, rerun: Path | None = None, others: Sequence[Result] = (),
                against: str = "") -> dict[str, str]:
    """Write `replay.html` into the folder, and the viewer's file where one is named; returns what was written.

    One that cannot be written (the disk is full, a recording was moved meanwhile) is no reason to lose hours of results: under
    `not_written` is why.
    """
    files = dict[str, str]()
    try:
        run = page_of(jobs, results, others, against)
        files["page"] = str(write_page(run, folder))
        if rerun is not None:
            files["rerun"] = str(write_rerun(run, rerun))
    except (OpenvlaRosError, OSError) as error:
        files["not_written"] = str(error)
    return files


def show_files(files: Mapping[str, str]) -> None:
    """Where they are, or why they are not there."""
    for name, file in files.items():
        Console().print(f"{name.replace('_', ' ')}: {file}", soft_wrap=True, markup=False, style="yellow" if name == "not_written" else "")
