from __future__ import annotations

import torch

from openvla_ros.training.losses import bin_log_probabilities, cross_entropy, expected_bin_error, soft_labels


def test_bins_run_against_the_ids() -> None:
    logits = torch.full((10,), -20.0)
    logits[7] = 20.0  # vocabulary of 8 and two rows of padding: id 7 is the first bin, id 4 the last of four
    assert bin_log_probabilities(logits, vocabulary=8, bins=4).argmax() == 0
    assert bin_log_probabilities(logits.roll(-3), vocabulary=8, bins=4).argmax() == 3


def test_text_tokens_cost_probability() -> None:
    logits = torch.zeros(10)
    assert torch.isclose(bin_log_probabilities(logits, 8, 4).exp().sum(), torch.tensor(0.4))


def test_soft_labels_are_a_gaussian_of_the_given_width() -> None:
    labels = soft_labels(torch.tensor([100, 0]), 256, torch.tensor([4.0, 4.0]))
    bins = torch.arange(256.0)
    assert torch.allclose(labels.sum(-1), torch.ones(2))
    assert torch.isclose((labels[0] * (bins - 100).square()).sum().sqrt(), torch.tensor(4.0), atol=1e-3)
    assert labels[1].argmax() == 0


def test_a_bin_beside_costs_less_than_one_far_off() -> None:
    target, width = torch.tensor([100]), torch.tensor([4.0])
    costs = []
    for guess in (100, 103, 140):
        logits = torch.full((1, 256), -10.0)
        logits[0, guess] = 0.0
        costs.append(float(cross_entropy(logits.log_softmax(-1), soft_labels(target, 256, width))))
    assert costs[0] < costs[1] < costs[2]


def test_the_expected_bin_counts_distance() -> None:
    logits = torch.full((2, 256), -40.0)
    logits[0, 90] = 0.0
    logits[1, 80] = logits[1, 120] = 0.0
    assert torch.allclose(expected_bin_error(logits, torch.tensor([100, 100])), torch.tensor([10.0, 0.0]), atol=1e-4)
