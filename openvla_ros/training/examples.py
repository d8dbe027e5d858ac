"""One training example as the released code makes it: prompt, action tokens, end of sequence, and which of them are to be learned.

The prompt, the bins and the normalisation are the functions that inference uses (`policy.openvla.tokens`, `policy.statistics`).
"""

from __future__ import annotations

from dataclasses import dataclass

from openvla_ros.contract import FloatArray
from openvla_ros.policy.openvla.tokens import ActionTokens, PromptEncoder

IGNORED = -100
"""Label of a position that is read but not learned: torch's cross-entropy leaves it out by default."""


@dataclass(frozen=True)
class Example:
    """input_ids: BOS, prompt, action ids, end of sequence; the picture stands behind the first. labels: the same ids where they
    are to be learned (actions and end), IGNORED elsewhere. Labels are not shifted: position i is predicted at position i - 1.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def prompt_length(self) -> int:
        """Positions before the first action token."""
        return next(index for index, label in enumerate(self.labels) if label != IGNORED)


def make_example(prompt: PromptEncoder, tokens: ActionTokens, end_id: int, instruction: str, normalized: FloatArray) -> Example:
    """normalized: [D] in [-1, 1], see `ActionStatistics.to_normalized`. Raises InstructionError for text that cannot be a prompt."""
    prompt_ids = prompt.encode(instruction)
    answer = [*map(int, tokens.encode(normalized)), end_id]
    return Example((*prompt_ids, *answer), (*(IGNORED for _ in prompt_ids), *answer))
