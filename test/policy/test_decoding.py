"""Drafts are confirmed exactly: against a network that is a table, whatever the draft, and never with more passes than plain greedy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openvla_ros.policy.openvla.decoding import Decoded, confirm, greedy, settle

VOCABULARY = 11


class Table:
    """A decoder by heart: the logits behind a token follow from all ids before it, remembered by position. No network, no rounding."""

    def __init__(self, rows: int, seed: int, fixed_width: bool) -> None:
        self.seed, self.fixed_width = seed, fixed_width
        self.memory: list[dict[int, int]] = [{} for _ in range(rows)]
        self.passes = 1

    def behind(self, row: int, position: int) -> Tensor:
        past = [self.memory[row][place] for place in sorted(self.memory[row]) if place <= position]
        generator = np.random.default_rng([self.seed, row, *past])
        return torch.from_numpy(generator.permutation(VOCABULARY).astype(np.float32))

    def first(self, starts: Sequence[int], drafts: Sequence[Sequence[int]]) -> Tensor:
        for row, (start, draft) in enumerate(zip(starts, drafts, strict=True)):
            self.memory[row] = {start + place: token for place, token in enumerate(draft)}
        steps = range(-1, len(drafts[0]))
        return torch.stack([torch.stack([self.behind(row, start + step) for step in steps]) for row, start in enumerate(starts)])

    def more(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        self.passes += 1
        for row, start in enumerate(starts):
            self.memory[row] |= {start + place: token for place, token in enumerate(tokens[row].tolist())}
        return torch.stack([torch.stack([self.behind(row, start + place) for place in range(tokens.shape[1])])
                            for row, start in enumerate(starts)])


def never() -> bool:
    return False


def nothing() -> None:
    return None


def plainly(rows: int, seed: int, count: int) -> Decoded:
    starts = list(range(100, 100 + rows))
    network = Table(rows, seed, False)
    decoded = greedy(network, network.first(starts, [[]] * rows), starts, count, never, nothing)
    assert decoded.passes == network.passes == count
    return decoded


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 8), st.booleans(), st.data())
@settings(max_examples=150, deadline=None)
def test_any_draft_gives_the_ids_of_plain_greedy_in_no_more_passes(seed: int, rows: int, count: int, fixed: bool,
                                                                   data: st.DataObject) -> None:
    plain = plainly(rows, seed, count)
    drafts = []
    for row in range(rows):  # right up to some place, then anything
        right = data.draw(st.integers(0, count - 1))
        drafts.append(plain.ids[row][:right] + [data.draw(st.integers(0, VOCABULARY - 1)) for _ in range(count - 1 - right)])
    starts, network = list(range(100, 100 + rows)), Table(rows, seed, fixed)
    decoded = confirm(network, network.first(starts, drafts), drafts, starts, count, never, nothing)
    assert decoded.ids == plain.ids and torch.equal(decoded.logits, plain.logits)
    assert decoded.passes == network.passes <= count
    for draft, ids, confirmed in zip(drafts, plain.ids, decoded.confirmed, strict=True):
        agreeing = [one == other for one, other in zip(draft, ids, strict=False)]
        assert confirmed == [*agreeing, False].index(False)
        assert decoded.passes == 1 or min(decoded.confirmed) < count - 1
    if all(confirmed == count - 1 for confirmed in decoded.confirmed):
        assert decoded.passes == 1


def test_a_wrong_token_in_the_middle_costs_one_pass_when_the_rest_does_not_depend_on_it() -> None:
    answer = [5, 5, 5, 5, 5, 5, 5]
    assert settle(answer[:6], 0, answer, 7) == 7
    guessed = [5, 9, 5, 5, 5, 5]
    assert settle(guessed, 0, answer, 7) == 2 and guessed == answer, "the second is right now, the rest is the next guess"
    assert settle(guessed, 2, answer[2:], 7) == 7


@pytest.mark.parametrize("drafted", [False, True])
def test_a_stop_gives_what_was_settled_before(drafted: bool) -> None:
    asked = iter([False, True])
    network, starts = Table(2, 3, False), [100, 101]
    if drafted:
        drafts = [[0] * 6, [1] * 6]
        decoded = confirm(network, network.first(starts, drafts), drafts, starts, 7, lambda: next(asked), nothing)
        assert all(2 <= len(ids) < 7 for ids in decoded.ids)
    else:
        decoded = greedy(network, network.first(starts, [[], []]), starts, 7, lambda: next(asked), nothing)
        assert [len(ids) for ids in decoded.ids] == [2, 2]
    plain = plainly(2, 3, 7)
    assert all(ids == whole[:len(ids)] for ids, whole in zip(decoded.ids, plain.ids, strict=True))


def test_the_first_of_equal_logits_wins() -> None:
    logits = torch.zeros(1, 1, 20)
    logits[0, 0, [9, 8, 15]] = 1.0
    decoded = greedy(Table(1, 0, False), logits, [100], 1, never, nothing)
    assert decoded.ids == [[8]] and decoded.logits.shape == (1, 1, 20) and decoded.passes == 1
