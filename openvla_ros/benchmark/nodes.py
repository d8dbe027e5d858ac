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


@dataclass(frozen=True)
class Nodes:
    """Everything that needs ROS, and the load of the computer before and after: what a number is worth."""

    overheads: tuple[Overhead, ...]
    jitters: tuple[Jitter, ...]
    load_before: float  # processes that wanted to run, mean of the last minute
    load_after: float


def measure_nodes(*, seconds: float = 6.0, report: Callable[[str], None] = lambda text: None) -> Nodes:
    """Overhead with raw and with compressed pictures while a core is left free, and with raw ones while inference takes every core; jitter
    under each load, with SCHED_FIFO where the system permits it and without.

    seconds: of each of the nine measurements; starting and stopping takes about 50 s beside them. Raises as the single measurements do.
    """
    load_before = os.getloadavg()[0]
    overheads = (measure_overhead("raw", seconds=seconds, report=report),
                 measure_overhead("compressed", seconds=seconds, report=report),
                 measure_overhead("raw", seconds=seconds, threads=len(os.sched_getaffinity(0)), report=report))
    jitters = (*measure_jitter(seconds=seconds, realtime_priority=0, report=report), *measure_jitter(seconds=seconds, report=report))
    return Nodes(overheads, jitters, load_before, os.getloadavg()[0])


def main() -> None:
    """All of it as JSON on stdout, progress on stderr."""

    def report(text: str) -> None:
        print(text, file=sys.stderr)

    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 6.0
    nodes, decodings = measure_nodes(seconds=seconds, report=report), measure_decoding(report=report)
    print(json.dumps({**asdict(nodes), "decodings": [asdict(row) for row in decodings]}, indent=2))


if __name__ == "__main__":
    main()
