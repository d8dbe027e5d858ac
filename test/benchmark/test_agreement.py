"""The margin rule, and what the stages' least work is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from openvla_ros.benchmark.agreement import Agreement, compare
from openvla_ros.benchmark.limits import Product, weight_count, work_of
from openvla_ros.benchmark.sizes import SIZES
from openvla_ros.policy.openvla.tokens import ActionTokens

TOKENS = ActionTokens(32000)
EXPECTED = (31900, 31800, 31999)


def test_the_margin_decides_what_a_difference_is() -> None:
    margins = np.array([2.0, 0.1, 3.0])
    assert compare(EXPECTED, margins, EXPECTED, 0.5, TOKENS) == Agreement(1, 1, 0, 0, 3, 3, 0.0)
    flip = compare(EXPECTED, margins, (31900, 31801, 31744), 0.5, TOKENS)
    assert (flip.flips, flip.wrong, flip.equal, flip.tokens_equal) == (1, 0, 0, 1), "behind a flip it is another sentence"
    assert flip.error == pytest.approx((2 / 255 + 2 * 254 / 255) / 3)
    wrong = compare(EXPECTED, margins, (31901, 31800, 31999), 0.5, TOKENS)
    assert (wrong.flips, wrong.wrong, wrong.tokens_equal) == (0, 1, 2)
    assert compare(EXPECTED, margins, EXPECTED[:2], 0.5, TOKENS).wrong == 1, "an answer that ends early is no flip"


def test_agreements_add_up() -> None:
    both = Agreement(1, 1, 0, 0, 7, 7, 0.0).plus(Agreement(3, 1, 1, 1, 21, 10, 0.4))
    assert both == Agreement(4, 2, 1, 1, 28, 17, pytest.approx(0.3))


def test_the_work_of_openvla_7b() -> None:
    work = work_of(SIZES["7b"], 280)
    flop = {stage: sum(count * product.flop for product, count in products.items()) for stage, products in work.items()}
    assert flop["prefill"] == pytest.approx(3.63e12, rel=0.01) and flop["vision"] == pytest.approx(0.40e12, rel=0.05)
    assert weight_count(work["decode"]) == pytest.approx(6.607e9, rel=0.001), "all layers and the head"
    assert isinstance(work["vision"], Counter) and work["vision"][Product(261, 1024, 3072)] == 23, "the last block is not used"
