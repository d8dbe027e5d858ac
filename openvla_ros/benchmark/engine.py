"""Our engine beside the released way, on the same weights and pictures, in turn: baseline, ours, ours drafted .. and again.

Comes in: a `Plan`; goes out: an `EngineReport`. What is run is a list of modes (`all_modes`); a further one is one line there. All
modes run once in every round, one after the other, so a noisy computer disturbs all alike, and the limits are measured in every round too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from openvla_ros.benchmark.agreement import Agreement, compare
from openvla_ros.benchmark.baseline import Answer, Baseline
from openvla_ros.benchmark.limits import BUFFER_BYTES, Limits, Work, device_name, work_of
from openvla_ros.benchmark.memory import MemoryWatch, Taken, disk_bytes_per_s, forget
from openvla_ros.benchmark.pictures import Frame
from openvla_ros.benchmark.sizes import INSTRUCTION, NOTE, random_policy
from openvla_ros.contract import Check, Observation
from openvla_ros.errors import NotEnoughMemory, OpenvlaRosError
from openvla_ros.observation.image import decode_compressed
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.checkpoint import SafetensorsFolder, TensorSource, find_checkpoint
from openvla_ros.policy.openvla.loading import choose_device, load_openvla
from openvla_ros.policy.openvla.policy import OpenvlaPolicy, Prediction
from openvla_ros.policy.openvla.quantization import BYTES_PER_WEIGHT

MEASURED_S = 60.0
"""About so long the rounds take together, where their number is not given."""

ROUNDS = (3, 200)
"""Fewest and most of them."""

INSTRUCTIONS = (INSTRUCTION, "open the drawer", "put the spoon on the towel", "lift the red cube", "wipe the table with the blue cloth",
                "stack the green cube on the yellow block", "close it", "move the pot to the left of the pan")
"""Rows of a batch ask for different things, in prompts of different lengths."""


@dataclass(frozen=True)
class Plan:
    """What to measure. checkpoint: a folder or hub name; empty: random weights of `size`. rounds: 0 for about MEASURED_S seconds.

    quantizations: kinds of weights, at least one; with `none` come baseline, drafts and batches, and without it those weights are never
    loaded. frames: one per round, round and round. margin: ids must equal the baseline's where its two largest logits differ by more.
    """

    size: str
    checkpoint: str
    unnorm_key: str
    device: str
    dtype: str
    quantizations: tuple[str, ...]
    batches: tuple[int, ...]
    rounds: int
    frames: Sequence[Frame]
    margin: float


class Shot(NamedTuple):
    """One call of one mode. ids: one tuple per observation. read_bytes_per_s: at which the memory was read just before and after it."""

    ids: list[tuple[int, ...]]
    stage_ms: Mapping[str, float]
    total_ms: float
    passes: float
    read_bytes_per_s: float = float("nan")


Fire = Callable[[int], Shot]
"""Run once for the given round."""


@dataclass(frozen=True)
class Mode:
    """One way to compute actions. prepare: loads what it needs and returns the call. It raises OpenvlaRosError where it cannot be had here.

    exact: its ids have to be the baseline's, by the margin rule. rows: observations per call. quantization: of its weights.
    """

    name: str
    prepare: Callable[[], Fire]
    exact: bool = True
    rows: int = 1
    quantization: str = "none"


@dataclass
class Measured:
    """What the rounds gave of one mode. skipped: why there are none."""

    mode: Mode
    shots: list[Shot] = field(default_factory=list)
    agreement: Agreement = field(default_factory=Agreement)
    skipped: str = ""

    def totals_ms(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Of each shot."""
        return np.array([shot.total_ms for shot in self.shots])

    @property
    def median_ms(self) -> float:
        """Of a call."""
        return float(np.median(self.totals_ms()))

    @property
    def hz(self) -> float:
        """Actions per second."""
        return self.mode.rows * 1e3 / self.median_ms

    @property
    def passes(self) -> float:
        """Of the decoder, the prefill among them: the mean."""
        return float(np.mean([shot.passes for shot in self.shots]))

    @property
    def read_bytes_per_s(self) -> float:
        """Beside the calls: the median."""
        return float(np.median([shot.read_bytes_per_s for shot in self.shots]))

    def stages(self) -> dict[str, list[float]]:
        """Stage -> milliseconds of each shot; the passes behind the prefill are one stage, and `host` is what no stage accounts for."""
        found: dict[str, list[float]] = {}
        for shot in self.shots:
            stages = by_stage(shot)
            for stage in stages:
                found.setdefault(stage, []).append(stages[stage])
        return found


