"""What `openvla-ros bench` says of the parts of the command side, also beside an earlier run, and of the machine."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from openvla_ros.benchmark.parts import TICK_US, Measured
from openvla_ros.errors import ConfigurationError


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "system": platform.platform(),
            "python": platform.python_version(), "numpy": np.__version__}


def read_earlier(path: Path) -> dict[str, float]:
    """Medians [us] by name out of an earlier `--json`. Raises ConfigurationError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {item["name"]: float(item["median_us"]) for item in content["items"] if item["median_us"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"--against {path} is not the output of openvla-ros bench --json: {error!r}. "
                                 "Write one with: openvla-ros bench --json > before.json") from error


def ratio(row: Measured, earlier: dict[str, float]) -> float | None:
    """How much longer it takes now, 1 for the same; None without an earlier number."""
    return row.median_us / earlier[row.name] if row.name in earlier and not row.skipped else None


def as_plain(row: Measured, earlier: dict[str, float]) -> dict[str, Any]:
    """One row for JSON, where a number that was not measured is null."""
    plain = {name: None if value != value else value for name, value in asdict(row).items()}
    return plain | {"earlier_median_us": earlier.get(row.name), "ratio": ratio(row, earlier)}


def show(measured: Sequence[Measured], earlier: dict[str, float]) -> None:
    """The rows in a terminal. Microseconds; of tick: p99 as a share of TICK_US; ratio: median now over before."""
    console, here = Console(), machine()
    table = Table(title=f"{here['processor']}, {here['cores']} cores, load {here['load']}, Python {here['python']}", title_justify="left")
    table.add_column("one call, µs", no_wrap=True)
    for heading in ("median", "p99", "of tick", *(("before", "ratio") if earlier else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in measured:
        if row.skipped:
            continue
        change = ratio(row, earlier)
        beside = () if not earlier else ("-", "-") if change is None else (number(earlier[row.name]), f"{change:.2f}")
        table.add_row(row.name, number(row.median_us), number(row.p99_us), f"{row.p99_us / TICK_US:.2%}", *beside)
    console.print(table)
    for row in measured:
        if row.skipped:
            console.print(f"{row.name} skipped: {row.skipped}", markup=False)


def number(microseconds: float) -> str:
    """Four digits or so."""
    return f"{microseconds:.1f}" if microseconds < 1000.0 else f"{microseconds:.0f}"
