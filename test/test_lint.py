"""The code is clean by ruff, and by mypy: strict outside ros/ (settings in pyproject.toml)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["mypy"]], ids=["ruff", "mypy"])
def test_tool_finds_nothing(command: list[str], checkout: Path, clean_environment: dict[str, str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=checkout, env=clean_environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
