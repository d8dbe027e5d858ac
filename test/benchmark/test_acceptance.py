"""What drafts would be worth: counts against hand-made sequences, and against a slow obvious count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openvla_ros.benchmark.acceptance import acceptance, best_tree, count_passes, mean_passes


def test_an_arm_at_rest_takes_one_pass() -> None:
    found = acceptance("rest", [np.full((9, 7), 31900)])
    assert found is not None and found.pairs == 8 and found.episodes == 1
    assert (found.equal == 1.0).all() and found.prefix[-1] == 1.0
    assert found.passes["plain"] == 7.0 and set(found.passes.values()) == {7.0, 1.0}


def test_what_is_counted_by_hand() -> None:
    first = [10, 20, 30, 40, 50, 60, 70]
    second = [10, 21, 30, 40, 50, 60, 79]  # the second differs by one bin, the last does not matter to the passes
    found = acceptance("two", [np.array([first, second])])
    assert found is not None
    assert found.equal.tolist() == [1, 0, 1, 1, 1, 1, 0]
    assert found.near[1].tolist() == [1, 1, 1, 1, 1, 1, 0] and found.near[8][-1] == 0.0
    assert found.prefix.tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert found.passes["prefix"] == 6.0, "one id confirmed by the first pass, one given by it, five left"
    assert found.passes["redraft"] == 2.0, "the second pass confirms the rest"
    assert found.passes["tree 1/16"] == 1.0


def test_an_episode_is_no_neighbour_of_the_next() -> None:
    still = np.full((3, 7), 5)
    found = acceptance("jump", [still, still + 100])
    assert found is not None and found.pairs == 4 and (found.equal == 1.0).all()
    assert acceptance("none", [still[:1], np.empty((0, 7), np.int64)]) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_passes_are_between_one_and_plain_and_more_nodes_never_cost(seed: int) -> None:
    random = np.random.default_rng(seed)
    episodes = [np.cumsum(random.integers(-2, 3, (12, 7)) * random.integers(0, 2, (12, 7)), axis=0) for _ in range(4)]
    found = acceptance("walk", episodes)
    assert found is not None and all(1.0 <= passes <= 7.0 for passes in found.passes.values())
    assert found.passes["redraft"] <= found.passes["prefix"]
    offsets = np.concatenate([np.diff(ids, axis=0) for ids in episodes])
    assert found.passes["redraft"] == pytest.approx(1.0 + (offsets[:, :6] != 0).sum(axis=1).mean())
    by_nodes = [mean_passes(offsets, 2, nodes) for nodes in (8, 32, 128)]
    assert by_nodes == sorted(by_nodes, reverse=True)


def test_the_best_tree_is_the_best() -> None:
    rates = [{-1: 0.2, 0: 0.7, 1: 0.1}, {-1: 0.0, 0: 0.6, 1: 0.4}]
    assert best_tree(rates, 3) == {(0,), (0, 0), (0, 1)}
    assert best_tree(rates, 100) == {(a,) for a in (-1, 0, 1)} | {(a, b) for a in (-1, 0, 1) for b in (0, 1)}
    assert count_passes((0, 1, 3), lambda level: best_tree(rates[level:], 3)) == 1
    assert count_passes((1, 1, 3), lambda level: best_tree(rates[level:], 3)) == 2
