"""`openvla-ros bench`: how fast the package is on this machine, and against what: the device's limits, the released way, an earlier run.

The only place where speed is measured: no test asserts a time. What is measured is in `benchmark/`; here it is chosen and shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from openvla_ros.benchmark.parts import ITEMS, TICK_US, Measured, measure
from openvla_ros.benchmark.plain import plain
from openvla_ros.cli.bench_parts import as_plain, machine, read_earlier, show
from openvla_ros.errors import ConfigurationError, DependencyMissing

if TYPE_CHECKING:
    from openvla_ros.benchmark.engine import Plan

SECTIONS = ("parts", "engine", "acceptance", "nodes", "decoding")
DEFAULT_SECTIONS = ("parts", "engine", "nodes", "decoding")
"""What is measured unless something else is asked for. acceptance takes minutes, and says nothing about this machine."""

SIZES = ("tiny", "mid", "7b")
QUANTIZATIONS = ("none", "int8", "nf4", "w8a8")
FRAMES = 16
"""Pictures that the engine is shown in turn."""

MARGINS: Mapping[str, float] = {"float32": 0.01, "bfloat16": 0.5}
"""Bound of the margin rule: ids must be the baseline's where its largest two logits are further apart."""

Say = Callable[[str], None]


def main(
    sections: Annotated[str, typer.Option(help=f"Some of {', '.join(SECTIONS)}. \\[default: {','.join(DEFAULT_SECTIONS)}]")] = "",
    size: Annotated[str, typer.Option(help="Random network for the engine: tiny, mid (0.7 B parameters) or 7b (openvla-7b's shapes). "
                                      "\\[default: 7b on a GPU, else mid]")] = "",
    checkpoint: Annotated[str, typer.Option(help="Real weights for the engine instead: a folder or hub name.")] = "",
    unnorm_key: Annotated[str, typer.Option(help="Action statistics of the checkpoint. Optional where there is only one.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    quantization: Annotated[str, typer.Option("--quantization", "--modes", help=f"Weights of the engine: {', '.join(QUANTIZATIONS)}. "
                                              "Baseline, drafts and batches come with none.")] = "none,w8a8",
    batch: Annotated[str, typer.Option(help="Observations at once, for the throughput of the engine.")] = "1,2,4,8",
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of the engine's modes; 0 for about a minute.")] = 0,
    margin: Annotated[float, typer.Option(help="Ids must be equal where the baseline's two largest logits differ by more. "
                                          "\\[default: 0.5 for bfloat16, 0.01 for float32]")] = -1.0,
    bag: Annotated[list[Path] | None, typer.Option(help="Recordings: frames for the engine, drafts for acceptance, decoding.")] = None,
    episodes: Annotated[int, typer.Option(min=1, max=1000, help="Episodes per task, for acceptance in the simulation.")] = 20,
    picture: Annotated[Path | None, typer.Option(help="Draw the engine's result into this .png file.")] = None,
    seconds: Annotated[float, typer.Option(min=0.01, max=600.0, help="Time to spend on each row of parts [s].")] = 1.0,
    only: Annotated[str, typer.Option(help="Measure only parts whose name holds this text, and no other section.")] = "",
    against: Annotated[Path | None, typer.Option(help="Output of an earlier `bench --json`: its parts are shown beside.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")] = False,
) -> None:
    """Measure how fast the package is here: parts of the command side, the engine beside the released way, ROS, replay.

    Close other programs first: what they take shows in the 99th percentile. What cannot be measured here is skipped with the reason.
    """
    chosen = listed("--sections", sections, SECTIONS) or (("parts",) if only else DEFAULT_SECTIONS)
    rows = {name: prepare for name, prepare in ITEMS.items() if only in name}
    if not rows:
        raise ConfigurationError(f"--only {only!r} fits no row; there are: {'; '.join(ITEMS)}.")
    earlier = {} if against is None else read_earlier(against)
    kinds, rows_at_once = check_engine(size, device, dtype, quantization, batch)
    if picture is not None:
        from openvla_ros.benchmark.picture import check_picture  # late: torch

        check_picture(picture)
        if "engine" not in chosen:
            raise ConfigurationError("--picture shows the engine, which --sections leaves out.")
    content: dict[str, Any] = {"machine": machine(), "tick_us": TICK_US, "skipped": {}}
    measured: list[Measured] = []
    with progress_lines(as_json) as (say, bar):
        for section in chosen:
            try:
                if section == "parts":
                    measured = measure_parts(rows, seconds, bar)
                    content["items"] = [as_plain(row, earlier) for row in measured]
                elif section == "engine":
                    content[section] = measure_engine(size, checkpoint, unnorm_key, device, dtype, kinds, rows_at_once, rounds, margin,
                                                      bag or [], bar)
                elif section == "acceptance":
                    content[section] = measure_acceptance(checkpoint, unnorm_key, bag or [], episodes, bar)
                else:
                    content[section] = measure_with_ros(section, bag or [], say)
            except DependencyMissing as error:
                content["skipped"][section] = str(error)
    if picture is not None and "engine" in content:
        from openvla_ros.benchmark.picture import write_picture

        write_picture(content["engine"], picture)
    if as_json:
        print(json.dumps(content))
        return
    show_all(content, measured, earlier)
    if picture is not None:
        typer.echo(f"picture: {picture}")


