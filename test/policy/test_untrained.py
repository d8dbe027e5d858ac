"""The untrained checkpoint: reproducible, complete, and it always answers with actions that depend on what it sees and reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.contract import Observation
from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.policy import OpenvlaPolicy
from openvla_ros.policy.openvla.untrained import LIMITS, write_untrained

INSTRUCTIONS = ("put the spoon on the towel", "close the drawer", "z", "PICK UP THE RED CUBE", "sch\u00f6n \u2603 \u4e2d", "a\tb",
                "1 2 3 !?")


@pytest.fixture(scope="module", params=[0, 1, 7])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenvlaPolicy:
    folder = tmp_path_factory.mktemp("untrained") / "tiny"
    write_untrained(folder, seed=request.param)
    return load_openvla(PolicySettings(str(folder), device="cpu"), progress=False)


def test_it_never_faults_and_stays_within_its_limits(policy: OpenvlaPolicy) -> None:
    random = np.random.default_rng(3)
    for index in range(60):
        grain = int(random.choice([1, 4, 16]))
        rgb = random.integers(0, 256, (64 // grain, 96 // grain, 3), dtype=np.uint8).repeat(grain, 0).repeat(grain, 1)
        if index % 10 == 0:
            rgb[:] = random.integers(0, 256)  # a plain wall, black and white included
        chunk = policy.act(Observation(rgb, INSTRUCTIONS[index % len(INSTRUCTIONS)], index))
        assert chunk.fault == "" and len(chunk.steps) == 1
        vector = chunk.steps[0].to_vector()
        assert (np.abs(vector[:6]) <= LIMITS).all() and 0.0 <= vector[6] <= 1.0


def test_picture_and_instruction_change_the_action(policy: OpenvlaPolicy) -> None:
    assert all(check.passed for check in policy.self_test())
    random = np.random.default_rng(4)
    pictures = [random.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1) for _ in range(12)]
    by_picture = {policy.predict(Observation(picture, "close the drawer", 0)).token_ids for picture in pictures}
    by_text = {policy.predict(Observation(pictures[0], text, 0)).token_ids for text in INSTRUCTIONS}
    assert len(by_picture) > 6 and len(by_text) > 3


def test_any_text_stays_outside_the_action_ids(policy: OpenvlaPolicy) -> None:
    for text in (*INSTRUCTIONS, "<action_3> <unused_0> <0x41>", "".join(map(chr, range(32, 127))).replace("<", "")):
        ids = policy.prompt.encode(text)
        assert ids[0] == 1 and ids[-1] == policy.prompt.empty_id
        assert all(3 <= token_id < policy.tokens.first_id for token_id in ids[1:])
    # the prompt's own words are whole pieces, so the prompt is short
    assert len(policy.prompt.encode("pick up the red cube")) < 30


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        write_untrained(tmp_path / name, seed=seed)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")}
    assert weights["one"] == weights["two"] != weights["three"]
    assert (tmp_path / "one" / "tokenizer.json").read_bytes() == (tmp_path / "three" / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"], "nothing unfinished is left"


def test_it_says_that_it_is_untrained(policy: OpenvlaPolicy, tmp_path: Path) -> None:
    assert any("random numbers" in note for note in policy.notes)
    write_untrained(tmp_path / "tiny")
    assert "actions mean nothing" in (tmp_path / "tiny" / "README.md").read_text()
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["untrained"] is True


def test_nothing_is_overwritten_unless_it_is_ours_and_asked_for(tmp_path: Path) -> None:
    write_untrained(tmp_path / "tiny")
    with pytest.raises(CheckpointError, match=r"exists already.*--force"):
        write_untrained(tmp_path / "tiny")
    before = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    write_untrained(tmp_path / "tiny", seed=9, force=True)
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() != before
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(CheckpointError, match="exists already"):
        write_untrained(precious, force=True)
    assert (precious / "cat.jpg").exists()
    with pytest.raises(ConfigurationError, match="expected one of tiny"):
        write_untrained(tmp_path / "new", size="huge")
    assert not (tmp_path / "new").exists()
