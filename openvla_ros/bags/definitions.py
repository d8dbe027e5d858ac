"""The name of a message type in, its definition out: the text that a recording stores, so that it is read where the type is not known.

Found where every ROS package puts its definitions: share/<package>/msg of the installed prefixes. The text is in the form `ros2msg` of
rosbag2: the type itself, then each type inside it under a headline.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

SEPARATOR = "=" * 80 + "\n"

BUILT_IN = frozenset(("bool", "byte", "char", "float32", "float64", "string", "wstring",
                      *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))))
FIELD = re.compile(r"^\s*([A-Za-z][\w/]*)(?:<=\d+)?(?:\[[^\]]*\])?\s+[A-Za-z]\w*", re.MULTILINE)
COMMENT = re.compile(r"#.*")


def share_folders() -> tuple[Path, ...]:
    """Where packages may lie on this computer: the sourced workspaces, then this Python's own prefix (ROS from wheels)."""
    prefixes = [entry for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    return tuple(dict.fromkeys(Path(prefix) / "share" for prefix in [*prefixes, sys.prefix]))


def find_definition(kind: str, folders: Sequence[Path] | None = None) -> str:
    """The definition of "package/msg/Name" with all types inside it; empty where one of them has no .msg file here."""
    folders = share_folders() if folders is None else folders
    texts: dict[str, str] = {}
    waiting = [kind]
    while waiting:
        name = waiting.pop(0)
        if name in texts:
            continue
        text = _read(name, folders)
        if text is None:
            return ""
        texts[name] = text
        waiting += _types_inside(text, package=name.split("/")[0])
    own = texts.pop(kind)
    return "\n".join([own, *(f"{SEPARATOR}MSG: {name.replace('/msg/', '/')}\n{text}" for name, text in texts.items())])


def _read(kind: str, folders: Sequence[Path]) -> str | None:
    for folder in folders:
        try:
            return (folder / f"{kind}.msg").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return None


def _types_inside(text: str, package: str) -> Iterator[str]:
    """Full names of the types of the fields. A name without a package is of the same package."""
    for name in FIELD.findall(COMMENT.sub("", text)):
        if name not in BUILT_IN:
            *of, last = name.split("/")
            yield f"{of[0] if of else package}/msg/{last}"
