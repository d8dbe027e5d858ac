"""An OpenVLA policy that testifies: each answer with the ids and pixels it was made from, and how sure each token was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from openvla_ros.contract import ActionChunk, Check, Evidence, Observation
from openvla_ros.policy.openvla.policy import OpenvlaPolicy


class OpenvlaWitness:
    """The same policy, with evidence. Costs the preprocessing once more and a copy of the logits."""

    def __init__(self, policy: OpenvlaPolicy) -> None:
        self._policy = policy
        self.name, self.step_s, self.notes = policy.name, policy.step_s, policy.notes

    def act(self, observation: Observation) -> ActionChunk:
        """As the policy itself."""
        return self._policy.act(observation)

    def act_batch(self, observations: Sequence[Observation]) -> Sequence[ActionChunk]:
        """As the policy itself."""
        return self._policy.act_batch(observations)

    def testify(self, observations: Sequence[Observation]) -> list[tuple[ActionChunk, Evidence]]:
        """The answers of `act_batch`, each with its evidence."""
        policy, found = self._policy, []
        for observation, prediction in zip(observations, policy.predict_batch(observations, keep_logits=True), strict=True):
            assert prediction.logits is not None, "they were asked for"
            evidence = Evidence(prediction.input_ids, self._pixels(observation), margins(prediction.logits, prediction.generated_ids))
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

    def _pixels(self, observation: Observation) -> str:
        policy = self._policy
        pixels = policy.processor.to_pixels(policy.image_path.apply(observation, policy.processor.side))
        return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


def margins(logits: npt.NDArray[np.float32], token_ids: Sequence[int]) -> tuple[float, ...]:
    """[steps, vocabulary] logits and the ids chosen from them -> how far each lies above the best other one."""
    found = []
    for row, chosen in zip(logits, token_ids, strict=False):
        others = np.delete(row, chosen)
        found.append(float(row[chosen] - others.max()))
    return tuple(found)