@dataclass
class Start:
    """How a policy came to be. ready_s: with what a node does before it is ready: the self-test, and graphs where there are some."""

    name: str
    load: Taken
    ready_s: float
    checks: tuple[Check, ...]
    file_bytes: int = 0
    disk_bytes_per_s: float = float("nan")


@dataclass
class EngineReport:
    """Everything that was found. parts: what happens to a frame before the model -> milliseconds of each call."""

    plan: Plan
    device: torch.device
    positions: int
    limits: Limits
    measured: list[Measured]
    parts: dict[str, list[float]]
    starts: list[Start]
    baseline_own_bytes: int
    notes: tuple[str, ...]
    peak: Taken

    def named(self, name: str) -> Measured | None:
        """The mode of that name, if it was measured."""
        return next((one for one in self.measured if one.mode.name == name and one.shots), None)


class Bench:
    """Policies and frames that the modes share. Nothing is loaded before it is asked for, and everything once."""

    def __init__(self, plan: Plan, loading: Callable[[str, int, int], None]) -> None:
        """loading: called with (what, tensors done, tensors in all)."""
        self.plan, self.loading = plan, loading
        self.device, self.dtype = choose_device(plan.device), {"bfloat16": torch.bfloat16, "float32": torch.float32}[plan.dtype]
        self.policies: dict[str, OpenvlaPolicy] = {}
        self.starts: list[Start] = []
        self.yardstick: Baseline | None = None
        self.answers: dict[int, Answer] = {}
        self.source: TensorSource | None = None

    def policy(self, quantization: str = "none") -> OpenvlaPolicy:
        """The policy with weights of that kind. Raises OpenvlaRosError."""
        if quantization not in self.policies:
            files = [] if not self.plan.checkpoint else sorted(find_checkpoint(self.plan.checkpoint).glob("*.safetensors"))
            rate = disk_bytes_per_s(files) if files and not self.starts else float("nan")
            forget(files)
            with MemoryWatch(self.device) as watch:
                policy, source = self.load(quantization)
            before_s = time.perf_counter()
            checks = policy.self_test()
            self.policies[quantization] = policy
            self.source = self.source or source
            self.starts.append(Start(quantization, watch.taken, watch.taken.seconds + time.perf_counter() - before_s, checks,
                                     sum(path.stat().st_size for path in files), rate))
        return self.policies[quantization]

    def load(self, quantization: str) -> tuple[OpenvlaPolicy, TensorSource]:
        """From the checkpoint, or made of random numbers."""
        plan = self.plan
        if not plan.checkpoint:
            return random_policy(plan.size, self.device, self.dtype, quantization,
                                 report=lambda done, total: self.loading(f"{plan.size} {quantization}", done, total))
        settings = PolicySettings(plan.checkpoint, plan.unnorm_key, plan.device, plan.dtype, quantization)
        return load_openvla(settings), SafetensorsFolder(find_checkpoint(plan.checkpoint))

    def baseline(self) -> Baseline:
        """The released way on the unquantised weights. Raises OpenvlaRosError."""
        if self.yardstick is None:
            policy = self.policy()
            assert self.source is not None, "the policy came from it"
            self.yardstick = Baseline(policy, self.source)
        return self.yardstick

    def observation(self, round_: int, row: int = 0) -> Observation:
        """The picture of a round, and what is asked for in that row."""
        frame = self.plan.frames[(round_ + row) % len(self.plan.frames)]
        return Observation(frame.rgb, frame.instruction or INSTRUCTIONS[row % len(INSTRUCTIONS)], stamp_ns=round_, jpeg=True)

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def all_modes(bench: Bench) -> list[Mode]:
    """What is compared, in the order in which a round goes through it."""
    plan = bench.plan
    plain = [
        Mode("baseline", partial(fire_baseline, bench)),
        Mode("ours", partial(fire, bench)),
        Mode("ours, draft of another scene", partial(fire, bench, draft="other")),
        Mode("ours, draft of the same scene", partial(fire, bench, draft="same")),
    ]
    quantized = [Mode(f"ours, {kind}", partial(fire, bench, kind), exact=False, quantization=kind)
                 for kind in plan.quantizations if kind != "none"]
    together = [Mode(f"ours, {rows} at once", partial(fire, bench, rows=rows), rows=rows) for rows in plan.batches if rows > 1]
    return [*plain, *quantized, *together] if "none" in plan.quantizations else quantized


