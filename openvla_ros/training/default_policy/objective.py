"""What the default policy is trained for: the action tokens first, and beside them the questions of the training heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from openvla_ros.policy.openvla.layout import BINS, PADDING
from openvla_ros.training.default_policy.batches import Batch
from openvla_ros.training.default_policy.network import DETAILS, ENTITIES, Network
from openvla_ros.training.losses import bin_log_probabilities, cross_entropy, expected_bin_error, soft_labels
from openvla_ros.training.packing import read_pack

WIDTHS_BINS = (4.0, 4.0, 4.0, 0.3, 0.3, 0.3, 0.5)
"""Width of the soft label of each action token: 1.2 mm of translation; rotations and gripper are all but hard."""

WEIGHTS = (1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 2.0)
"""Of each token's cross-entropy."""

XYZ = slice(0, 3)
DECIDING = [0, 1, 2, 6]
"""The tokens that differ from step to step: translation and gripper."""


def picture_loss(network: Network, patches: Tensor, batch: Batch) -> Tensor:
    """The questions to the patches [B, P, W]: which of them holds each entity, and where exactly that is."""
    seen = batch.patches >= 0
    where = batch.patches.clamp(min=0)
    place = network.heads.place(patches).transpose(1, 2).float()[seen]  # [seen, P]
    details = network.heads.detail(patches).float().unflatten(2, (len(ENTITIES), DETAILS))
    index = where[:, None, :, None].expand(-1, 1, -1, DETAILS)
    details = details.gather(1, index)[:, 0]  # [B, E, 5] at the right patch
    found = functional.cross_entropy(place, batch.patches[seen])
    return found + 2.0 * functional.l1_loss(details[seen], batch.details[seen])


def instruction_loss(network: Network, batch: Batch, pixels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss of the action tokens, of the heads, and numbers to log: `l1_bins` (dx, dy, dz), `gripper_error` (share)."""
    assert batch.pack is not None
    output = read_pack(network.model, pixels, batch.pack)
    vocabulary = network.model.shape.decoder.vocab_size - PADDING
    target = vocabulary - 1 - batch.pack.answers  # [B, S, 7] bins, -1 first
    guess = bin_log_probabilities(output.logits, vocabulary, BINS)
    labels = soft_labels(target, BINS, torch.tensor(WIDTHS_BINS).expand(target.shape))
    tokens = (cross_entropy(guess, labels) * torch.tensor(WEIGHTS)).sum(-1).mean()
    tokens = tokens + 0.5 / 20.0 * expected_bin_error(guess[:, :, XYZ], target[:, :, XYZ]).sum(-1).mean()
    states = output.states[:, :, XYZ].float()  # [B, S, 3, W]
    scene = network.heads.scene(states).float()
    heads = functional.l1_loss(scene, batch.scene[:, :, None].expand_as(scene))
    pointed = network.heads.point(output.states[:, :, XYZ].flatten(1, 2), output.patches).float()
    goals = batch.goals[:, :, None].expand(-1, -1, 3).flatten(1)
    seen = goals >= 0
    heads = heads + 0.3 * functional.cross_entropy(pointed[seen], goals[seen]) + picture_loss(network, output.patches, batch)
    grip = network.heads.grip(output.states[:, :, DECIDING]).float()  # [B, S, 4, 3]
    heads = heads + 0.3 * functional.binary_cross_entropy_with_logits(grip, batch.grip[:, :, None].expand_as(grip))
    with torch.no_grad():
        chosen = guess.argmax(-1)
        far = (chosen - target).abs().float().mean(dim=(0, 1))
        logged = {"l1_bins": far[XYZ].mean(), "dx_bins": far[0], "dy_bins": far[1], "dz_bins": far[2],
                  "gripper_error": ((chosen[..., 6] - target[..., 6]).abs() > BINS // 4).float().mean()}
    return tokens, heads, logged
