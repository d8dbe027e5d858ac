"""The command line itself: exit codes, errors as JSON, and a help that needs neither torch nor ROS."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from openvla_ros.cli import app

LATE = ("torch", "transformers", "rclpy", "openvla_msgs", "matplotlib", "mujoco")


@pytest.mark.parametrize("arguments", [
    ["no-such-command"], ["predict"], ["replay"], ["run", "--checkpoint"], ["doctor", "--seconds", "much"], ["doctor", "--seconds", "0"],
    ["play"], ["--no-such-option"]])
def test_a_wrong_command_line_is_refused_with_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.answer(arguments) == 2
    said = capsys.readouterr()
    assert not said.out and said.err and "Traceback" not in said.err


@pytest.mark.parametrize("arguments", [["no-such-command"], ["predict"], ["replay"], ["doctor", "--seconds", "much"]])
def test_with_json_the_refusal_is_one_object(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.answer([*arguments, "--json"]) == 2
    said = capsys.readouterr()
    assert set(json.loads(said.out)) == {"error"} and not said.err


def test_an_error_of_the_package_is_a_refusal_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.answer(["replay", "no/such/bag", "--checkpoint", "scripted"]) == 2
    said = capsys.readouterr()
    assert "no recording at no/such/bag" in said.err and "Traceback" not in said.err
    assert app.answer(["replay", "no/such/bag", "--checkpoint", "scripted", "--json"]) == 2
    assert "no recording" in json.loads(capsys.readouterr().out)["error"]


def test_a_fault_of_ours_is_code_1_with_its_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "COMMANDS", ("not-written-yet",))
    assert app.answer(["--json"]) == 1
    said = capsys.readouterr()
    assert "ModuleNotFoundError" in json.loads(said.out)["error"] and "Traceback" in said.err


@pytest.mark.parametrize("arguments", [[], *([name] for name in app.COMMANDS)])
def test_help_shows_and_imports_nothing_heavy(arguments: list[str], clean_environment: dict[str, str]) -> None:
    code = ("import sys; from openvla_ros.cli import app; "
            f"code = app.answer({[*arguments, '--help']!r}); "
            f"sys.exit(code or [name for name in {LATE!r} if name in sys.modules] or 0)")
    done = subprocess.run([sys.executable, "-c", code], env=clean_environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage: openvla-ros" in done.stdout and "Traceback" not in done.stdout + done.stderr


def test_a_command_does_not_wait_for_the_others(clean_environment: dict[str, str]) -> None:
    code = ("import sys; from openvla_ros.cli import app; app.answer(['make-checkpoint', '--help']); "
            "loaded = [name for name in app.COMMANDS if 'openvla_ros.cli.' + name.replace('-', '_') in sys.modules]; "
            "sys.exit(loaded != ['make-checkpoint'])")
    assert subprocess.run([sys.executable, "-c", code], env=clean_environment, capture_output=True, timeout=60).returncode == 0


def test_without_a_command_the_help_is_shown(clean_environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", "from openvla_ros.cli.app import main; main()"], env=clean_environment,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "doctor" in done.stdout + done.stderr
