"""The loaded policy: self-test, faults, cancelling, other action lengths, closing."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from openvla_ros.contract import Observation
from openvla_ros.errors import ActionError, InstructionError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla import passes
from openvla_ros.policy.openvla.loading import load_openvla, record
from openvla_ros.policy.openvla.policy import OpenvlaPolicy
from openvla_ros.policy.openvla.untrained import write_untrained
from openvla_ros.policy.statistics import check_statistics


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    write_untrained(folder)
    return folder


@pytest.fixture
def policy(checkpoint: Path) -> OpenvlaPolicy:
    return load_openvla(PolicySettings(str(checkpoint), device="cpu", dtype="float32"), progress=False)


def failed(policy: OpenvlaPolicy) -> set[str]:
    return {check.name for check in policy.self_test() if not check.passed}


def test_a_sound_policy_passes_and_reports_its_time(policy: OpenvlaPolicy) -> None:
    checks = {check.name: check for check in policy.self_test()}
    assert all(check.passed for check in checks.values())
    assert "ms per action of 200 ms: preprocess" in checks["warm inference"].detail


@pytest.mark.shared
@pytest.mark.parametrize("name", ["tiny_fused", "tiny_siglip_v01"])
def test_golden_checkpoints_pass_the_self_test(load_golden, name: str) -> None:  # type: ignore[no-untyped-def]
    assert failed(load_golden(name, dtype="bfloat16")) == set()


def test_a_blind_model_fails_the_self_test(policy: OpenvlaPolicy) -> None:
    width = policy.model.shape.decoder.hidden_size
    policy.model.projector.fc3 = torch.nn.Linear(width, width).requires_grad_(False)
    torch.nn.init.zeros_(policy.model.projector.fc3.weight)
    assert failed(policy) == {"picture matters"}


def test_a_deaf_model_fails_the_self_test(policy: OpenvlaPolicy) -> None:
    policy.model.language_model.model.embed_tokens.weight.zero_()
    assert "instruction matters" in failed(policy)


def test_nan_weights_fail_the_self_test_and_give_a_fault(policy: OpenvlaPolicy, frame_observation: Observation) -> None:
    policy.model.vision_backbone.featurizer.pos_embed[0, 0, 0] = float("nan")
    assert failed(policy) >= {"logits are finite", "picture matters", "instruction matters"}
    chunk = policy.act(frame_observation)
    assert chunk.steps == () and "NaN or infinity" in chunk.fault


@pytest.mark.parametrize("length", [1, 6, 8, 10, 14, 16])
def test_other_action_lengths_are_predicted_but_drive_no_arm(policy: OpenvlaPolicy, frame_observation: Observation, length: int) -> None:
    policy.statistics = check_statistics("other", {"action": {"q01": [-2.0] * length, "q99": [2.0] * length}})
    prediction = policy.predict(frame_observation, keep_logits=True)
    assert len(prediction.generated_ids) == len(prediction.token_ids) == len(prediction.action) == length and not prediction.fault
    assert prediction.logits is not None and prediction.logits.shape == (length, 1088)
    np.testing.assert_allclose(prediction.action, 2.0 * prediction.normalized_action)
    assert failed(policy) == {"statistics fit one arm"}
    with pytest.raises(ActionError, match="expected"):
        policy.act(frame_observation)


def test_the_same_observation_gives_the_same_answer(policy: OpenvlaPolicy, frame_observation: Observation) -> None:
    rgb = frame_observation.rgb.copy()
    one = policy.predict(frame_observation, keep_logits=True)
    policy.predict(Observation(np.zeros((5, 7, 3), dtype=np.uint8), "a much longer instruction that leaves its keys in the cache", 3))
    policy.forget()  # with a draft the same tokens come by way of other products, which may round otherwise
    again = policy.predict(frame_observation, keep_logits=True)
    assert one.generated_ids == again.generated_ids and np.array_equal(one.logits, again.logits)
    assert np.array_equal(frame_observation.rgb, rgb)


def test_a_read_only_frame_is_no_problem(policy: OpenvlaPolicy) -> None:
    rgb = np.frombuffer(bytes(range(192)), dtype=np.uint8).reshape(8, 8, 3)
    assert not policy.act(Observation(rgb, "go", 0)).fault


def test_too_long_an_instruction_names_both_numbers(policy: OpenvlaPolicy) -> None:
    with pytest.raises(InstructionError, match=r"takes \d+ tokens with its prompt, at most 377 fit"):
        policy.act(Observation(np.zeros((8, 8, 3), dtype=np.uint8), "\u4e2d" * 256, 0))
    longest = Observation(np.zeros((8, 8, 3), dtype=np.uint8), "z" * 256, 0)
    assert not policy.act(longest).fault


def test_cancel_ends_the_running_inference_and_not_the_next(policy: OpenvlaPolicy, frame_observation: Observation) -> None:
    first_pass, more = threading.Event(), policy.passes.more

    def cancelled_from_another_thread(*arguments):  # type: ignore[no-untyped-def]
        canceller = threading.Thread(target=policy.cancel)
        canceller.start()
        canceller.join()
        first_pass.set()
        return more(*arguments)

    policy.passes.more = cancelled_from_another_thread  # type: ignore[method-assign]
    chunk = policy.act(frame_observation)
    assert first_pass.is_set() and chunk.steps == () and chunk.fault == "cancelled after 2 of 7 tokens"
    del policy.passes.more
    assert not policy.act(frame_observation).fault
    policy.cancel()  # nothing is running
    assert not policy.act(frame_observation).fault


def test_close_frees_the_weights(policy: OpenvlaPolicy) -> None:
    import weakref

    weight = weakref.ref(policy.model.language_model.model.embed_tokens.weight)
    policy.close()
    assert weight() is None
    policy.close()


def test_threads_setting_reaches_torch(checkpoint: Path) -> None:
    before = torch.get_num_threads()
    try:
        load_openvla(PolicySettings(str(checkpoint), device="cpu", threads=before + 1), progress=False)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_the_progress_bar_goes_to_stderr(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_openvla(PolicySettings(str(checkpoint), device="cpu"), progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "loading tiny" in err
    load_openvla(PolicySettings(str(checkpoint), device="cpu"), progress=None)  # stderr is no terminal here
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
def test_gpu_and_cpu_give_the_same_tokens(checkpoint: Path, frame_observation: Observation) -> None:
    answers = {device: load_openvla(PolicySettings(str(checkpoint), device=device, dtype="float32"), False).predict(frame_observation)
               for device in ("cpu", "cuda")}
    assert answers["cpu"].generated_ids == answers["cuda"].generated_ids


def test_without_graphs_a_policy_answers_the_same_and_says_so(policy: OpenvlaPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    observation = Observation(np.full((64, 64, 3), 90, dtype=np.uint8), "pick up the red block", 0)
    expected = policy.predict(observation).generated_ids

    def fails(recording: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(passes.Recording, "__call__", fails)
    record(policy, "tiny", progress=False)
    assert policy.recorded is None and policy.predict(observation).generated_ids == expected
    assert "CUDA graphs could not be recorded" in policy.notes[-1] and policy.notes[-1].endswith("when stream is capturing")