def listed(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """A list with commas, in its own order. Raises ConfigurationError."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in known]:
        raise ConfigurationError(f"{option} has {unknown[0]!r}, expected some of {', '.join(known)}.")
    return names


def check_engine(size: str, device: str, dtype: str, quantization: str, batch: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(kinds of quantised weights, batch sizes), before anything is measured. Raises ConfigurationError."""
    for option, value, known in (("--size", size, ("", *SIZES)), ("--device", device, ("auto", "cpu", "cuda")),
                                 ("--dtype", dtype, tuple(MARGINS))):
        if value not in known:
            raise ConfigurationError(f"{option} is {value!r}, expected one of {', '.join(filter(None, known))}.")
    kinds = listed("--quantization", quantization, QUANTIZATIONS) or ("none",)
    try:
        sizes = tuple(dict.fromkeys(int(number) for number in batch.split(",") if number.strip()))
    except ValueError:
        sizes = (0,)
    if any(not 1 <= number <= 256 for number in sizes):
        raise ConfigurationError(f"--batch is {batch!r}, expected numbers from 1 to 256 with commas between.")
    return kinds, sizes


@contextmanager
def progress_lines(quiet: bool) -> Iterator[tuple[Say, Callable[[str, int, int], None]]]:
    """A bar on stderr, as two functions: (text), and (text, done, in all)."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("bench {task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def bar(text: str, done: int, total: int) -> None:
            progress.update(task, description=text, completed=done, total=total)

        yield lambda text: progress.update(task, description=text, completed=0, total=None), bar


def measure_parts(rows: Mapping[str, Callable[[], Any]], seconds: float, bar: Callable[[str, int, int], None]) -> list[Measured]:
    """The rows of `benchmark/parts.py`."""
    measured = list[Measured]()
    for name, prepare in rows.items():
        bar(name, len(measured), len(rows))
        measured.append(measure(name, prepare, seconds))
    return measured


def measure_engine(size: str, checkpoint: str, unnorm_key: str, device: str, dtype: str, kinds: tuple[str, ...], batches: tuple[int, ...],
                   rounds: int, margin: float, bags: list[Path], bar: Callable[[str, int, int], None]) -> dict[str, Any]:
    """The section `engine`, as `benchmark/table.py` has it. Raises OpenvlaRosError."""
    engine, table, pictures = need_torch("engine"), need_torch("table"), need_torch("pictures")
    if not size:
        size = "7b" if engine.choose_device(device).type == "cuda" else "mid"
    frames = pictures.recorded_frames(bags[0], FRAMES) if bags else pictures.made_frames(FRAMES)
    plan: Plan = engine.Plan(size, checkpoint, unnorm_key, device, dtype, kinds, batches, rounds, frames,
                             MARGINS[dtype] if margin < 0 else margin)
    report = engine.run(plan, lambda what, done, total: bar(f"loading {what}", done, total), lambda done, total: bar("rounds", done, total))
    return dict(table.to_mapping(report))


def measure_acceptance(checkpoint: str, unnorm_key: str, bags: list[Path], episodes: int,
                       bar: Callable[[str, int, int], None]) -> list[dict[str, Any]]:
    """The section `acceptance`: the shipped policy in the simulation; with bags the checkpoint on them, and their recorded actions."""
    sequences = need_torch("sequences")
    return [found.to_mapping() for found in sequences.all_acceptances(checkpoint, unnorm_key, bags, episodes, bar)]


def measure_with_ros(section: str, bags: list[Path], say: Say) -> Any:
    """The sections `nodes` and `decoding`: dataclasses of numbers, as plain values. Raises OpenvlaRosError."""
    try:
        module = import_module(f"openvla_ros.benchmark.{section}")
    except ModuleNotFoundError as error:
        raise DependencyMissing(f"the section {section} needs {error.name!r}, which cannot be imported here.") from error
    found = module.measure_nodes(report=say) if section == "nodes" else module.measure_decoding(bags[0] if bags else None, report=say)
    return plain(found)


def need_torch(module: str) -> Any:
    """A module of the benchmark that needs torch. Raises DependencyMissing."""
    try:
        return import_module(f"openvla_ros.benchmark.{module}")
    except ModuleNotFoundError as error:
        raise DependencyMissing(f"the engine needs the Python package {error.name!r}, which is not installed. Install it with: "
                                "pip install 'openvla-ros[policy]'") from error


def show_all(content: Mapping[str, Any], measured: list[Measured], earlier: dict[str, float]) -> None:
    """Every section that was measured, and why the others were not."""
    console = Console()
    if measured:
        show(measured, earlier)
    if "engine" in content:
        need_torch("table").show(content["engine"], console)
    if "acceptance" in content:
        show_acceptance(content["acceptance"], console)
    for section in ("nodes", "decoding"):
        if section in content:
            show_plain(section, content[section], console)
    for section, reason in content["skipped"].items():
        console.print(f"{section} skipped: {reason}", markup=False, highlight=False)


def show_acceptance(rows: list[dict[str, Any]], console: Console) -> None:
    """How often each number keeps its bin, and the passes that drafts would take."""
    from openvla_ros.contract import ACTION_NAMES

    table = Table("same bin as the action before", title_justify="left")
    for name in ("pairs", *ACTION_NAMES):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["source"], str(row["pairs"]), *(f"{share:.0%}" for share in row["equal"]))
    console.print(table)
    ways = list(dict.fromkeys(way for row in rows for way in row["passes"]))
    table = Table("passes per action", *ways, title_justify="left")
    for row in rows:
        table.add_row(row["source"], *(f"{row['passes'][way]:.2f}" if way in row["passes"] else "-" for way in ways))
    console.print(table)


def show_plain(title: str, found: Any, console: Console) -> None:
    """Alike records as a table with one column each; a number by itself as a line."""
    for name, value in (found.items() if isinstance(found, dict) else [(title, found)]):
        records = [flat(record) for record in value if isinstance(record, dict)] if isinstance(value, list) else []
        if not records:
            console.print(f"{title}: {name.replace('_', ' ')} {short(value)}", markup=False, highlight=False)
            continue
        table = Table(name, *("" for _ in records), title_justify="left", show_header=True)
        for field in records[0]:
            table.add_row(field.replace("_", " "), *(short(record.get(field)) for record in records))
        console.print(table)


def flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Records within a record as fields of it; spreads stay."""
    fields: dict[str, Any] = {}
    for name, value in record.items():
        fields |= flat(value) if isinstance(value, dict) and "median" not in value else {name: value}
    return fields


def short(cell: Any) -> str:
    """Median and 99th percentile of a spread; four digits of a number."""
    if isinstance(cell, dict) and {"median", "p99"} <= cell.keys():
        return f"{short(cell['median'])}, p99 {short(cell['p99'])}"
    return f"{cell:.4g}" if isinstance(cell, float) else "-" if cell is None else str(cell)
