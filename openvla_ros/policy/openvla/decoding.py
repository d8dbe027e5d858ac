"""From the logits of the first pass to the greedy ids of every row: one token per pass, or a draft that is confirmed exactly.

A draft is a guess at the whole answer, here the action before. All its tokens are read in one pass behind the prompt, which then says
of each what the model would have answered there. What agrees from the beginning on is what plain greedy decoding finds; from the first
disagreement on the pass's own choices are the next draft. Every pass settles at least one more token, so there are never more passes
than without a draft, and a wrong draft costs no pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Extend(Protocol):
    """What decoding asks of the network."""

    fixed_width: bool
    """Whether a pass over a draft always reads all of it, because its shapes were recorded beforehand."""

    def more(self, tokens: Tensor, starts: Sequence[int]) -> Tensor:
        """Read [B, T] ids of which row b's first stands at position starts[b]; logits [B, T, vocab] behind each, until the next call."""


@dataclass(frozen=True)
class Decoded:
    """ids: per row, as many as were settled. logits: [B, steps, vocab] float32 they came from; behind a row's ids they mean nothing.

    passes: of the decoder, the first one included. confirmed: per row, how many tokens of the draft were right from the beginning on.
    """

    ids: list[list[int]]
    logits: Tensor
    passes: int
    confirmed: list[int]


def greedy(network: Extend, logits: Tensor, starts: Sequence[int], count: int, stopped: Callable[[], bool],
           ended: Callable[[], None]) -> Decoded:
    """Greedy ids, `count` per row (first maximal index on ties). The device is waited for once, at the end.

    logits: [B, 1, vocab] of the prompt's last token; starts: where each row's first generated token will stand. `stopped` is asked
    before each pass; when it says yes, the ids so far come back. `ended` is called behind each pass.
    """
    kept = [logits[:, -1]]
    tokens = [kept[-1].argmax(dim=-1)]
    while len(tokens) < count and not stopped():
        kept.append(network.more(tokens[-1][:, None], [start + len(tokens) - 1 for start in starts])[:, -1])
        tokens.append(kept[-1].argmax(dim=-1))
        ended()
    return Decoded(torch.stack(tokens, dim=1).tolist(), torch.stack(kept, dim=1), len(tokens), [0] * len(starts))


def confirm(network: Extend, logits: Tensor, drafts: Sequence[Sequence[int]], starts: Sequence[int], count: int,
            stopped: Callable[[], bool], ended: Callable[[], None]) -> Decoded:
    """The same ids by way of drafts. logits: [B, count, vocab] behind the prompt's last token and behind each drafted one.

    drafts: count - 1 ids per row; the last token of an answer is never read, so it is not drafted. The device is waited for behind each
    pass: which tokens are right decides what is read next.
    """
    kept = torch.empty_like(logits)
    answers, settled = [list(draft) for draft in drafts], [0] * len(drafts)
    begin, passes = -1, 0  # the token whose successor the first logits give; -1 is the prompt's last
    while True:
        picks, passes = logits.argmax(dim=-1).tolist(), passes + 1
        for row, answer in enumerate(answers):
            before = settled[row]
            settled[row] = settle(answer, before, picks[row][before - begin - 1:], count)
            kept[row, before:settled[row]] = logits[row, before - begin - 1:settled[row] - begin - 1]
        if passes == 1:
            confirmed = [found - 1 for found in settled]
        else:
            ended()
        if min(settled) == count or stopped():
            break
        begin = 0 if network.fixed_width else min(settled) - 1  # rows that are further read some tokens again
        tokens = torch.tensor([answer[begin:count - 1] for answer in answers], device=logits.device)
        logits = network.more(tokens, [start + begin for start in starts])
    return Decoded([answer[:length] for answer, length in zip(answers, settled, strict=True)], kept, passes, confirmed)


def settle(answer: list[int], settled: int, picks: Sequence[int], count: int) -> int:
    """Put what the model chose from place `settled` on into `answer`; returns how many tokens are now those of plain greedy decoding.

    A choice holds as long as everything before it was read as it is now; behind the first one that differs from what was read, choices
    are only the next guess.
    """
    holds = True
    for place, pick in zip(range(settled, count), picks, strict=True):
        agrees = place < len(answer) and answer[place] == pick
        if place < len(answer):
            answer[place] = pick
        else:
            answer.append(pick)
        if holds:
            settled = place + 1
            holds = agrees
    return settled
