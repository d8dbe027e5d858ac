"""OpenVLA as a `Policy`: one observation in, one action out, with everything that was computed on the way on request."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from openvla_ros.contract import ACTION_NAMES, Action, ActionChunk, Check, FloatArray, Observation
from openvla_ros.errors import InstructionError, NotEnoughMemory
from openvla_ros.policy.openvla.language import KeyValueCache
from openvla_ros.policy.openvla.memory import free_bytes
from openvla_ros.policy.openvla.model import ModelShape, OpenvlaModel, generate, last_of_sequence
from openvla_ros.policy.openvla.preprocess import ImagePath, PixelArray, Processor
from openvla_ros.policy.openvla.tokens import ActionTokens, PromptEncoder
from openvla_ros.policy.statistics import ActionStatistics

TEXT_POSITIONS = 384
"""Room in the cache for prompt and action tokens: the longer prompt takes 55 and an English instruction of 256 characters about 70.
At half a megabyte per position the cache of a 7B model then takes 0.34 GB."""


@dataclass(frozen=True)
class Prediction:
    """One inference, laid open.

    input_ids: prompt as the model read it (the picture stands behind the first). generated_ids: what it answered, the
    end-of-sequence token included. token_ids, normalized_action, action: [D] the released code's arithmetic, whatever the ids;
    if `fault` is not empty they must not move anything. logits: [steps, vocab] float32, only when asked for.
    """

    input_ids: tuple[int, ...]
    generated_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    normalized_action: FloatArray
    action: FloatArray
    fault: str
    stage_ms: Mapping[str, float]
    logits: npt.NDArray[np.float32] | None = None


class OpenvlaPolicy:
    """A loaded model with its text, image path and statistics. One thread calls it at a time; `cancel` may come from another."""

    def __init__(self, name: str, model: OpenvlaModel, prompt: PromptEncoder, processor: Processor, image_path: ImagePath,
                 tokens: ActionTokens, statistics: ActionStatistics, step_s: float, end_id: int, notes: tuple[str, ...] = ()) -> None:
        self.name, self.step_s, self.notes = name, step_s, notes
        self.model, self.prompt, self.processor, self.image_path = model, prompt, processor, image_path
        self.tokens, self.statistics, self.end_id = tokens, statistics, end_id
        self.cancelled = threading.Event()
        weight = model.projector.fc1.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.patches = model.shape.towers[0].patches
        self.cache = KeyValueCache(model.shape.decoder, cache_positions(model.shape), self.device, self.dtype)
        self.batch_cache = self.cache  # grows with the largest batch that came

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

    def prepare(self, observation: Observation) -> PixelArray:
        """What the towers see of a frame. Any thread may call it, also while the model runs."""
        return self.processor.to_pixels(self.image_path.apply(observation, self.processor.side))

    @torch.inference_mode()
    def predict_batch(self, observations: Sequence[Observation], keep_logits: bool = False,
                      prepared: Sequence[PixelArray] | None = None) -> list[Prediction]:
        """`predict` of each, in the same order. Prompts of equal length run together, one group after the other.

        prepared: what `prepare` gave for each, where it was called before. Raises InstructionError before anything ran,
        NotEnoughMemory if the keys and values of so many rows have no room.
        """
        self.cancelled.clear()
        clock = StageClock(self.device)
        groups: dict[int, list[int]] = {}
        prompts = [self.encode(observation.instruction) for observation in observations]
        for row, prompt in enumerate(prompts):
            groups.setdefault(len(prompt), []).append(row)
        predictions: dict[int, Prediction] = {}
        for rows in groups.values():
            pixels = [self.prepare(observations[row]) if prepared is None else prepared[row] for row in rows]
            together = self.predict_group(pixels, [prompts[row] for row in rows], keep_logits, clock)
            predictions.update(zip(rows, together, strict=True))
        return [predictions[row] for row in range(len(observations))]

    def predict_group(self, pixels: Sequence[PixelArray], prompts: Sequence[Sequence[int]], keep_logits: bool,
                      clock: StageClock) -> list[Prediction]:
        """One pass over rows whose prompts are equally long."""
        cache = self.cache_for(len(pixels))
        seen = torch.from_numpy(np.stack(pixels)).to(self.device, self.dtype)
        clock.end("preprocess")
        patches = self.model.see(seen)
        clock.end("vision")
        logits = self.model.prefill(patches, torch.tensor(prompts, device=self.device), cache)
        clock.end("prefill")
        position, count = self.patches + len(prompts[0]), self.statistics.length
        answers, all_logits = generate(self.model, logits, position, count, self.end_id, cache, self.cancelled.is_set)
        finite = torch.isfinite(all_logits).all(dim=-1).cpu().numpy()  # [steps, B]
        clock.end("decode")
        stage_ms = clock.take()
        return [self.to_prediction(prompts[row], generated, bool(finite[:len(generated), row].all()), stage_ms,
                                   all_logits[:len(generated), row].cpu().numpy() if keep_logits else None)
                for row, generated in enumerate(answers)]

    def to_prediction(self, prompt: Sequence[int], generated: list[int], finite: bool, stage_ms: Mapping[str, float],
                      logits: npt.NDArray[np.float32] | None) -> Prediction:
        """What one row's ids mean. finite: whether its logits were."""
        token_ids = last_of_sequence(prompt, generated, self.statistics.length)
        normalized = self.tokens.decode(token_ids)
        return Prediction(tuple(prompt), tuple(generated), tuple(token_ids), normalized, self.statistics.to_metric(normalized),
                          self.find_fault(generated, finite), stage_ms, logits)

    def cache_for(self, rows: int) -> KeyValueCache:
        """Keys and values for so many rows at once. Made for the largest batch so far and kept. Raises NotEnoughMemory."""
        shape = self.model.shape.decoder
        if rows > len(self.batch_cache.keys[0]):
            needed, available = KeyValueCache.count_bytes(shape, self.cache.length, self.dtype, rows), free_bytes(self.device)
            if needed > available:
                raise NotEnoughMemory(f"a batch of {rows} needs {needed / 1e9:.2f} GB on {self.device.type} for its keys and values, but "
                                      f"{available / 1e9:.2f} GB are free. Use smaller batches.")
            self.batch_cache = KeyValueCache(shape, self.cache.length, self.device, self.dtype, rows)
        return self.cache if rows == 1 else self.batch_cache.rows(rows)

    def cancel(self) -> None:
        """End the inference in progress at its next decode pass, with a fault. Nothing in progress: no effect."""
        self.cancelled.set()

    def encode(self, instruction: str) -> list[int]:
        """Prompt ids that leave room for the action. Raises InstructionError."""
        ids = self.prompt.encode(instruction)
        room = self.cache.length - self.patches - self.statistics.length
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
        plain, other_picture, other_text = predictions = [
            self.predict(Observation(frame, text, stamp_ns=0), keep_logits=True) for frame, text in asked]
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
        for name in ("model", "cache", "batch_cache"):
            self.__dict__.pop(name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class StageClock:
    """Milliseconds per stage. On a GPU each stage end waits for the device, so that the numbers mean what they say."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stage_ms = device, dict[str, float]()
        self.last = time.perf_counter()

    def end(self, stage: str) -> None:
        """The stage that began when the last one ended is over."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.stage_ms[stage] = (now - self.last) * 1000.0
        self.last = now

    def take(self) -> Mapping[str, float]:
        """The stages since the last call, which are forgotten here."""
        taken, self.stage_ms = MappingProxyType(self.stage_ms), dict[str, float]()
        return taken


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
