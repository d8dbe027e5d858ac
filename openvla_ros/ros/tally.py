"""What a run amounts to: messages of a running system in, a snapshot for the screen and an honest summary out."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from openvla_msgs.msg import ActionChunk, CommandReport

from openvla_ros.contract import ACTION_NAMES
from openvla_ros.ros.convert import from_delta

REMEMBERED = 20_000
"""Chunks that latency and rate look back on: about an hour at 6 Hz, so that a long run keeps its memory flat."""

FEW = 2
"""Frames that may be missing without being called a loss."""

RECENT = 20
"""Chunks that the screen's rate and latency look back on."""


@dataclass(frozen=True)
class Fall:
    """How POLICY was left: for which driver, after how many steps, why, and how many inferences had come by then."""

    driver: str
    steps: int
    reason: str
    results: int


@dataclass(frozen=True)
class View:
    """The newest state, for the screen."""

    instruction: str = ""
    driver: str = "unknown"
    stop_reason: str = ""
    hz: float | None = None  # chunks with steps per second, recent
    stage_ms: Mapping[str, float] = field(default_factory=dict)  # median, recent; "total" is last
    delta: tuple[float, ...] = ()  # newest step that was started, as sent: order of ACTION_NAMES
    chunks: int = 0
    steps_started: int = 0
    faults: int = 0
    dropped: int = 0
    rules: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()  # what the nodes complain about now
    task: str = ""  # how the instruction stands, where somebody can judge that
    objects: str = ""  # where the blocks of a simulated scene are; empty without one
    scene: str = ""  # which scene it is


