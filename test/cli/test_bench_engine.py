"""bench, its engine: every row is there and the numbers fit together. No time is asserted."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openvla_ros.benchmark.table import agreement_table
from openvla_ros.cli import app

ENGINE = ("--sections", "engine", "--size", "tiny", "--rounds", "3", "--batch", "1,2")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run, with its picture."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("builtins.print", lambda text: said.append(text))
        assert app.answer(["bench", *ENGINE, "--picture", str(folder / "engine.png"), "--json"]) == 0
    return {**json.loads(said[-1])["engine"], "picture": folder / "engine.png"}


def modes_of(engine: dict[str, Any]) -> dict[str, Any]:
    return {mode["name"]: mode for mode in engine["modes"]}


def test_every_mode_and_stage_is_there(engine: dict[str, Any]) -> None:
    modes = modes_of(engine)
    assert list(modes) == ["baseline", "ours", "ours, draft of another scene", "ours, draft of the same scene", "ours, w8a8",
                           "ours, 2 at once"]
    for mode in modes.values():
        assert not mode["skipped"] and mode["shots"] == 3
        assert {"preprocess", "upload", "vision", "prefill", "decode", "host"} <= mode["stages"].keys()
        assert 0.0 < mode["total"]["median_ms"] <= mode["total"]["p99_ms"]
    assert engine["parts"].keys() == {"image decode", "resize", "upload"}
    assert list(modes["baseline"]["single_passes"]) == [f"decode {number}" for number in range(1, 7)]


def test_the_numbers_fit_together(engine: dict[str, Any]) -> None:
    modes = modes_of(engine)
    baseline = modes["baseline"]["total"]["median_ms"]
    for mode in modes.values():
        assert mode["ratio"] == pytest.approx(mode["total"]["median_ms"] / baseline)
        assert mode["hz"] == pytest.approx(mode["rows"] * 1e3 / mode["total"]["median_ms"])
        for stage in mode["stages"].values():
            assert stage["limit_ms"] is None or stage["of_limit"] is None or stage["of_limit"] == pytest.approx(
                stage["limit_ms"] / stage["median_ms"])
    assert modes["baseline"]["ratio"] == 1.0 and modes["ours, 2 at once"]["limit_ms"] is None
    limits, ours = engine["limits"], modes["ours"]
    beside = limits["read_bytes_per_s"] / ours["read_bytes_per_s"]  # a pass is judged by how fast the memory was just then
    assert ours["stages"]["decode"]["limit_ms"] == pytest.approx(6 * limits["stage_ms"]["decode"] * beside)
    assert ours["limit_ms"] == pytest.approx(
        limits["stage_ms"]["vision"] + limits["stage_ms"]["prefill"] + ours["stages"]["decode"]["limit_ms"])


def test_limits_are_real_numbers(engine: dict[str, Any]) -> None:
    limits = engine["limits"]
    numbers = [limits["read_bytes_per_s"], limits["matmul_flop_per_s"], *limits["ways_to_read"].values(), *limits["stage_ms"].values(),
               *(row[key] for row in limits["products"] for key in ("ms", "flop_per_s", "count"))]
    assert all(math.isfinite(number) and number > 0 for number in numbers)
    assert limits["read_bytes_per_s"] == max(limits["ways_to_read"].values())


def test_exact_modes_say_the_same_ids(engine: dict[str, Any]) -> None:
    modes = modes_of(engine)
    for mode in modes.values():
        if mode["exact"] and mode["name"] != "baseline":
            agreement = mode["agreement"]
            assert agreement["actions"] == 3 and agreement["wrong"] == 0 and agreement["equal"] + agreement["flips"] == 3
    assert modes["ours"]["passes"] == 7.0 and modes["ours, draft of the same scene"]["passes"] == 1.0
    assert not modes["ours, w8a8"]["exact"] and any("random weights" in note for note in engine["notes"])


def test_memory_and_start(engine: dict[str, Any]) -> None:
    assert [start["weights"] for start in engine["starts"]] == ["none", "w8a8"]
    for start in engine["starts"]:
        assert start["load_s"] <= start["ready_s"] and start["peak_over_kept_bytes"] >= 0 and start["disk_bytes_per_s"] is None
        assert "picture matters" not in start["self_test_failed"]
    assert engine["peak"]["host_bytes"] > 0


def test_the_picture_can_be_read(engine: dict[str, Any]) -> None:
    with Image.open(engine["picture"]) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 600


def test_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert app.answer(["bench", "--sections", "engine", "--size", "tiny", "--rounds", "1", "--batch", "1", "--quantization", "none"]) == 0
    said = capsys.readouterr().out
    for words in ("size tiny, random weights", "baseline", "ours, draft of the same scene", "of limit", "reading memory, sum", "prefill",
                  "peak over kept GB", "note: random weights", "peak memory of loading and the first round"):
        assert words in said
    assert "nan" not in said


def test_real_weights_are_measured_with_the_disk(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared / "golden" / "tiny_fused" / "checkpoint"
    bag = shared / "data" / "bags" / "bridge_v2_pot_640x480_raw"
    assert app.answer(["bench", "--sections", "engine", "--checkpoint", str(folder), "--unnorm-key", "bridge_orig", "--dtype", "float32",
                       "--bag", str(bag), "--rounds", "2", "--batch", "1", "--quantization", "none", "--json"]) == 0
    engine = json.loads(capsys.readouterr().out)["engine"]
    ours = modes_of(engine)["ours"]["agreement"]
    assert ours["actions"] == 2 and ours["equal"] == 2 and ours["mean_action_error"] == 0.0
    assert engine["starts"][0]["disk_bytes_per_s"] > 0 and engine["starts"][0]["file_bytes"] > 30e6
    assert engine["about"]["checkpoint"] == str(folder)


def test_what_cannot_be_had_is_skipped_with_the_reason(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("transformers", "bitsandbytes"):  # what an import finds where it is not installed
        monkeypatch.setitem(sys.modules, module, None)
    assert app.answer(["bench", "--sections", "engine", "--size", "tiny", "--rounds", "1", "--batch", "1", "--quantization", "none,nf4",
                       "--json"]) == 0
    modes = modes_of(json.loads(capsys.readouterr().out)["engine"])
    assert "pip install transformers" in modes["baseline"]["skipped"] and "bitsandbytes" in modes["ours, nf4"]["skipped"]
    assert modes["ours"]["ratio"] is None and modes["ours"]["total"]["median_ms"] > 0


def test_quantised_weights_by_themselves_load_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.answer(["bench", "--sections", "engine", "--size", "tiny", "--rounds", "1", "--quantization", "nf4", "--json"]) == 0
    engine = json.loads(capsys.readouterr().out)["engine"]
    assert list(modes_of(engine)) == ["ours, nf4"] and [start["weights"] for start in engine["starts"]] == ["nf4"]
    assert engine["modes"][0]["agreement"]["actions"] == 0 and engine["modes"][0]["ratio"] is None


def test_a_mode_without_room_has_no_row() -> None:
    """Such is the baseline of a 7B model on a small computer."""
    agreement = {"actions": 3, "equal": 2, "flips": 1, "wrong": 0, "mean_action_error": 0.1}
    modes = [{"name": "baseline", "exact": True, "skipped": "no room"},
             {"name": "ours", "exact": True, "skipped": "", "agreement": agreement}]
    assert agreement_table({"modes": modes}).row_count == 1
