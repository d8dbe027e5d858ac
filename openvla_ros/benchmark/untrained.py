"""Checkpoints with random weights for policy_node to run while something else is measured. Their actions mean nothing."""

from __future__ import annotations

from pathlib import Path

from openvla_ros.errors import DependencyMissing


def tiny_checkpoint(folder: Path) -> str:
    """The one of `make-checkpoint`: under a hundredth of a second per action. Returns its path. Raises DependencyMissing without torch."""
    try:
        from openvla_ros.policy.openvla.untrained import write_untrained
    except ModuleNotFoundError as error:
        raise missing(error) from error
    write_untrained(folder)
    return str(folder)


def load_checkpoint(folder: Path) -> str:
    """About 40 million parameters at openvla-7b's picture size: a tenth of a second on one core, so a camera at 30 Hz keeps it busy.

    Its large products are what torch shares among threads, as those of a real model. Returns its path. Raises DependencyMissing.
    """
    try:
        from openvla_ros.policy.openvla import untrained
        from openvla_ros.policy.openvla.language import DecoderShape
        from openvla_ros.policy.openvla.layout import PADDING, write_checkpoint
        from openvla_ros.policy.openvla.model import ModelShape
        from openvla_ros.policy.openvla.vision import TowerShape
    except ModuleNotFoundError as error:
        raise missing(error) from error
    shape = ModelShape(
        towers=(TowerShape(width=384, depth=7, heads=6, mlp=1536, side=224, patch=14, prefix=5, layer_scale=True),
                TowerShape(width=384, depth=6, heads=6, mlp=1536, side=224, patch=14, prefix=0, layer_scale=False)),
        decoder=DecoderShape(vocab_size=untrained.VOCABULARY + PADDING, hidden_size=512, intermediate_size=1408, num_hidden_layers=6,
                             num_attention_heads=8, num_key_value_heads=8, head_dim=64, max_position_embeddings=1024))
    statistics = {"action": {"q01": [*(-limit for limit in untrained.LIMITS), 0.0], "q99": [*untrained.LIMITS, 1.0], "mask": [True] * 7},
                  "num_trajectories": 0, "num_transitions": 0}
    write_checkpoint(folder, shape, untrained.random_tensors(shape, seed=0), untrained.WORDS, untrained.KEY, statistics,
                     untrained.README.format(key=untrained.KEY, seed=0), untrained=True)
    return str(folder)


def missing(error: ModuleNotFoundError) -> DependencyMissing:
    """What to do about an absent library."""
    return DependencyMissing(f"a policy under load needs the Python package {error.name!r}, which is not installed. Install it with: "
                             "pip install 'openvla-ros[policy]'")
