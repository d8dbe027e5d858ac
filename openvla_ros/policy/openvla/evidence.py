"""An OpenVLA policy for replays: pictures are prepared in other threads, and answers come with what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from openvla_ros.contract import ActionChunk, ByteArray, Check, Evidence, Observation
from openvla_ros.policy.openvla.policy import OpenvlaPolicy


class Prepared(NamedTuple):
    """What the towers see of a frame, and its digest where evidence is wanted."""

    picture: ByteArray
    digest: str


class OpenvlaWitness:
    """The same policy, as `bags.replay` likes one best."""

    def __init__(self, policy: OpenvlaPolicy, evidence: bool = True) -> None:
        """evidence: say how each answer came about; costs a copy of the logits."""
        self._policy, self._evidence = policy, evidence
        policy.draft = False  # what is answered to a frame depends on that frame alone, not on the one before by way of rounding
        self.name, self.step_s, self.notes = policy.name, policy.step_s, policy.notes

    def act(self, observation: Observation) -> ActionChunk:
        """As the policy itself."""
        return self._policy.act(observation)

    def prepare(self, observation: Observation) -> Prepared:
        """The part of the work that needs no model. Any thread may call it."""
        picture = self._policy.prepare(observation)
        if not self._evidence:
            return Prepared(picture, "")
        return Prepared(picture, hashlib.sha256(self._policy.processor.shade(picture).tobytes()).hexdigest()[:16])

    def act_prepared(self, observations: Sequence[Observation], prepared: Sequence[Prepared]) -> list[tuple[ActionChunk, Evidence | None]]:
        """What `act` answers to each but for rounding, computed together, with the evidence where it is wanted."""
        policy, found = self._policy, list[tuple[ActionChunk, Evidence | None]]()
        predictions = policy.predict_batch(observations, self._evidence, [each.picture for each in prepared])
        for observation, each, prediction in zip(observations, prepared, predictions, strict=True):
            evidence = None if prediction.logits is None else Evidence(
                prediction.input_ids, each.digest, margins(prediction.logits, prediction.generated_ids))
            found.append((policy.to_chunk(observation, prediction), evidence))
        return found

    def self_test(self) -> tuple[Check, ...]:
        """As the policy itself."""
        return self._policy.self_test()

    def close(self) -> None:
        """As the policy itself."""
        self._policy.close()

    def provenance(self) -> dict[str, Any]:
        """What the answers depend on beside the weights, in plain values: prompt, image path, statistics, mode of computing."""
        policy = self._policy
        statistics, processor, path = policy.statistics, policy.processor, policy.image_path
        return {
            "prompt": policy.prompt.template,
            "preprocessing": {
                "resize": path.resize, "rotate_180": path.rotate_180, "centre_crop": path.centre_crop, "strategy": processor.strategy,
                "towers": [{"side": tower.side, "mean": list(tower.mean), "std": list(tower.std)} for tower in processor.towers],
                "letterbox_fill": list(processor.letterbox_fill)},
            "statistics": {"key": statistics.key, "q01": statistics.q01.tolist(), "q99": statistics.q99.tolist(),
                           "mask": statistics.mask.tolist()},
            "mode": {"dtype": str(policy.dtype).removeprefix("torch."), "device": policy.device.type},
        }


def margins(logits: npt.NDArray[np.float32], token_ids: Sequence[int]) -> tuple[float, ...]:
    """[steps, vocabulary] logits and the ids chosen from them -> how far each lies above the best other one."""
    found = []
    for row, chosen in zip(logits, token_ids, strict=False):
        others = np.delete(row, chosen)
        found.append(float(row[chosen] - others.max()))
    return tuple(found)
