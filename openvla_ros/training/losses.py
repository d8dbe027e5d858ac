"""Losses of action tokens that know their order: a bin beside the right one is a small mistake, one far off a large one."""

from __future__ import annotations

import torch
from torch import Tensor


def bin_log_probabilities(logits: Tensor, vocabulary: int, bins: int) -> Tensor:
    """Logits [..., vocab] -> log probabilities [..., bins] of the action tokens in the order of their numbers, -1 first.

    Normalised over the whole vocabulary, so that text tokens are driven down too.
    """
    return logits.log_softmax(dim=-1)[..., vocabulary - bins:vocabulary].flip(-1)


def soft_labels(target: Tensor, bins: int, width_bins: Tensor) -> Tensor:
    """[...] right bins -> [..., bins] probabilities, a Gaussian of standard deviation `width_bins` [...] around each."""
    distance = (torch.arange(bins, device=target.device) - target[..., None]) / width_bins[..., None]
    return (-0.5 * distance.square()).softmax(dim=-1)


def cross_entropy(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """[..., bins] and [..., bins] -> [...]"""
    return -(labels * log_probabilities).sum(dim=-1)


def expected_bin_error(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """How far the mean of the distribution over action tokens is from the right bin, [...], in bins."""
    probabilities = log_probabilities.softmax(dim=-1)
    bins = torch.arange(probabilities.shape[-1], device=target.device, dtype=probabilities.dtype)
    return ((probabilities * bins).sum(dim=-1) - target).abs()
