"""How far the previous action foretells the next one: what an exact draft of its tokens is worth, before anything is built.

Comes in: sequences of action ids, one per episode; goes out: how often each number keeps its bin or stays near it, and how many
decoder passes an action then takes. Nothing here changes an action: a draft only counts where the model's own ids confirm it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from openvla_ros.contract import FloatArray

IdArray = npt.NDArray[np.int64]

NEAR_BINS = (1, 2, 4, 8)
"""How near is near: rates are given for each of these distances."""

TREES = ((1, 16), (2, 32), (4, 64), (8, 128))
"""(bins to each side per level, nodes) of the draft trees that are counted."""

Offsets = tuple[int, ...]
"""A path into a draft tree: for each level the distance of the drafted id from the previous action's."""


@dataclass(frozen=True)
class Acceptance:
    """What the pairs of consecutive actions of one source show. D: numbers per action.

    pairs: consecutive actions of the same episode. equal: [D] share of pairs with the very same id. near: distance in bins -> [D]
    share of pairs within it. prefix: [D] share of pairs whose first 0, 1 .. D-1 ids are equal and the next is not; in the last place
    those whose first D-1 are equal: the last id is never drafted, it comes out of the pass that confirms the others.
    passes: way of drafting -> mean decoder passes per action, the prefill among them. Ways: `plain` D; `prefix` the draft is read
    once, with the prefill, and plain decoding goes on behind the confirmed ids; `redraft` every later pass reads the rest of the
    previous action again; `tree K/N` as redraft, with up to N neighbours within K bins per pass; `engine` what ours took, whose later
    passes read its own choices instead.
    """

    source: str
    episodes: int
    pairs: int
    equal: FloatArray
    near: Mapping[int, FloatArray]
    prefix: FloatArray
    passes: Mapping[str, float]

    def to_mapping(self) -> dict[str, object]:
        """For JSON."""
        return {"source": self.source, "episodes": self.episodes, "pairs": self.pairs, "equal": self.equal.tolist(),
                "near": {str(bins): rates.tolist() for bins, rates in self.near.items()}, "prefix": self.prefix.tolist(),
                "passes": dict(self.passes)}


def acceptance(source: str, episodes: Iterable[IdArray], trees: Sequence[tuple[int, int]] = TREES,
               measured: Sequence[int] = ()) -> Acceptance | None:
    """Count over the pairs of consecutive actions of each episode, [steps, D] ids each. None where there is no pair.

    measured: passes that an engine with drafts took for these actions, where it was asked.
    A tree's shape is chosen from the offsets of the episodes that it is not counted on (odd and even ones in turn), else it would
    be fitted to its own test.
    """
    moved = [np.diff(ids, axis=0) for ids in episodes if len(ids) > 1]
    if not moved:
        return None
    offsets = np.concatenate(moved)
    steps = offsets.shape[1]
    confirmed = np.cumprod(offsets[:, :-1] == 0, axis=1).sum(axis=1)
    passes = {"plain": float(steps), "prefix": float(np.mean(steps - confirmed)), "redraft": mean_passes(offsets, 0, 1)}
    for width, nodes in trees:
        halves = [np.concatenate(half) for half in (moved[::2], moved[1::2]) if half]
        counted = [mean_passes(half, width, nodes, learned_from=halves[len(halves) - 1 - index]) for index, half in enumerate(halves)]
        passes[f"tree {width}/{nodes}"] = float(np.average(counted, weights=[len(half) for half in halves]))
    if measured:
        passes["engine"] = float(np.mean(measured))
    return Acceptance(source, len(moved), len(offsets), np.mean(offsets == 0, axis=0),
                      {bins: np.mean(np.abs(offsets) <= bins, axis=0) for bins in NEAR_BINS},
                      np.bincount(confirmed, minlength=steps) / len(offsets), passes)


def mean_passes(offsets: IdArray, width: int, nodes: int, learned_from: IdArray | None = None) -> float:
    """Mean decoder passes per action for offsets [pairs, D], when each pass reads the best tree of so many nodes.

    width 0 is the plain draft: the previous action's ids, all that are left, whatever `nodes` says.
    """
    last = offsets.shape[1] - 1
    rates = level_rates(offsets if learned_from is None else learned_from, width)

    @cache
    def tree(level: int) -> frozenset[Offsets]:
        return best_tree(rates[level:last], last - level if width == 0 else nodes)

    return float(np.mean([count_passes(tuple(map(int, row)), tree) for row in offsets]))


def count_passes(offsets: Offsets, tree: Callable[[int], frozenset[Offsets]]) -> int:
    """Passes for one action. tree: level -> the paths that a pass beginning at that level reads."""
    level, passes = 0, 0
    while level < len(offsets):
        start, paths = level, tree(level)
        while level < len(offsets) - 1 and offsets[start:level + 1] in paths:
            level += 1
        level, passes = level + 1, passes + 1  # the id behind the confirmed ones is the pass's own
    return passes


def level_rates(offsets: IdArray, width: int) -> list[dict[int, float]]:
    """For each number of an action: offset within `width` bins -> how often it was seen."""
    return [{offset: float(np.mean(column == offset)) for offset in range(-width, width + 1)} for column in offsets.T]


def best_tree(rates: Sequence[Mapping[int, float]], nodes: int) -> frozenset[Offsets]:
    """The `nodes` likeliest paths if the numbers of an action moved independently; with a path all its beginnings are in it.

    rates: per level, offset -> probability.
    """
    chosen: list[Offsets] = []
    open_paths: list[tuple[float, Offsets]] = [(-1.0, ())]
    while open_paths and len(chosen) <= nodes:
        likelihood, path = heapq.heappop(open_paths)
        chosen.append(path)
        if len(path) < len(rates):
            for offset, rate in rates[len(path)].items():
                if rate > 0.0 or offset == 0:  # the previous action itself is always worth a node
                    heapq.heappush(open_paths, (likelihood * rate, (*path, offset)))
    return frozenset(chosen[1:])  # the first is the empty path, which is no node
