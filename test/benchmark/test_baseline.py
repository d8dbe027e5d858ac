"""The yardstick itself: the plain path gives what the released code gave, on the very tensors of the policy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openvla_ros.benchmark.baseline import Baseline, published_tensors
from openvla_ros.benchmark.sizes import INSTRUCTION, random_policy
from openvla_ros.contract import Observation
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla import checkpoint
from openvla_ros.policy.openvla.checkpoint import SafetensorsFolder
from openvla_ros.policy.openvla.linear import can_pack
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.policy import self_test_frames


@pytest.mark.shared
@pytest.mark.parametrize("name", ["tiny_fused", "tiny_siglip_v01"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("bfloat16", 0.5)])
def test_it_equals_the_golden_files(shared: Path, name: str, dtype: str, tolerance: float) -> None:
    folder = shared / "golden" / name
    baseline = Baseline(load_openvla(PolicySettings(str(folder / "checkpoint"), "bridge_orig", device="cpu", dtype=dtype), progress=False),
                        SafetensorsFolder(folder / "checkpoint"))
    for case in json.loads((folder / "cases.json").read_text())["cases"]:
        with np.load(folder / case["file"]) as arrays:
            answer = baseline.predict(Observation(arrays["image"], case["instruction"], 0))
            assert list(answer.ids) == case["generated_ids"]
            np.testing.assert_allclose(answer.logits[0], arrays["logits"][0], rtol=0, atol=tolerance)
            np.testing.assert_allclose(baseline.to_pixels(arrays["image"])[0], arrays["pixel_values"], rtol=0, atol=1e-6)
            if dtype == "float32":
                np.testing.assert_allclose(answer.logits, arrays["logits"], rtol=0, atol=tolerance)
                np.testing.assert_allclose(answer.margins, case["top2_logit_gap"], rtol=0, atol=2 * tolerance)
    assert list(answer.stage_ms)[:4] == ["preprocess", "upload", "vision", "prefill"]


@pytest.mark.parametrize("packed", [False, True])
def test_it_runs_on_the_tensors_of_the_policy(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:  # as on a GPU, and on a CPU that gains nothing from it
        monkeypatch.setattr(checkpoint, "fastest_linear", lambda layer, room: layer)
    policy, source = random_policy("tiny", torch.device("cpu"), torch.float32)
    baseline = Baseline(policy, source)
    answer, ours = (one.predict(Observation(self_test_frames()[0], INSTRUCTION, 0)) for one in (baseline, policy))
    assert answer.ids == ours.generated_ids
    assert list(answer.stage_ms)[4:] == [f"decode {step}" for step in range(1, 7)]
    theirs = {tensor.data_ptr() for tensor in published_tensors(policy.model).values()}
    shared = sum(parameter.nbytes for parameter in baseline.llama.parameters() if parameter.data_ptr() in theirs)
    if packed and can_pack(torch.float32):
        assert shared > 0, "what is not a matrix"
    else:
        assert baseline.own_bytes < 0.2 * shared, "only the towers' last blocks are its own"
