"""Write the parameter tables of the documentation from the declarations in the code: `python docs/tables.py`.

A test runs `filled` over every page, so a table can never differ from what the nodes take.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/parameters.md")
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def filled(text: str) -> str:
    """The page with every `<!-- table: NODE -->` block written anew."""
    from openvla_ros.ros.parameters import markdown

    def table(match: re.Match[str]) -> str:
        rows = import_module(f"openvla_ros.ros.{match[2]}").PARAMETERS
        return f"{match[1]}\n{markdown(rows)}\n{match[3]}"

    return BLOCK.sub(table, text)


if __name__ == "__main__":
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
