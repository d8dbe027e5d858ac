"""Write the tables of the documentation from the code: parameters from their declarations, topics from the head of a node's module.

`python docs/tables.py`

A test runs `filled` over every page, so a table can never differ from what the nodes take.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/parameters.md")
BLOCK = re.compile(r"(<!-- (table|topics): (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def filled(text: str) -> str:
    """The page with every `<!-- table: NODE -->` and `<!-- topics: NODE -->` block written anew."""
    from openvla_ros.ros.parameters import markdown

    def table(match: re.Match[str]) -> str:
        module = import_module(f"openvla_ros.ros.{match[3]}")
        rows = markdown(module.PARAMETERS) if match[2] == "table" else topics(module.__doc__ or "")
        return f"{match[1]}\n{rows}\n{match[4]}"

    return BLOCK.sub(table, text)


def topics(head: str) -> str:
    """The table in a module's docstring, with the names as code."""
    lines = [line for line in head.splitlines() if line.startswith("|")]
    named = [re.sub(r"^\| (\S+?)( \(out\))? \|", r"| `\1`\2 |", line) for line in lines[2:]]
    return "\n".join([*lines[:2], *named]) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
