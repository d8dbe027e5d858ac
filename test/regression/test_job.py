"""A recording as a test: what is the same is good, and of what differs the cause is named, from the camera to the arm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from openvla_ros.bags.command import command
from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.expect import Tolerance, read_expectation
from openvla_ros.bags.read import Recording
from openvla_ros.errors import BagError, ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.regression.job import DIFFERS, GOOD, Job, Result, as_json, as_words, judge, preparing
from openvla_ros.regression.robots import read_robot
from openvla_ros.regression.workers import LoadedPolicy
from openvla_ros.share import share_folder

Make = Callable[..., Job]
Run = Callable[[Job], Result]
EXACTLY = Tolerance(margin=0.0, flips=0.0)


@pytest.fixture
def expected(job: Make, run: Run, tiny: PolicySettings, tmp_path: Path) -> Path:
    """What the untrained model says, through the pilot too."""
    file = tmp_path / "expected.json"
    assert run(job(policy=tiny, write_expected=file, through="command")).status == GOOD
    return file


def test_the_same_again_is_good_alone_in_batches_and_through_the_pilot(job: Make, run: Run, tiny: PolicySettings, expected: Path) -> None:
    for changes in ({}, {"batch": 4}, {"through": "command"}):
        found = run(job(policy=tiny, expect=expected, tolerance=EXACTLY, **changes))
        assert found.status == GOOD and not found.differences and not found.flips and not found.changes
        assert found.replay is not None and len(found.replay.frames) == 6


def test_an_expectation_says_what_it_was_made_from(job: Make, run: Run, tiny: PolicySettings, expected: Path) -> None:
    content = read_expectation(expected)
    assert len(content.frames) == len(content.commanded) == 6
    policy, bag, versions = (content.provenance[part] for part in ("policy", "bag", "versions"))
    assert policy["statistics"]["key"] == "untrained" and policy["mode"] == {"dtype": "float32", "device": "cpu"}
    assert policy["preprocessing"]["resize"] == "direct" and len(policy["checkpoint"]) == len(bag["digest"]) == 16
    assert bag["frames"] == 6 and {"openvla_ros", "torch", "pillow"} <= versions.keys()
    assert content.provenance["command"]["limits"]["max_step_m"] == 0.05
    again = expected.with_name("again.json")
    run(job(policy=tiny, write_expected=again, through="command"))
    assert again.read_bytes() == expected.read_bytes()
    lines = expected.read_text().splitlines()
    assert sum('"token_ids"' in line for line in lines) == 6


def test_margins_are_those_of_the_logits(loaded: LoadedPolicy, tiny: PolicySettings, expected: Path, episode: Path) -> None:
    """Against the slow way: one frame alone, logits sorted."""
    from openvla_ros.bags.frames import frames, select
    from openvla_ros.bags.read import Recording
    from openvla_ros.contract import Observation

    policy: Any = loaded.get(tiny)
    kept = read_expectation(expected).frames
    with Recording(episode) as recording:
        for frame, then in zip(frames(recording, select(recording)), kept, strict=True):
            assert frame.rgb is not None and then.evidence is not None
            seen = policy.predict(Observation(frame.rgb, frame.instruction, frame.stamp_ns, frame.jpeg), keep_logits=True)
            ordered = np.sort(seen.logits, axis=1)
            np.testing.assert_allclose(then.evidence.margins, ordered[:, -1] - ordered[:, -2], atol=2e-4)
            assert seen.generated_ids == then.token_ids and seen.input_ids == then.evidence.input_ids
    assert preparing(policy, evidence=True).self_test()[0].passed


# --- what differs, and its name


def cause(found: Result) -> str:
    """The one cause of a result that is not as expected; its words and its pictures are there."""
    assert found.status == DIFFERS
    causes = {difference.cause for difference in found.differences}
    words = as_words(found)
    assert all(word in words for word in causes) and f"frame {found.differences[0].index}" in words
    first = found.differences[0]
    if first.found is not None:
        picture = cv2.imread(found.exhibits[first.index])
        assert picture.shape[1] == 640 and picture.shape[0] > 640 * 48 / 64 + 200
    plain = json.loads(json.dumps(as_json(found)))
    assert plain["status"] == DIFFERS and plain["differences"][0]["cause"] in causes
    return " ".join(sorted(causes))


def test_another_instruction(job: Make, run: Run, tiny: PolicySettings, expected: Path) -> None:
    found = run(job(policy=tiny, expect=expected, tolerance=EXACTLY, instruction="open the drawer"))
    assert cause(found) == "input ids" and "is 'open the drawer'" in found.differences[0].detail


def test_another_prompt(job: Make, run: Run, tiny: PolicySettings, expected: Path) -> None:
    found = run(job(policy=replace(tiny, prompt_style="v01"), expect=expected, tolerance=EXACTLY))
    assert cause(found) == "input ids" and "prompt style or tokenizer" in found.differences[0].detail
    assert any(line.startswith("policy.prompt: In: What") for line in found.changes)


def test_another_image_path(job: Make, run: Run, tiny: PolicySettings, expected: Path) -> None:
    found = run(job(policy=replace(tiny, rotate_180=True), expect=expected, tolerance=EXACTLY))
    assert cause(found) == "pixels" and "rotate_180: False became True" in found.differences[0].detail


def test_other_pictures(job: Make, run: Run, tiny: PolicySettings, expected: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_episode(other, EpisodeSettings(seconds=1.2, width=64, height=48, seed=5))
    found = run(job(policy=tiny, bag=other, expect=expected, tolerance=EXACTLY))
    assert "picture" in cause(found) and "the recording was changed" in found.differences[0].detail


def test_other_weights(job: Make, run: Run, tiny: PolicySettings, expected: Path, tmp_path: Path) -> None:
    from openvla_ros.policy.openvla.untrained import write_untrained

    write_untrained(tmp_path / "retrained", seed=1)
    found = run(job(policy=replace(tiny, checkpoint=str(tmp_path / "retrained")), expect=expected, tolerance=EXACTLY))
    assert cause(found) == "logits" and "the checkpoint's files are others" in found.differences[0].detail
    assert any(line.startswith("policy.checkpoint: ") for line in found.changes)


def test_other_statistics(job: Make, run: Run, tiny: PolicySettings, expected: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scaled"
    shutil.copytree(tiny.checkpoint, folder)
    for file in (path for path in folder.glob("*.json") if "q99" in path.read_text()):
        content = json.loads(file.read_text())
        action = content.get("norm_stats", content)["untrained"]["action"]
        action["q99"][1] *= 1.5
        file.write_text(json.dumps(content))
    found = run(job(policy=replace(tiny, checkpoint=str(folder)), expect=expected, tolerance=EXACTLY))
    assert cause(found) == "statistics" and "q99" in found.differences[0].detail and found.differences[0].dimensions == ("dy",)


def test_other_limits(job: Make, run: Run, tiny: PolicySettings, expected: Path, tmp_path: Path) -> None:
    profile = yaml.safe_load((share_folder() / "config/robots/wx250s_replay.yaml").read_text())
    profile["limits"]["max_step_m"] = 0.002
    (tmp_path / "timid.yaml").write_text(yaml.safe_dump(profile))
    found = run(job(policy=tiny, expect=expected, tolerance=EXACTLY, through="command", robot=str(tmp_path / "timid.yaml")))
    assert cause(found) == "safety" and "step_clamp_translation" in found.differences[0].detail
    assert "command.limits.max_step_m: 0.05 became 0.002" in found.changes


def test_an_allowed_flip_is_allowed_on_the_arm_too(job: Make, run: Run, tiny: PolicySettings, expected: Path, episode: Path) -> None:
    """As if frame 2 had answered another token on the day of the expectation, and the arm had played that."""
    now, then = run(job(policy=tiny, through="command")), read_expectation(expected)
    assert now.replay is not None and now.commanded is not None
    other = list(then.frames)
    margins = (0.001, *other[2].evidence.margins[1:])
    assert other[2].action is not None
    other[2] = replace(other[2], token_ids=(other[2].token_ids[0] - 1, *other[2].token_ids[1:]),
                       action=np.add(other[2].action, [0.004, 0, 0, 0, 0, 0, 0]), evidence=replace(other[2].evidence, margins=margins))
    logged = [replace(frame, log_ns=seen.log_ns) for frame, seen in zip(other, now.replay.frames, strict=True)]
    with Recording(episode) as recording:
        played = command(recording, logged, read_robot("wx250s_replay").profile).frames
    assert not np.allclose(played[2].sent, now.commanded.frames[2].sent, atol=0.002)
    found = judge(now, replace(then, frames=tuple(other), commanded=played), then.provenance, Tolerance())
    assert found.status == GOOD and found.flips == (2,), as_words(found)


def test_fewer_frames(job: Make, run: Run, tiny: PolicySettings, expected: Path, tmp_path: Path) -> None:
    shorter = tmp_path / "shorter"
    make_episode(shorter, EpisodeSettings(seconds=0.8, width=64, height=48))
    found = run(job(policy=tiny, bag=shorter, expect=expected))
    assert {4, 5} <= {difference.index for difference in found.differences if difference.cause == "frames"}
    assert "expected and did not come" in as_words(found)


def test_a_policy_without_tokens_is_compared_by_its_actions(job: Make, run: Run, tmp_path: Path, tiny: PolicySettings) -> None:
    file = tmp_path / "scripted.json"
    run(job(write_expected=file))
    assert run(job(expect=file)).status == GOOD
    plain = json.loads(file.read_text())
    plain["frames"][3]["action"][0] += 0.001
    file.write_text(json.dumps(plain))
    found = run(job(expect=file))
    assert cause(found) == "action" and [difference.index for difference in found.differences] == [3]


def test_an_expectation_of_a_few_frames_looks_at_those_alone(job: Make, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "few.json"
    run(job(write_expected=file, stride=2, limit=2))
    found = run(job(expect=file))
    assert found.status == GOOD and found.replay is not None and [frame.index for frame in found.replay.frames] == [0, 2]


# --- what cannot be judged


def test_the_arm_without_an_expectation_for_it_is_refused(job: Make, run: Run, tmp_path: Path) -> None:
    run(job(write_expected=tmp_path / "e.json"))
    with pytest.raises(ConfigurationError, match="says nothing about the arm"):
        run(job(expect=tmp_path / "e.json", through="command"))


def test_a_real_arm_needs_recorded_joint_states(job: Make, run: Run) -> None:
    pytest.importorskip("pinocchio")
    with pytest.raises(BagError, match="has no joint_states"):
        run(job(through="command", robot="wx250s"))


@pytest.mark.parametrize(("content", "word"), [
    (None, "there is no expectation"), ("{", "cannot be read"), ("[]", "no file with expected"), ('{"format": "x"}', "no file with"),
    ('{"format": "openvla_ros expected actions", "version": 7}', "has version 7"),
    ('{"format": "openvla_ros expected actions", "version": 1, "prompts": [], "frames": []}', "holds no frame"),
    ('{"format": "openvla_ros expected actions", "version": 1, "prompts": [], "frames": [{"index": 0}]}', "is damaged: KeyError"),
    ('{"format": "openvla_ros expected actions", "version": 1, "prompts": [], "frames": [{"index": 0, "stamp_ns": 1, "instruction": "x", '
     '"token_ids": [], "action": [1, 2]}]}', "expected 7 numbers")])
def test_a_wrong_expectation_is_refused_before_anything_runs(job: Make, run: Run, tmp_path: Path, content: str | None, word: str) -> None:
    file = tmp_path / "wrong.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=word):
        run(job(expect=file))


@pytest.mark.parametrize("changes", [{"through": "arm"}, {"stride": 0}, {"batch": 0}, {"latency_s": float("nan")}])
def test_jobs_that_make_no_sense_are_refused(job: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"expected|must be"):
        job(**changes)
