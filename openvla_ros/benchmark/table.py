"""An EngineReport as plain values for JSON, and as tables in a terminal. Ratios are of medians, taken in the same rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from openvla_ros.benchmark.engine import EngineReport, Measured, Start, limit_ms, plan_summary
from openvla_ros.benchmark.plain import plain

STAGES = ("preprocess", "upload", "vision", "prefill", "decode", "host")
"""In the order in which they come."""

BASELINE, OURS = "baseline", "ours"


def to_mapping(report: EngineReport) -> dict[str, Any]:
    """Everything for JSON: numbers that were not measured are null."""
    baseline = report.named(BASELINE)
    content: dict[str, Any] = plain({
        "about": plan_summary(report), "notes": list(report.notes), "limits": report.limits.to_mapping(),
        "parts": {part: spread(values) for part, values in report.parts.items()},
        "modes": [mode_mapping(report, one, baseline) for one in report.measured],
        "starts": [start_mapping(start) for start in report.starts],
        "peak": {"host_bytes": report.peak.peak, "gpu_bytes": report.peak.gpu_peak, "baseline_own_bytes": report.baseline_own_bytes},
    })
    return content


def start_mapping(start: Start) -> dict[str, Any]:
    """How one kind of weights came to be ready."""
    return {"weights": start.name, "load_s": start.load.seconds, "ready_s": start.ready_s, "kept_bytes": start.load.kept_bytes,
            "peak_over_kept_bytes": start.load.over_bytes, "file_bytes": start.file_bytes, "disk_bytes_per_s": start.disk_bytes_per_s,
            "self_test_failed": [check.name for check in start.checks if not check.passed]}


def mode_mapping(report: EngineReport, one: Measured, baseline: Measured | None) -> dict[str, Any]:
    """One mode. ratio: its median over the baseline's; of_limit: least time over median, 1 for what cannot be faster."""
    about = {"name": one.mode.name, "exact": one.mode.exact, "rows": one.mode.rows, "quantization": one.mode.quantization,
             "skipped": one.skipped}
    if not one.shots:
        return about
    limits, agreement = limit_ms(report, one) if one.mode.rows == 1 else {}, one.agreement
    reference = baseline.stages() if baseline else {}
    stages = {stage: spread(values) | {"ratio": ratio(values, reference.get(stage)), "limit_ms": limits.get(stage),
                                       "of_limit": share(limits.get(stage), values)} for stage, values in one.stages().items()}
    passes: dict[str, list[float]] = {}
    for shot in one.shots:
        for stage, value in shot.stage_ms.items():
            if stage.startswith("decode "):
                passes.setdefault(stage, []).append(value)
    limit = sum(limits.values()) if limits else None
    totals = one.totals_ms().tolist()
    return about | {
        "shots": len(one.shots), "total": spread(totals), "hz": one.hz, "passes": one.passes,
        "read_bytes_per_s": one.read_bytes_per_s,
        "ratio": ratio(totals, baseline.totals_ms().tolist()) if baseline else None, "limit_ms": limit, "of_limit": share(limit, totals),
        "stages": stages, "single_passes": {stage: spread(values) for stage, values in passes.items()},
        "agreement": {"actions": agreement.actions, "equal": agreement.equal, "flips": agreement.flips, "wrong": agreement.wrong,
                      "tokens": agreement.tokens, "tokens_equal": agreement.tokens_equal, "mean_action_error": agreement.error},
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and 99th percentile in milliseconds."""
    return {"median_ms": float(np.median(values)), "p99_ms": float(np.percentile(values, 99))}


def ratio(values: Sequence[float], others: Sequence[float] | None) -> float | None:
    """Median over median; None without the other, or where that is nothing."""
    below = float(np.median(others)) if others else 0.0
    return float(np.median(values)) / below if below > 0.0 else None


def share(limit: float | None, values: Sequence[float]) -> float | None:
    """Least time over median."""
    median = float(np.median(values))
    return limit / median if limit is not None and median > 0.0 else None


def show(content: dict[str, Any], console: Console) -> None:
    """`to_mapping`'s content as tables."""
    about = content["about"]
    what = about["checkpoint"] or f"size {about['size']}, random weights"
    console.print(f"[bold]Engine[/bold]: {what}, {about['dtype']} on {about['device']}, {about['positions']} positions, "
                  f"{about['rounds']} rounds, torch {about['torch']}", highlight=False)
    for part in (limits_table(content["limits"]), modes_table(content), agreement_table(content), stages_table(content),
                 starts_table(content)):
        console.print(part)
    for note in content["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    for mode in content["modes"]:
        if mode["skipped"]:
            console.print(f"{mode['name']} skipped: {mode['skipped']}", markup=False, highlight=False)
    peak = content["peak"]
    console.print("peak memory of loading and the first round: "
                  f"host {peak['host_bytes'] / 1e9:.2f} GB, GPU {peak['gpu_bytes'] / 1e9:.2f} GB; "
                  f"{peak['baseline_own_bytes'] / 1e9:.2f} GB of it are the baseline's own copies of weights", highlight=False)


def name_column(heading: str) -> Column:
    """What a row is about: never cut, however narrow the terminal."""
    return Column(heading, no_wrap=True)


def limits_table(limits: dict[str, Any]) -> Table:
    """What the device does at best."""
    table = Table(name_column("limit of the device"), "measured")
    for way, rate in limits["ways_to_read"].items():
        best = " (best)" if rate == limits["read_bytes_per_s"] else ""
        table.add_row(f"reading memory, {way}", f"{rate / 1e9:.1f} GB/s{best}")
    table.add_row("matrix product, 2048 cubed", f"{limits['matmul_flop_per_s'] / 1e12:.2f} TFLOP/s")
    for stage in ("vision", "prefill"):
        rows = [row for row in limits["products"] if row["stage"] == stage]
        ms = sum(row["count"] * row["ms"] for row in rows)
        flop = sum(row["count"] * row["ms"] / 1e3 * row["flop_per_s"] for row in rows)
        table.add_row(f"products of {stage}", f"{flop / ms / 1e9:.2f} TFLOP/s, {limits['stage_ms'][stage]:.2f} ms")
    table.add_row("one decoder pass", f"{limits['stage_ms']['decode']:.2f} ms")
    return table


def modes_table(content: dict[str, Any]) -> Table:
    """One line per mode: how fast."""
    table = Table(name_column("mode"), caption="milliseconds are medians of a call")
    for heading in ("ms", "p99 ms", "Hz", "of base", "of limit", "passes"):
        table.add_column(heading, justify="right")
    for mode in content["modes"]:
        if not mode["skipped"] and "total" in mode:
            total = mode["total"]
            table.add_row(called(mode), milliseconds(total["median_ms"]), milliseconds(total["p99_ms"]), f"{mode['hz']:.2f}",
                          number(mode["ratio"]), percent(mode["of_limit"]), f"{mode['passes']:.1f}")
    return table


def agreement_table(content: dict[str, Any]) -> Table:
    """One line per mode: whether its answers are the baseline's."""
    table = Table(name_column("mode"))
    for heading in ("ids equal", "flips", "wrong", "action error"):
        table.add_column(heading, justify="right")
    for mode in content["modes"]:
        agreement = mode.get("agreement")  # a skipped mode has none
        if agreement and agreement["actions"]:
            table.add_row(called(mode), f"{agreement['equal']}/{agreement['actions']}", str(agreement["flips"]), str(agreement["wrong"]),
                          f"{agreement['mean_action_error']:.4f}")
    return table


def called(mode: dict[str, Any]) -> str:
    """Its name, and whether it may differ."""
    return str(mode["name"]) + ("" if mode["exact"] else " (not exact)")


def stages_table(content: dict[str, Any]) -> Table:
    """One line per stage: baseline, ours, limit."""
    modes = {mode["name"]: mode for mode in content["modes"] if "total" in mode}
    baseline, ours = modes.get(BASELINE, {}).get("stages", {}), modes.get(OURS, {}).get("stages", {})
    table = Table(name_column("stage"))
    for heading in ("base ms", "ours ms", "p99 ms", "of base", "limit ms", "of limit"):
        table.add_column(heading, justify="right")
    for part in ("image decode", "resize", "upload"):
        if part in content["parts"]:
            spent = content["parts"][part]
            table.add_row(f"{part} (by itself)", "", milliseconds(spent["median_ms"]), milliseconds(spent["p99_ms"]), "", "", "")
    for stage in STAGES:
        one, other = ours.get(stage), baseline.get(stage)
        if one or other:
            table.add_row(stage, milliseconds(other["median_ms"]) if other else "-", milliseconds(one["median_ms"]) if one else "-",
                          milliseconds(one["p99_ms"]) if one else "-", number(one["ratio"]) if one else "-",
                          milliseconds(one["limit_ms"]) if one and one["limit_ms"] else "", percent(one["of_limit"]) if one else "")
    passes = modes.get(OURS, {}).get("single_passes", {})
    pass_limit_ms = ours["decode"]["limit_ms"] / len(passes) if passes else 0.0
    for name, spent in passes.items():
        table.add_row(f"  pass {name.removeprefix('decode ')}", "", milliseconds(spent["median_ms"]), milliseconds(spent["p99_ms"]), "",
                      milliseconds(pass_limit_ms), percent(pass_limit_ms / max(1e-9, spent["median_ms"])))
    return table


def starts_table(content: dict[str, Any]) -> Table:
    """One line per kind of weights."""
    table = Table(name_column("weights"))
    for heading in ("kept GB", "peak over kept GB", "load s", "until ready s", "disk GB/s", "load / disk time"):
        table.add_column(heading, justify="right")
    for start in content["starts"]:
        rate, size = start["disk_bytes_per_s"], start["file_bytes"]
        table.add_row(start["weights"], f"{start['kept_bytes'] / 1e9:.2f}", f"{start['peak_over_kept_bytes'] / 1e9:.2f}",
                      f"{start['load_s']:.1f}", f"{start['ready_s']:.1f}", f"{rate / 1e9:.2f}" if rate else "-",
                      f"{start['load_s'] / (size / rate):.2f}" if rate and size else "-")
    return table


def milliseconds(value: float) -> str:
    """Three digits or so."""
    return f"{value:.2f}" if value < 10.0 else f"{value:.1f}" if value < 100.0 else f"{value:.0f}"


def number(value: float | None) -> str:
    """Two decimals."""
    return "-" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """A share."""
    return "" if value is None else f"{value:.0%}"
