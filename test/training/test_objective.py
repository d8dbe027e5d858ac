from __future__ import annotations

import numpy as np
import pytest
import torch

from openvla_ros.policy.openvla.layout import BINS, PADDING
from openvla_ros.training.default_policy.batches import Batch, Batches
from openvla_ros.training.default_policy.frames import FrameSet
from openvla_ros.training.default_policy.network import ENTITIES, Network, network_shape, number_waves, place_waves
from openvla_ros.training.default_policy.objective import instruction_loss, picture_loss
from openvla_ros.training.loop import Trainer


@pytest.fixture(scope="module")
def batch(frames: FrameSet) -> Batch:
    return Batches(frames, network_shape()).make(np.array([3, 30, 70]), np.random.default_rng(0), 4)


def test_a_few_frames_are_learned_by_heart(batch: Batch) -> None:
    trainer = Trainer(Network(network_shape(), seed=0))
    assert isinstance(trainer.network, Network)
    errors = []
    for _ in range(40):
        tokens, heads, logged = instruction_loss(trainer.network, batch, batch.pixels)
        trainer.update(tokens + heads, 1e-3)
        errors.append((float(logged["l1_bins"]), float(heads.detach())))
    assert errors[-1][0] < 0.3 * errors[0][0]
    assert errors[-1][1] < 0.5 * errors[0][1]


def test_questions_about_absent_blocks_are_not_asked(batch: Batch) -> None:
    network = Network(network_shape(), seed=0)
    patches = network.model.see(batch.pixels).detach().requires_grad_()
    loss = picture_loss(network, patches, batch)
    loss.backward()
    absent = int((batch.patches[0] < 0).nonzero()[0])
    assert ENTITIES[absent] not in ("plate", "tool")
    changed = batch.details.clone()
    changed[0, absent] = 7.0
    moved = Batch(batch.pixels, batch.pack, batch.patches, changed, batch.goals, batch.scene, batch.grip)
    assert float(picture_loss(network, patches, moved).detach()) == float(loss.detach())


def test_the_seed_decides_where_training_begins() -> None:
    one, same, other = (Network(network_shape(), seed) for seed in (0, 0, 1))
    assert all(torch.equal(first, second) for first, second in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.heads.place.weight, other.heads.place.weight)


def test_neighbouring_bins_begin_alike() -> None:
    rows = torch.nn.functional.normalize(number_waves(160), dim=1)
    assert rows.shape == (BINS, 160)
    near, far = (rows[:-1] * rows[1:]).sum(1).mean(), (rows[:128] * rows[128:]).sum(1).mean()
    assert near > 0.95 and far < 0.5


def test_every_patch_begins_with_a_place_of_its_own() -> None:
    waves = place_waves(8, 128)[0]
    distances = torch.cdist(waves, waves) + 100.0 * torch.eye(64)
    assert waves.shape == (64, 128) and distances.min() > 1.0


def test_the_deployed_model_is_small_and_has_no_heads() -> None:
    network = Network(network_shape(), 0)
    assert 2.5e6 < sum(parameter.numel() for parameter in network.model.parameters()) < 4.5e6
    assert not any("head" in name.replace("lm_head", "") for name, _ in network.model.named_parameters())
    assert network.model.shape.decoder.vocab_size % 64 == 0 and PADDING == 64
