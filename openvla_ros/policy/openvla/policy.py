"""OpenVLA as a `Policy`: one observation in, one action out, with everything that was computed on the way on request."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from openvla_ros.contract import ACTION_NAMES, Action, ActionChunk, ByteArray, Check, FloatArray, Observation
from openvla_ros.errors import InstructionError, NotEnoughMemory
from openvla_ros.policy.openvla.decoding import confirm, greedy
from openvla_ros.policy.openvla.language import KeyValueCache
from openvla_ros.policy.openvla.memory import free_bytes
from openvla_ros.policy.openvla.model import ModelShape, OpenvlaModel, cut_behind, last_of_sequence
from openvla_ros.policy.openvla.passes import Passes, RecordedPasses
from openvla_ros.policy.openvla.preprocess import ImagePath, Processor
from openvla_ros.policy.openvla.tokens import ActionTokens, PromptEncoder
from openvla_ros.policy.statistics import ActionStatistics

RECENT = 50
"""Actions that `facts` speaks of."""

TEXT_POSITIONS = 384
"""Room in the cache for prompt and action tokens: the longer prompt takes 55 and an English instruction of 256 characters about 70.
At half a megabyte per position the cache of a 7B model then takes 0.34 GB."""


@dataclass(frozen=True)
class Prediction:
    """One inference, laid open.

    input_ids: prompt as the model read it (the picture stands behind the first). generated_ids: what it answered, the
    end-of-sequence token included. token_ids, normalized_action, action: [D] the released code's arithmetic, whatever the ids;
    if `fault` is not empty they must not move anything. passes: of the decoder, 7 without a draft. confirmed: tokens of the draft that
    were right from the beginning on. pass_ms: how long each pass behind the first took. logits: [steps, vocab] float32, when asked for.
    """

    input_ids: tuple[int, ...]
    generated_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    normalized_action: FloatArray
    action: FloatArray
    fault: str
    stage_ms: Mapping[str, float]
    passes: int = 0
    confirmed: int = 0
    pass_ms: tuple[float, ...] = ()
    logits: npt.NDArray[np.float32] | None = None


class OpenvlaPolicy:
    """A loaded model with its text, image path and statistics. One thread calls it at a time; `cancel` may come from another."""

    def __init__(self, name: str, model: OpenvlaModel, prompt: PromptEncoder, processor: Processor, image_path: ImagePath,
                 tokens: ActionTokens, statistics: ActionStatistics, step_s: float, end_id: int, notes: tuple[str, ...] = (),
                 draft: bool = True) -> None:
        """draft: try the answers before as drafts of the next ones (`decoding.py`)."""
        self.name, self.step_s, self.notes = name, step_s, notes
        self.model, self.prompt, self.processor, self.image_path = model, prompt, processor, image_path
        self.tokens, self.statistics, self.end_id = tokens, statistics, end_id
        self.cancelled = threading.Event()
        weight = model.language_model.model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.patches = model.shape.towers[0].patches
        cache = KeyValueCache(model.shape.decoder, cache_positions(model.shape), self.device, self.dtype)
        self.passes = Passes(model, torch.from_numpy(processor.levels()).to(self.device, self.dtype), cache)
        self.recorded: RecordedPasses | None = None
        self.batch_cache = cache  # grows with the largest batch that came
        self.draft = draft
        self.answered: list[list[int]] = []
        """What each row was answered last, where that was a whole action."""
        self.drafting = deque[tuple[int, int]](maxlen=RECENT)
        """Passes and confirmed tokens of the latest actions."""

    def predict(self, observation: Observation, keep_logits: bool = False) -> Prediction:
        """Run the model once, for any action length the statistics have.

        Raises InstructionError for a text that is too long or spells a special token. A fault of the model is reported, not raised.
        """
        return self.predict_batch([observation], keep_logits)[0]

    def act(self, observation: Observation) -> ActionChunk:
        """One step, or a fault. Raises InstructionError, and ActionError if the statistics are not of one 7-number arm."""
        return self.to_chunk(observation, self.predict(observation))

    def act_batch(self, observations: Sequence[Observation]) -> list[ActionChunk]:
        """What `act` answers to each, in the same order, computed together: for evaluating many episodes at once.

        Rows differ from single runs by rounding only: where two tokens' logits are that close, the other one may win.
        stage_ms is that of the whole group of equally long prompts. Raises as `act` does, then for the whole batch.
        """
        return [self.to_chunk(observation, prediction)
                for observation, prediction in zip(observations, self.predict_batch(observations), strict=True)]

    def to_chunk(self, observation: Observation, prediction: Prediction) -> ActionChunk:
        """The answer to one observation. Raises ActionError if the statistics are not of one 7-number arm."""
        steps = () if prediction.fault else (Action.from_vector(prediction.action),)
        return ActionChunk(steps, self.step_s, observation.stamp_ns, observation.instruction, self.name,
                           prediction.generated_ids, prediction.fault, prediction.stage_ms)

    def prepare(self, observation: Observation) -> ByteArray:
        """The [side, side, 3] picture that the towers see of a frame. Any thread may call it, also while the model runs."""
        return self.processor.to_picture(self.image_path.apply(observation, self.processor.side))

    @torch.inference_mode()
    def predict_batch(self, observations: Sequence[Observation], keep_logits: bool = False,
                      prepared: Sequence[ByteArray] | None = None) -> list[Prediction]:
        """`predict` of each, in the same order, computed together whatever the lengths of their prompts.

        prepared: what `prepare` gave for each, where it was called before. With `draft`, row by row the answer of the call before is
        tried first, where that had as many rows. Raises InstructionError before anything ran, NotEnoughMemory if the keys and values
        of so many rows have no room.
        """
        self.cancelled.clear()
        if not observations:
            return []
        prompts = [self.encode(observation.instruction) for observation in observations]
        passes, count = self.passes_for(len(prompts)), self.statistics.length
        clock = StageClock(self.device)
        pictures = [self.prepare(observation) for observation in observations] if prepared is None else prepared
        clock.end("preprocess")
        pixels = passes.look(pictures)
        clock.end("upload")
        patches = passes.see(pixels)
        clock.end("vision")
        drafts, starts = self.drafts(len(prompts)), [self.patches + len(prompt) for prompt in prompts]
        logits = passes.prefill(patches, prompts, drafts)
        clock.end("prefill")
        if drafts:
            decoded = confirm(passes, logits, drafts, starts, count, self.cancelled.is_set, clock.end_pass)
        else:
            decoded = greedy(passes, logits, starts, count, self.cancelled.is_set, clock.end_pass)
        finite = torch.isfinite(decoded.logits).all(dim=-1).cpu().numpy()  # [B, steps]
        kept = decoded.logits.cpu().numpy() if keep_logits else None
        clock.end("decode")
        stage_ms, pass_ms = clock.take()
        predictions = []
        for row, ids in enumerate(decoded.ids):
            generated = cut_behind(ids, self.end_id)
            sound = bool(finite[row, :len(generated)].all())
            predictions.append(self.to_prediction(prompts[row], generated, sound, stage_ms, decoded.passes, decoded.confirmed[row], pass_ms,
                                                  None if kept is None else kept[row, :len(generated)]))
        if not finite.all():
            passes.cache.clear()
        self.answered = [list(each.generated_ids) if len(each.generated_ids) == count and not each.fault else [] for each in predictions]
        self.drafting.extend((decoded.passes, confirmed) for confirmed in decoded.confirmed)
        return predictions

    def drafts(self, rows: int) -> list[list[int]]:
        """Per row what it was answered before, without the last token, which is never read; nothing where nothing is to be tried."""
        if not self.draft or len(self.answered) != rows or not any(self.answered):
            return []
        length = self.statistics.length - 1
        if any(answer and len(answer) != length + 1 for answer in self.answered):  # of other statistics
            return []
        return [answer[:-1] if answer else [0] * length for answer in self.answered] if length else []

    def forget(self) -> None:
        """The next answers are found without drafts."""
        self.answered = []

    def facts(self) -> Mapping[str, float]:
        """For diagnostics: what the latest actions took. Empty before the first."""
        if not self.drafting:
            return {}
        passes, confirmed = np.mean(np.array(self.drafting), axis=0)
        return {"passes per action": float(passes), "tokens confirmed from the draft": float(confirmed)}

    def passes_for(self, rows: int) -> Passes:
        """What runs so many rows."""
        if rows == 1:
            return self.recorded or self.passes
        return Passes(self.model, self.passes.levels, self.cache_for(rows))

    def record_passes(self, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """From now on run single rows in fixed memory: on a GPU as recorded graphs. report: called with (prompt lengths done, in all)."""
        with torch.inference_mode():
            self.recorded = RecordedPasses(self.model, self.passes.levels, self.passes.cache, self.statistics.length)
            self.recorded.warm_up(report)

    def to_prediction(self, prompt: Sequence[int], generated: list[int], finite: bool, stage_ms: Mapping[str, float], passes: int,
                      confirmed: int, pass_ms: tuple[float, ...], logits: npt.NDArray[np.float32] | None) -> Prediction:
        """What one row's ids mean. finite: whether its logits were."""
        token_ids = last_of_sequence(prompt, generated, self.statistics.length)
        normalized = self.tokens.decode(token_ids)
        return Prediction(tuple(prompt), tuple(generated), tuple(token_ids), normalized, self.statistics.to_metric(normalized),
                          self.find_fault(generated, finite), stage_ms, passes, confirmed, pass_ms, logits)

    def cache_for(self, rows: int) -> KeyValueCache:
        """Keys and values for so many rows at once. Made for the largest batch so far and kept. Raises NotEnoughMemory."""
        shape, length = self.model.shape.decoder, self.passes.cache.length
        if rows > len(self.batch_cache.keys[0]):
            needed, available = KeyValueCache.count_bytes(shape, length, self.dtype, rows), free_bytes(self.device)
            if needed > available:
                raise NotEnoughMemory(f"a batch of {rows} needs {needed / 1e9:.2f} GB on {self.device.type} for its keys and values, but "
                                      f"{available / 1e9:.2f} GB are free. Use smaller batches.")
            self.batch_cache = KeyValueCache(shape, length, self.device, self.dtype, rows)
        return self.batch_cache.rows(rows)

    def cancel(self) -> None:
        """End the inference in progress at its next decode pass, with a fault. Nothing in progress: no effect."""
        self.cancelled.set()

    def encode(self, instruction: str) -> list[int]:
        """Prompt ids that leave room for the action. Raises InstructionError."""
        ids = self.prompt.encode(instruction)
        room = self.passes.cache.length - self.patches - self.statistics.length
        if len(ids) > room:
            raise InstructionError(f"instruction takes {len(ids)} tokens with its prompt, at most {room} fit. Say it shorter.")
        return ids

    def find_fault(self, generated: list[int], finite: bool) -> str:
        """Why the ids are no action; "" if they are one."""
        count = self.statistics.length
        if not finite:
            return "the model's logits hold NaN or infinity: weights or dtype are wrong for this device"
        if self.end_id in generated:
            return f"the model ended its answer early, at token {generated.index(self.end_id) + 1} of {count}"
        if len(generated) < count:
            return f"cancelled after {len(generated)} of {count} tokens"
        foreign = [index for index, token_id in enumerate(generated) if not self.tokens.holds(token_id)]
        if foreign:
            return (f"token {generated[foreign[0]]} at place {foreign[0] + 1} of {count} is no action; those are "
                    f"{self.tokens.first_id} to {self.tokens.vocabulary - 1}")
        return ""

    def self_test(self) -> tuple[Check, ...]:
        """Three inferences on built-in frames: picture and instruction must reach the logits, and the action must fit an arm."""
        first, second = self_test_frames()
        # Texts of equally many tokens: else positions alone would tell them apart, also for a model that cannot read.
        asked = ((first, "open the drawer"), (second, "open the drawer"), (first, "close the drawer"))
        predictions = []
        for frame, text in asked:
            self.forget()  # the time of an action with no draft is what is promised
            predictions.append(self.predict(Observation(frame, text, stamp_ns=0), keep_logits=True))
        plain, other_picture, other_text = predictions
        finite = all(np.isfinite(prediction.logits).all() for prediction in predictions if prediction.logits is not None)
        length, stages = self.statistics.length, other_text.stage_ms
        return (
            Check("logits are finite", finite, "no NaN, no infinity" if finite else
                  "NaN or infinity in the model's output: the weights are damaged or dtype is wrong for this device"),
            compare("picture matters", plain, other_picture,
                    "the picture does not reach the output: vision tower or projector is broken"),
            compare("instruction matters", plain, other_text,
                    "the instruction does not reach the output: tokenizer or decoder is broken"),
            Check("statistics fit one arm", length == len(ACTION_NAMES),
                  f"{self.statistics.key!r} has {length} numbers per action, an arm takes {len(ACTION_NAMES)}"),
            Check("warm inference", True, f"{sum(stages.values()):.0f} ms per action of {self.step_s * 1000:.0f} ms: "
                  + ", ".join(f"{stage} {value:.0f}" for stage, value in stages.items())),
        )

    def close(self) -> None:
        """Free weights and cache, GPU memory included. A second call does nothing."""
        for name in ("model", "passes", "recorded", "batch_cache"):
            self.__dict__.pop(name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class StageClock:
    """Milliseconds per stage and per pass. On a GPU events mark the ends, and the device is waited for only when they are read."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.end("begin")

    def end(self, stage: str) -> None:
        """The stage that began when the last one ended is over."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.marks.append((stage, event))
        else:
            self.marks.append((stage, time.perf_counter() * 1000.0))

    def end_pass(self) -> None:
        """One pass of the stage that runs is over; the stage goes on."""
        self.end("")

    def take(self) -> tuple[Mapping[str, float], tuple[float, ...]]:
        """(duration of each stage, of each pass). Waits for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()
        stage_ms, pass_ms = dict[str, float](), []
        begin = self.marks[0][1]
        for (_, before), (stage, now) in zip(self.marks, self.marks[1:], strict=False):
            if stage:
                stage_ms[stage], begin = between_ms(begin, now), now
            else:
                pass_ms.append(between_ms(before, now))
        return MappingProxyType(stage_ms), tuple(pass_ms)


def between_ms(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Milliseconds between two marks of a StageClock."""
    if isinstance(begin, float) or isinstance(end, float):
        return end - begin  # type: ignore[operator]
    return float(begin.elapsed_time(end))


def compare(name: str, one: Prediction, other: Prediction, broken: str) -> Check:
    """Whether two predictions' first logits differ by more than rounding."""
    assert one.logits is not None and other.logits is not None
    scale = float(np.abs(one.logits[0]).max())
    difference = float(np.abs(one.logits[0] - other.logits[0]).max())
    passed = difference > 1e-4 * scale  # a NaN fails, too
    seen = f"first logits differ by up to {difference:.3g} (largest logit {scale:.3g})"
    return Check(name, passed, seen if passed else f"{seen}: {broken}")


def self_test_frames() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Two unlike pictures, [240, 320, 3], that need no file: a bright square on the left of a ramp, a dark one on its right."""
    ramp = np.broadcast_to(np.linspace(40, 200, 320, dtype=np.uint8)[None, :, None], (240, 320, 3))
    first, second = ramp.copy(), ramp[:, ::-1].copy()
    first[60:140, 40:120] = (230, 60, 30)
    second[110:190, 200:280] = (20, 40, 90)
    return first, second


def cache_positions(shape: ModelShape) -> int:
    """Positions the cache is made for: the picture and TEXT_POSITIONS, as far as the model was made for so many."""
    return min(shape.decoder.max_position_embeddings, shape.towers[0].patches + TEXT_POSITIONS)
