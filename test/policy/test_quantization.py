"""int8 and NF4 on the CPU: near the bfloat16 model, loaded in little memory, and never passed off as exact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from openvla_ros.contract import Observation
from openvla_ros.errors import ConfigurationError, DependencyMissing
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.linear import BlockedLinear, PackedLinear
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.quantization import is_quantized, quantize_linear
from openvla_ros.policy.openvla.untrained import write_untrained

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")

CPU = torch.device("cpu")
RELATIVE_ERROR = {"int8": 0.02, "nf4": 0.15}


@pytest.mark.parametrize("mode", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.inference_mode()
def test_a_layer_is_near_its_exact_self(mode: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, tokens = torch.randn(192, 256, dtype=dtype) / 16, torch.randn(1, 9, 256, dtype=dtype)
    layer = quantize_linear(weight, mode, CPU, dtype)
    exact = tokens.float() @ weight.float().T
    for rows in (tokens, tokens[:, :1]):  # prefill and decode take different paths in the library
        result = layer(rows)
        assert result.dtype == dtype and not any(tensor.is_meta for tensor in layer.state_dict().values())
        expected = exact[:, :rows.shape[1]]
        assert float((result.float() - expected).norm() / expected.norm()) < RELATIVE_ERROR[mode]
    stored = sum(tensor.nbytes for tensor in layer.parameters())
    assert stored == weight.numel() * (1.0 if mode == "int8" else 0.5)


@pytest.mark.parametrize("mode", ["int8", "nf4"])
def test_widths_that_the_library_cannot_take_are_refused(mode: str) -> None:
    with pytest.raises(ConfigurationError, match=r"multiples of 32.*from 64 to 40 features"):
        quantize_linear(torch.zeros(40, 64), mode, CPU, torch.bfloat16)


@pytest.mark.shared
@pytest.mark.parametrize("mode", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["tiny_fused", "tiny_siglip_v01"])
def test_actions_stay_near_bfloat16_and_the_difference_is_reported(golden: Path, load_golden, mode: str, name: str,  # type: ignore[no-untyped-def]
                                                                   record_property) -> None:
    exact, quantized = load_golden(name, dtype="bfloat16"), load_golden(name, dtype="bfloat16", quantization=mode)
    assert exact.notes == () and "not exactly" in quantized.notes[0]
    same, logit_errors, action_errors = 0, [], []
    cases = json.loads((golden / name / "cases.json").read_text())["cases"]
    for case in cases:
        with np.load(golden / name / case["file"]) as arrays:
            observation = Observation(arrays["image"], case["instruction"], 0)
        one, other = (policy.predict(observation, keep_logits=True) for policy in (exact, quantized))
        same += one.generated_ids == other.generated_ids
        logit_errors.append(float(np.abs(one.logits[0] - other.logits[0]).max() / np.abs(one.logits[0]).max()))
        action_errors.append(float(np.abs(one.normalized_action - other.normalized_action).max()))
    report = {"same_tokens": f"{same} of {len(cases)}", "largest_relative_logit_error": round(max(logit_errors), 4),
              "largest_normalized_action_error": round(max(action_errors), 4)}
    record_property(f"{name}_{mode}", report)
    print(name, mode, report)
    assert max(logit_errors) < {"int8": 0.05, "nf4": 0.3}[mode], report
    assert same >= {"int8": len(cases) - 1, "nf4": len(cases) // 2}[mode], report


@pytest.mark.parametrize("mode", ["int8", "nf4"])
def test_a_quantised_policy_passes_its_self_test_and_counts_as_not_exact(tmp_path: Path, mode: str) -> None:
    write_untrained(tmp_path / "tiny")
    policy = load_openvla(PolicySettings(str(tmp_path / "tiny"), device="cpu", quantization=mode), progress=False)
    assert all(check.passed for check in policy.self_test())
    assert "quantisation" in policy.notes[0] and "random numbers" in policy.notes[1]
    kinds = {type(module).__name__ for module in policy.model.language_model.model.layers.modules()}
    assert {"int8": "Linear8bitLt", "nf4": "Linear4bit"}[mode] in kinds and not {"Linear", "PackedLinear", "BlockedLinear"} & kinds
    exact = {type(module) for module in (policy.model.language_model.lm_head, policy.model.projector.fc1)}
    assert exact <= {torch.nn.Linear, PackedLinear, BlockedLinear}


def test_only_the_large_matrices_of_the_decoder_are_quantised() -> None:
    assert is_quantized("language_model.model.layers.0.self_attn.q_proj.weight")
    assert is_quantized("language_model.model.layers.31.mlp.down_proj.weight")
    assert not any(map(is_quantized, ("language_model.lm_head.weight", "language_model.model.layers.0.input_layernorm.weight",
                                      "projector.fc1.weight", "vision_backbone.featurizer.blocks.0.attn.proj.weight")))


def test_bitsandbytes_is_imported_only_when_asked_for(tmp_path: Path) -> None:
    write_untrained(tmp_path / "tiny")
    code = ("import sys; from openvla_ros.policy.catalogue import PolicySettings, load_policy; "
            f"load_policy(PolicySettings({str(tmp_path / 'tiny')!r}, device='cpu')); sys.exit('bitsandbytes' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_without_bitsandbytes_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # Python's own way to make an import fail
    with pytest.raises(DependencyMissing, match="pip install bitsandbytes"):
        load_openvla(PolicySettings(str(tmp_path), quantization="nf4"))


MEASURE = """
import json, sys, threading
import torch
from openvla_ros.policy.openvla.checkpoint import load_weights, needed_bytes
from openvla_ros.policy.openvla.language import DecoderShape
from openvla_ros.policy.openvla.model import ModelShape, OpenvlaModel
from openvla_ros.policy.openvla.quantization import import_bitsandbytes
from openvla_ros.policy.openvla.untrained import TINY

def anonymous_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

class Source:
    def read(self, name):
        return torch.empty(model.state_dict()[name].shape, dtype=torch.bfloat16).uniform_(-0.02, 0.02)

torch.set_num_threads(1)
import_bitsandbytes()
with torch.device("meta"):  # one decoder layer of a 7B model's width, half its feed-forward part, behind small towers
    model = OpenvlaModel(ModelShape(TINY.towers, DecoderShape(vocab_size=512, num_hidden_layers=1, intermediate_size=5504)))
kept, transient = needed_bytes(model.named_parameters(), torch.bfloat16, "nf4")
before, peak, done = anonymous_bytes(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous_bytes())
thread = threading.Thread(target=watch)
thread.start()
load_weights(model, Source(), torch.device("cpu"), torch.bfloat16, "nf4")
done.set()
thread.join()
print(json.dumps({"kept": kept, "transient": transient, "peak": peak - before,
                  "meta": any(tensor.is_meta for tensor in model.state_dict().values())}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to see anonymous memory")
def test_a_wide_layer_streams_within_the_memory_that_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=300, check=True)
    seen = json.loads(done.stdout)
    assert not seen["meta"]
    # the estimate that check_memory uses, with a fifth for the allocator
    assert seen["peak"] < 1.2 * (seen["kept"] + seen["transient"]), seen
