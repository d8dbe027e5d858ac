"""Whether two ways of computing say the same: by the margin rule, and how far the actions are apart where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.contract import FloatArray
from openvla_ros.policy.openvla.tokens import ActionTokens


@dataclass(frozen=True)
class Agreement:
    """Counts over actions.

    equal: actions with the very same ids. flips: actions that differ first at an id whose margin is not above the bound: rounding decides
    there, and what follows is another sentence. wrong: actions that differ first at an id with a larger margin: none, for an exact mode.
    tokens_equal of tokens: place by place, behind a difference too. error: mean over all actions of the mean distance of the seven numbers,
    in the normalised range of -1 to 1.
    """

    actions: int = 0
    equal: int = 0
    flips: int = 0
    wrong: int = 0
    tokens: int = 0
    tokens_equal: int = 0
    error: float = 0.0

    def plus(self, other: Agreement) -> Agreement:
        """Both together."""
        actions = self.actions + other.actions
        error = (self.error * self.actions + other.error * other.actions) / max(1, actions)
        return Agreement(actions, self.equal + other.equal, self.flips + other.flips, self.wrong + other.wrong, self.tokens + other.tokens,
                         self.tokens_equal + other.tokens_equal, error)


def compare(expected: Sequence[int], margins: FloatArray, ids: Sequence[int], bound: float, tokens: ActionTokens) -> Agreement:
    """One action. margins: of each expected id, its logit minus the best other one."""
    length = max(len(expected), len(ids))
    first = next((place for place in range(length) if list(expected[place:place + 1]) != list(ids[place:place + 1])), None)
    same = sum(one == other for one, other in zip(expected, ids, strict=False))
    shared = min(len(expected), len(ids))
    error = float(np.mean(np.abs(tokens.decode(expected[:shared]) - tokens.decode(ids[:shared])))) if shared else 0.0
    flip = first is not None and first < len(margins) and margins[first] <= bound
    return Agreement(1, int(first is None), int(flip), int(first is not None and not flip), length, same, error)
