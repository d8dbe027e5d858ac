"""Checkpoints with random weights for policy_node to run while something else is measured. Their actions mean nothing."""

from __future__ import annotations

from pathlib import Path

from openvla_ros.errors import DependencyMissing


def tiny_checkpoint(folder: Path) -> str:
    """A few milliseconds per action on one core, so that a camera at 30 Hz never waits for it. Returns its path.

    Raises DependencyMissing without torch.
    """
    return write(folder, side=64, patch=16, widths=(32, 32), depths=(3, 3), hidden=64, layers=1)


def load_checkpoint(folder: Path) -> str:
    """About 40 million parameters at openvla-7b's picture size: a tenth of a second on one core, so a camera at 30 Hz keeps it busy.

    Its large products are what torch shares among threads, as those of a real model. Returns its path. Raises DependencyMissing.
    """
    return write(folder, side=224, patch=14, widths=(384, 384), depths=(7, 6), hidden=512, layers=6)


def write(folder: Path, side: int, patch: int, widths: tuple[int, int], depths: tuple[int, int], hidden: int, layers: int) -> str:
    """A checkpoint with both towers and a decoder of these sizes."""
    try:
        from openvla_ros.policy.openvla import untrained
        from openvla_ros.policy.openvla.language import DecoderShape
        from openvla_ros.policy.openvla.layout import PADDING, write_checkpoint
        from openvla_ros.policy.openvla.model import ModelShape
        from openvla_ros.policy.openvla.vision import TowerShape
    except ModuleNotFoundError as error:
        raise missing(error) from error
    first, second = (TowerShape(width=width, depth=depth, heads=max(1, width // 64), mlp=4 * width, side=side, patch=patch, prefix=prefix,
                                layer_scale=prefix > 0) for width, depth, prefix in zip(widths, depths, (5, 0), strict=True))
    shape = ModelShape(
        towers=(first, second),
        decoder=DecoderShape(vocab_size=untrained.VOCABULARY + PADDING, hidden_size=hidden, intermediate_size=hidden * 11 // 4,
                             num_hidden_layers=layers, num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, head_dim=64,
                             max_position_embeddings=1024))
    statistics = {"action": {"q01": [*(-limit for limit in untrained.LIMITS), 0.0], "q99": [*untrained.LIMITS, 1.0], "mask": [True] * 7},
                  "num_trajectories": 0, "num_transitions": 0}
    write_checkpoint(folder, shape, untrained.random_tensors(shape, seed=0), untrained.WORDS, untrained.KEY, statistics,
                     untrained.README.format(key=untrained.KEY, seed=0), untrained=True)
    return str(folder)


def missing(error: ModuleNotFoundError) -> DependencyMissing:
    """What to do about an absent library."""
    return DependencyMissing(f"a policy under load needs the Python package {error.name!r}, which is not installed. Install it with: "
                             "pip install 'openvla-ros[policy]'")
