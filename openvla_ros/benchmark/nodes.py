"""The real-time side of the benchmark in one piece: what ROS adds, how late command_node ticks, how fast replay decodes.

`python -m openvla_ros.benchmark.nodes [SECONDS]` prints everything as one JSON object; `openvla-ros bench` shows it to people.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from openvla_ros.benchmark.decoding import Decoding, measure_decoding
from openvla_ros.benchmark.jitter import Jitter, measure_jitter
from openvla_ros.benchmark.overhead import Overhead, measure_overhead

__all__ = ["Decoding", "Jitter", "Nodes", "Overhead", "measure_decoding", "measure_jitter", "measure_nodes", "measure_overhead"]


SECONDS = 4.0
"""Of each measurement, so that all of them take a minute and a half. A number that is kept deserves 30."""

NORMAL = "normal"
"""What command_node says of its scheduling, alone or before a colon and the reason, where it has no SCHED_FIFO."""


@dataclass(frozen=True)
class Nodes:
    """Everything that needs ROS, and the load of the computer before and after: what a number is worth."""

    overheads: tuple[Overhead, ...]
    jitters: tuple[Jitter, ...]
    load_before: float  # processes that wanted to run, mean of the last minute
    load_after: float


def measure_nodes(*, seconds: float = SECONDS, report: Callable[[str], None] = lambda text: None) -> Nodes:
    """Overhead with raw and with compressed pictures while a core is left free, and with raw ones while inference takes every core; jitter
    under each load, and where the system permits SCHED_FIFO under the two heavy ones without it too.

    seconds: of each of the eight measurements; starting, warming up and stopping takes about 50 s beside them on an idle computer.
    Raises as the single measurements do.
    """
    load_before = os.getloadavg()[0]
    overheads = (measure_overhead("raw", seconds=seconds, report=report),
                 measure_overhead("compressed", seconds=seconds, report=report),
                 measure_overhead("raw", seconds=seconds, threads=len(os.sched_getaffinity(0)), report=report))
    jitters = measure_jitter(seconds=seconds, report=report)
    if any(row.scheduling != NORMAL and not row.scheduling.startswith(f"{NORMAL}:") for row in jitters):
        jitters += measure_jitter(("policy", "saturated"), seconds=seconds, realtime_priority=0, report=report)
    return Nodes(overheads, jitters, load_before, os.getloadavg()[0])


def main() -> None:
    """All of it as JSON on stdout, progress on stderr."""

    def report(text: str) -> None:
        print(text, file=sys.stderr)

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    nodes, decodings = measure_nodes(seconds=seconds, report=report), measure_decoding(report=report)
    print(json.dumps({**asdict(nodes), "decodings": [asdict(row) for row in decodings]}, indent=2))


if __name__ == "__main__":
    main()