class Tally:
    """Counts from any thread. `now_s` is monotonic wall time: rates are what the user got, whatever the ROS clock did."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stages_ms: dict[str, deque[float]] = {}
        self._arrivals_s: deque[float] = deque(maxlen=REMEMBERED)
        self._chunks = self._steps = 0
        self._faults: Counter[str] = Counter()
        self._stop_reasons: Counter[str] = Counter()
        self._fall: Fall | None = None
        self._ending = False
        self._instruction, self._driver, self._stop_reason = "", "unknown", ""
        self._reported = CommandReport.HOLD  # the driver of the newest report
        self._delta: tuple[float, ...] = ()
        self._health: dict[str, tuple[bytes, str, dict[str, str]]] = {}
        self._heard: Counter[str] = Counter()  # how often each part said how it is

    def on_chunk(self, message: ActionChunk, now_s: float) -> None:
        """A chunk came. A stop word of the node (no stages: no inference ran) is no fault."""
        with self._lock:
            self._instruction = message.instruction
            if not message.stage_names:
                return
            if message.fault:
                self._faults[message.fault] += 1
                return
            self._chunks += 1
            self._arrivals_s.append(now_s)
            for name, duration_ms in (*zip(message.stage_names, message.stage_ms, strict=False), ("total", sum(message.stage_ms))):
                self._stages_ms.setdefault(name, deque(maxlen=REMEMBERED)).append(float(duration_ms))

    def on_report(self, message: CommandReport) -> None:
        """command_node did something."""
        with self._lock:
            if message.step_started:
                self._steps += 1
                self._delta = tuple(from_delta(message.sent).to_vector())
            # Why POLICY does not move, or was left; not what HOLD says of itself before the run and after it.
            meant = CommandReport.HOLD not in (message.driver, self._reported) or message.driver != self._reported
            if meant and message.stop_reason not in ("", self._stop_reason):
                self._stop_reasons[message.stop_reason] += 1
            if message.driver in (CommandReport.POLICY, CommandReport.HUMAN):
                self._fall = None
            elif self._reported == CommandReport.POLICY and not self._ending:
                self._fall = Fall("HOLD" if message.driver == CommandReport.HOLD else "STOPPED", self._steps, message.stop_reason,
                                  self._results)
            self._stop_reason, self._reported = message.stop_reason, message.driver

    def on_end(self) -> None:
        """From here on the run is stopped on purpose: that POLICY is left is no trouble any more."""
        with self._lock:
            self._ending = True

    def on_driver(self, driver: str) -> None:
        """Who drives now."""
        with self._lock:
            self._driver = driver

    def on_diagnostics(self, message: DiagnosticArray, ours: tuple[str, ...]) -> None:
        """Health of the parts whose names begin with one of `ours`."""
        with self._lock:
            for status in message.status:
                if status.name.startswith(ours):
                    values = {pair.key: pair.value for pair in status.values}
                    self._health[status.name] = (status.level, status.message, values)
                    self._heard[status.name] += 1

    def heard(self, node: str) -> int:
        """How often a node said how it is, so that one can wait for newer words."""
        with self._lock:
            return max((count for name, count in self._heard.items() if f"/{node}:" in name), default=0)

    def policy_state(self) -> str:
        """Lifecycle state of policy_node, as it last said; empty before."""
        with self._lock:
            return self._part("policy")[2].get("state", "")

    def rule_count(self, rule: str) -> int:
        """How often a safety rule acted or refused, as command_node last said."""
        with self._lock:
            return self._rules().get(rule, 0)

    def camera_publishers(self) -> int:
        """How many publishers of its camera policy_node has found, as it last said."""
        with self._lock:
            return self._number("camera", "publishers") or 0

    @property
    def steps_started(self) -> int:
        """How many steps command_node has started."""
        return self._steps

    @property
    def driver(self) -> str:
        """Who drives: HOLD, POLICY, HUMAN, STOPPED; "unknown" before anybody said."""
        return self._driver

    def view(self) -> View:
        """A snapshot for the screen."""
        with self._lock:
            recent = list(self._arrivals_s)[-RECENT:]
            return View(
                instruction=self._instruction or self._ask("instruction", ""), driver=self._driver, stop_reason=self._stop_reason,
                hz=rate_hz(recent),
                stage_ms={name: median(list(values)[-RECENT:]) for name, values in self._in_order()},
                delta=self._delta, chunks=self._chunks, steps_started=self._steps, faults=sum(self._faults.values()),
                dropped=self._dropped(), rules=self._rules(), problems=self._problems())

    def refusal(self) -> str:
        """Why policy_node refused its last transition, in its own words; empty when it says nothing."""
        with self._lock:
            return next((message for name, (level, message, _) in self._health.items()
                         if name.endswith("policy_node: policy") and level == DiagnosticStatus.ERROR), "")

    def summary(self, frames_played: int | None, complete: bool = True) -> dict[str, Any]:
        """Plain values for people and programs.

        frames_played: what the player sent; None without one. complete: it came to its end, and the nodes said their counts since.
        """
        with self._lock:
            received = self._number("camera", "received")
            headline = self._headline(frames_played)
            notes = [note for note in self._part("policy")[2].get("notes", "").split("; ") if note]
            if frames_played is not None and not complete:
                notes.append("the recording's end was not waited for; frames received and inferred are as policy_node last said them")
            elif frames_played is not None and received is not None and received < frames_played:
                few = frames_played - received <= max(FEW, 0.05 * frames_played)
                notes.append(f"policy_node received {received} of {frames_played} frames" + (
                    " (where the computer is busy, a frame may be overtaken by the next one)" if few else
                    ". Most likely this computer was too busy to take the others in time: leave it a core (--threads), or play slower "
                    "(--rate)."))
            if frames_played and complete and not self._chunks:
                notes.append("no chunk came out of the whole recording; look at the log of policy_node")
            elif frames_played and self._chunks and not self._steps:
                notes.append(f"{self._chunks} chunks came, but command_node started no step: "
                             + ("; ".join(self._stop_reasons) or "it gives no reason"))
            return {
                "headline": headline, "frames_played": frames_played, "frames_received": received,
                "frames_inferred": self._number("policy", "taken"), "frames_replaced_by_newer": self._number("policy", "replaced"),
                "frames_refused": self._refused_frames(), "chunks": self._chunks, "chunks_overtaken": self._number("policy", "overtaken"),
                "steps_started": self._steps, "hz": rate_hz(list(self._arrivals_s)),
                "latency_ms": {name: {"median": median(values), "p99": percentile(values, 0.99)} for name, values in self._in_order()},
                "faults": dict(self._faults), "rules": self._rules(), "stop_reasons": dict(self._stop_reasons),
                "driver": self._driver, "notes": notes,
            }

    @property
    def _results(self) -> int:
        return self._chunks + sum(self._faults.values())

    def _headline(self, frames_played: int | None) -> str:
        """That POLICY was left in the middle, in one line; empty when it was not.

        The end of a recording leaves POLICY too: no chunk comes after it but the one that was being computed.
        """
        fall = self._fall
        if fall is None or (frames_played is not None and self._results - fall.results < 2):
            return ""
        return f"POLICY fell to {fall.driver} after {fall.steps} steps: {fall.reason or 'command_node gives no reason'}"

    def _in_order(self) -> list[tuple[str, deque[float]]]:
        """Stages in the order they run, the sum last."""
        return sorted(self._stages_ms.items(), key=lambda item: item[0] == "total")

    def _part(self, part: str, node: str = "policy_node") -> tuple[bytes, str, dict[str, str]]:
        return next((health for name, health in self._health.items() if name.endswith(f"{node}: {part}")), (b"\0", "", {}))

    def _rules(self) -> dict[str, int]:
        """How often each safety rule acted or refused, as command_node counts it."""
        counts = {key.removeprefix("count_"): int(value) for key, value in self._part("driver", "command_node")[2].items()
                  if key.startswith("count_")}
        return {name: count for name, count in counts.items() if name not in ("chunks", "steps")}

    def _ask(self, part: str, otherwise: str) -> str:
        level, message, _ = self._part(part)
        return message if level == DiagnosticStatus.OK and message else otherwise

    def _number(self, part: str, key: str) -> int | None:
        value = self._part(part)[2].get(key, "")
        return int(value) if value.isdigit() else None

    def _refused_frames(self) -> dict[str, int]:
        counted = {key.removeprefix("refused: "): int(value) for key, value in self._part("camera")[2].items()
                   if key.startswith("refused: ")}
        if late := self._number("policy", "refused"):
            counted["too old or not decodable when the policy was free"] = late
        return counted

    def _dropped(self) -> int:
        return (self._number("policy", "replaced") or 0) + (self._number("policy", "overtaken") or 0) + sum(self._refused_frames().values())

    def _problems(self) -> tuple[str, ...]:
        return tuple(f"{name}: {message}" for name, (level, message, _) in sorted(self._health.items())
                     if level != DiagnosticStatus.OK)


def rate_hz(arrivals_s: list[float]) -> float | None:
    """Events per second between the first and the last; None with fewer than two."""
    if len(arrivals_s) < 2 or arrivals_s[-1] <= arrivals_s[0]:
        return None
    return (len(arrivals_s) - 1) / (arrivals_s[-1] - arrivals_s[0])


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed. values: not empty."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def spoken(delta: tuple[float, ...]) -> str:
    """A step for people: millimetres, degrees, gripper opening."""
    if len(delta) != len(ACTION_NAMES):
        return "none yet"
    move = " ".join(f"{1e3 * value:+.1f}" for value in delta[:3])
    turn = " ".join(f"{57.29578 * value:+.1f}" for value in delta[3:6])
    return f"move {move} mm, turn {turn} deg, gripper {100 * delta[6]:.0f} % open"