def fire_baseline(bench: Bench) -> Fire:
    """The released way; its answers are kept to judge the others by."""
    baseline = bench.baseline()

    def call(round_: int) -> Shot:
        observation = bench.observation(round_)
        before_s = time.perf_counter()
        answer = baseline.predict(observation)
        bench.wait()
        total_ms = (time.perf_counter() - before_s) * 1e3
        bench.answers[round_] = answer
        return Shot([answer.ids], answer.stage_ms, total_ms, len(answer.ids))

    return call


def fire(bench: Bench, quantization: str = "none", rows: int = 1, draft: str = "") -> Fire:
    """Ours. draft: "" without; "same": its last answer was to the same picture, so all of the draft is right; "other": to another one."""
    policy = bench.policy(quantization)

    def call(round_: int) -> Shot:
        observations = [bench.observation(round_, row) for row in range(rows)]
        policy.draft = bool(draft)
        if draft:
            policy.predict(observations[0] if draft == "same" else bench.observation(round_ + 1))
        before_s = time.perf_counter()
        predictions = policy.predict_batch(observations)
        bench.wait()
        total_ms = (time.perf_counter() - before_s) * 1e3
        return Shot([prediction.generated_ids for prediction in predictions], stages_of(predictions[0]), total_ms,
                    max(prediction.passes for prediction in predictions))

    return call


def stages_of(prediction: Prediction) -> dict[str, float]:
    """Milliseconds of each stage of the call that it came from, with single passes as `decode 1` and on."""
    stages = dict(prediction.stage_ms)
    if prediction.pass_ms:
        stages["decode"] -= sum(prediction.pass_ms)  # what lies between and behind them
        stages.update({f"decode {number}": value for number, value in enumerate(prediction.pass_ms, start=1)})
    return stages


def by_stage(shot: Shot) -> dict[str, float]:
    """The stages of a shot with all decoder passes behind the prefill in one, and what no stage accounts for."""
    stages: dict[str, float] = {}
    for name, value in shot.stage_ms.items():
        stage = "decode" if name.startswith("decode") else name
        stages[stage] = stages.get(stage, 0.0) + value
    return stages | {"host": max(0.0, shot.total_ms - sum(stages.values()))}


