"""The documentation says what the code does: tables, links, commands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from openvla_ros.cli.app import COMMANDS

LINK = re.compile(r"!?\[[^\]]*\]\(([^)#]+)[^)]*\)")


def pages(checkout: Path) -> list[Path]:
    return [*checkout.glob("*.md"), *checkout.glob("docs/**/*.md")]


@pytest.mark.ros
def test_parameter_tables_are_those_of_the_nodes(checkout: Path) -> None:
    spec = importlib.util.spec_from_file_location("tables", checkout / "docs" / "tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page in tables.PAGES:
        text = (checkout / page).read_text(encoding="utf-8")
        assert tables.BLOCK.search(text), f"{page} has no table"
        assert tables.filled(text) == text, f"{page} is out of date: run make docs"


def test_links_lead_somewhere(checkout: Path) -> None:
    broken = [f"{page.name}: {target}" for page in pages(checkout) for target in LINK.findall(page.read_text(encoding="utf-8"))
              if "://" not in target and not (page.parent / target).exists()]
    assert not broken


def test_readme_names_every_command(checkout: Path) -> None:
    text = (checkout / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if name not in text] == []


def test_every_key_of_a_policy_profile_is_explained(checkout: Path) -> None:
    from dataclasses import fields

    from openvla_ros.policy.catalogue import PolicySettings

    text = (checkout / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(PolicySettings) if f"`{field.name}`" not in text] == []
