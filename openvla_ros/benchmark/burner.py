"""A process that takes all that one core gives, and never waits. No ROS in here; ends with SIGTERM."""

from __future__ import annotations


def main() -> None:
    """Count for ever."""
    number = 0
    while True:
        number += 1