def run(plan: Plan, loading: Callable[[str, int, int], None] = lambda what, done, total: None,
        progress: Callable[[int, int], None] = lambda done, total: None) -> EngineReport:
    """Measure. progress: called with (rounds done, rounds in all). Raises OpenvlaRosError where not even our plain mode can be had."""
    bench = Bench(plan, loading)
    with MemoryWatch(bench.device) as watch:
        policy = bench.policy(plan.quantizations[0])
        positions = policy.model.shape.towers[0].patches + len(policy.prompt.encode(bench.observation(0).instruction))
        work: Work = work_of(policy.model.shape, positions)
        small = plan.size == "tiny" and not plan.checkpoint
        limits = Limits(bench.device, bench.dtype, work, BUFFER_BYTES // 48 if small else BUFFER_BYTES)
        measured, calls = prepare(bench)
        parts: dict[str, list[float]] = {}
        warm_s = time_rounds(bench, limits, measured, calls, parts, range(-1, 0))
    # The warm-up had everything in memory once. While times are taken nothing looks on: that would take a core every few milliseconds.
    for one in measured:
        one.shots.clear()  # the first of everything is a warm-up
        one.agreement = Agreement()
    parts.clear()
    limits.forget()
    rounds = plan.rounds or int(np.clip(MEASURED_S / max(warm_s, 1e-3), *ROUNDS))
    for round_ in range(rounds):
        time_rounds(bench, limits, measured, calls, parts, range(round_, round_ + 1))
        progress(round_ + 1, rounds)
    notes = tuple(dict.fromkeys((*policy.notes, *(() if plan.checkpoint else (NOTE,)))))
    own = bench.yardstick.own_bytes if bench.yardstick else 0
    return EngineReport(plan, bench.device, positions, limits, measured, parts, bench.starts, own, notes, watch.taken)


def prepare(bench: Bench) -> tuple[list[Measured], list[Fire | None]]:
    """Load what each mode needs; one that cannot be had here says why."""
    measured, calls = list[Measured](), list[Fire | None]()
    for mode in all_modes(bench):
        measured.append(Measured(mode))
        try:
            calls.append(mode.prepare())
        except OpenvlaRosError as error:
            measured[-1].skipped = str(error)
            calls.append(None)
    return measured, calls


def time_rounds(bench: Bench, limits: Limits, measured: Sequence[Measured], calls: Sequence[Fire | None], parts: dict[str, list[float]],
                rounds: range) -> float:
    """Everything once per round. Returns seconds."""
    begun_s = time.perf_counter()
    for round_ in rounds:
        limits.measure()
        time_parts(bench, round_, parts)
        for one, call in zip(measured, calls, strict=True):
            if call is None:
                continue
            before = limits.read_rate()
            try:
                shot = call(round_)
            except NotEnoughMemory as error:
                one.skipped, one.shots = str(error), []
                continue
            one.shots.append(shot._replace(read_bytes_per_s=(before + limits.read_rate()) / 2.0))
            answer = bench.answers.get(round_)
            if answer is not None and one.mode.name != "baseline":
                tokens = bench.policy(one.mode.quantization).tokens
                judged = compare(answer.ids, answer.margins, shot.ids[0], bench.plan.margin, tokens)
                one.agreement = one.agreement.plus(judged)
    return time.perf_counter() - begun_s


def time_parts(bench: Bench, round_: int, parts: dict[str, list[float]]) -> None:
    """What happens to a frame before the model, by itself: decode the JPEG, resize, bring it to the device."""
    policy, frame = bench.policy(bench.plan.quantizations[0]), bench.plan.frames[round_ % len(bench.plan.frames)]
    before_s = time.perf_counter()
    decode_compressed(frame.jpeg, "jpeg")
    decoded_s = time.perf_counter()
    picture = policy.prepare(bench.observation(round_))
    resized_s = time.perf_counter()
    torch.from_numpy(np.stack([picture])).to(bench.device)
    bench.wait()
    uploaded_s = time.perf_counter()
    for part, seconds in (("image decode", decoded_s - before_s), ("resize", resized_s - decoded_s), ("upload", uploaded_s - resized_s)):
        parts.setdefault(part, []).append(seconds * 1e3)


def decode_limit_ms(report: EngineReport, measured: Measured) -> float:
    """The least time of the decoder passes behind the prefill: what their weights take, as fast as memory was read beside these calls."""
    size = BYTES_PER_WEIGHT.get(measured.mode.quantization)
    return max(0.0, measured.passes - 1.0) * report.limits.stage_ms("decode", size, measured.read_bytes_per_s)


def limit_ms(report: EngineReport, measured: Measured) -> dict[str, float]:
    """Stage -> its least time for one observation, of the stages that have a limit."""
    return {"vision": report.limits.stage_ms("vision"), "prefill": report.limits.stage_ms("prefill"),
            "decode": decode_limit_ms(report, measured)}


def plan_summary(report: EngineReport) -> dict[str, object]:
    """What was measured on what, for JSON."""
    plan = report.plan
    return {"size": plan.size if not plan.checkpoint else "", "checkpoint": plan.checkpoint, "device": device_name(report.device),
            "dtype": plan.dtype, "positions": report.positions, "rounds": max((len(one.shots) for one in report.measured), default=0),
            "margin_bound": plan.margin, "threads": torch.get_num_threads(), "torch": torch.__version__}

