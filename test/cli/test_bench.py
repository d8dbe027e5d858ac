"""bench: its rows run, its forms hold together. No number of microseconds is asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from openvla_ros.benchmark import parts
from openvla_ros.cli import app, bench


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert app.answer(["bench", "--sections", "parts", "--seconds", "0.01", *arguments, "--json"]) == 0
    said = capsys.readouterr()
    return dict(json.loads(said.out))


def test_every_row_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys)
    assert [item["name"] for item in result["items"]] == list(bench.ITEMS)
    for item in result["items"]:
        assert item["calls"] >= 10 and 0.0 < item["median_us"] <= item["p99_us"]
        assert not item["skipped"] and item["ratio"] is None and item["earlier_median_us"] is None
    assert result["machine"]["cores"] >= 1 and result["machine"]["processor"]


def test_beside_an_earlier_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    earlier = run(capsys, "--only", "safety")
    earlier["items"][0]["median_us"] = 1e-3
    (tmp_path / "before.json").write_text(json.dumps(earlier), encoding="utf-8")
    safety, pilot = run(capsys, "--against", str(tmp_path / "before.json"), "--only", "one step")["items"][-1], run(
        capsys, "--against", str(tmp_path / "before.json"), "--only", "pilot")["items"][0]
    assert safety["earlier_median_us"] == 1e-3 and safety["ratio"] == pytest.approx(safety["median_us"] * 1e3)
    assert pilot["earlier_median_us"] is None and pilot["ratio"] is None


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    bench.show([bench.Measured("this", 100, 10.0, 333.3), bench.Measured("that", skipped="no library"), bench.Measured("new", 9, 1.0, 2.0)],
               {"this": 20.0, "that": 5.0})
    said = capsys.readouterr().out
    assert "10.0" in said and "333.3" in said and "1.00%" in said and "20.0" in said and "0.50" in said
    assert "that skipped: no library" in said and "ratio" in said and "nan" not in said


def test_a_row_whose_library_is_missing_is_skipped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pinocchio", None)  # what an import finds where it is not installed
    item, other = run(capsys, "--only", "forward")["items"][0], run(capsys, "--only", "safety")["items"][0]
    assert "kinematics" in item["skipped"] and item["median_us"] is None and item["calls"] == 0
    assert not other["skipped"]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--only", "no such row"], "fits no row; there are: forward kinematics; "),
    (["--against", "no/such/file"], "not the output of openvla-ros bench --json"),
    (["--seconds", "0"], "0.01"),
    (["--sections", "parts,noise"], "--sections has 'noise', expected some of parts, engine, "),
    (["--size", "huge"], "--size is 'huge', expected one of tiny, mid, 7b"),
    (["--dtype", "float16"], "expected one of float32, bfloat16"),
    (["--quantization", "int2"], "expected some of none, int8, nf4, w8a8"),
    (["--batch", "0"], "numbers from 1 to 256"),
    (["--batch", "two"], "numbers from 1 to 256"),
    (["--sections", "parts", "--picture", "engine.png"], "which --sections leaves out"),
    (["--picture", "no/such/folder/engine.png"], "Name a .png file"),
])
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert app.answer(["bench", *arguments, "--json"]) == 2
    assert words in json.loads(capsys.readouterr().out)["error"]


def test_a_foreign_file_to_compare_with_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for content in ("", "[]", '{"items": [{"name": "x"}]}', '{"items": 3}'):
        (tmp_path / "before.json").write_text(content, encoding="utf-8")
        assert app.answer(["bench", "--against", str(tmp_path / "before.json"), "--json"]) == 2
        assert "Write one with" in json.loads(capsys.readouterr().out)["error"]


def test_the_rows_measure_what_they_say() -> None:
    """A row that measures refusals by mistake would look fast or slow for the wrong reason."""
    for row in (parts.inverse_kinematics_tick, parts.inverse_kinematics_step):
        call = row()
        reached = [call().reached for _ in range(200)]  # type: ignore[attr-defined]
        assert sum(reached) > 180
    call = parts.inverse_kinematics_out_of_reach()
    assert not any(call().reached for _ in range(50))  # type: ignore[attr-defined]
    for row in (parts.pilot_tick, parts.pilot_tick_joints):
        tick = row()
        decisions = [tick() for _ in range(40)][5:]  # the first chunk comes with the sixth tick
        assert sum(decision.step_started for decision in decisions) == 6  # type: ignore[attr-defined]
        assert all(decision.twist.moving and not decision.refused for decision in decisions)  # type: ignore[attr-defined]
    chain = parts.safety_chain()
    assert [chain().rules for _ in range(2)] == [(), ("step_clamp_translation", "step_clamp_rotation")]  # type: ignore[attr-defined]


def test_records_of_numbers_are_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    spread = {"count": 3, "median": 1.23456, "p99": None, "largest": 4.0}
    bench.show_plain("nodes", {"overheads": [{"transport": "raw", "times": {"overhead_ms": spread}, "goal_ms": 5.0}], "load_before": 0.5},
                     Console())
    said = capsys.readouterr().out
    assert "overhead ms" in said and "1.235, p99 -" in said and "nodes: load before 0.5" in said and "goal ms" in said


def test_a_section_that_cannot_be_had_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rclpy", "rosbags", "openvla_ros.bags.episode"):  # what an import finds where it is not installed
        monkeypatch.setitem(sys.modules, module, None)
    assert app.answer(["bench", "--sections", "decoding", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "decoding" not in said and "not installed" in said["skipped"]["decoding"]
