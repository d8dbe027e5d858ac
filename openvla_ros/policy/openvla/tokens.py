"""Text and actions as token ids: instruction -> prompt ids, action numbers <-> action ids.

The one definition of prompt and bins, for serving and training alike. Contract: the released OpenVLA code
(`prismatic/vla/action_tokenizer.py`, `modeling_prismatic.py`). No torch here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from openvla_ros.contract import FloatArray
from openvla_ros.errors import CheckpointError, InstructionError

PROMPTS: Mapping[str, str] = {
    "openvla": "In: What action should the robot take to {instruction}?\nOut:",
    "v01": "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
           "polite answers to the user's questions. USER: What action should the robot take to {instruction}? ASSISTANT:",
}
"""Prompt style -> exact text. One space more is a silent bug."""

EMPTY_TOKEN = "\u2581"
"""The lone space mark of Llama's tokenizer (id 29871 there): training text has it between the colon and the first action."""

LLAMA_VOCABULARY, LLAMA_EMPTY_ID = 32000, 29871


class PromptEncoder:
    """Turns an instruction into the ids the model was trained to see: BOS, prompt, and the lone space mark at the end."""

    def __init__(self, tokenizer: Tokenizer, style: str) -> None:
        """style: a key of PROMPTS. Raises CheckpointError if the tokenizer is not of Llama's kind."""
        self.tokenizer, self.template = tokenizer, PROMPTS[style]
        self.special_tokens = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        empty_id, beginning = tokenizer.token_to_id(EMPTY_TOKEN), tokenizer.encode("").ids
        if empty_id is None or len(beginning) != 1 or beginning[0] not in self.special_tokens.values():
            raise CheckpointError("tokenizer.json is not a Llama tokenizer: it must have the token U+2581 and put one BOS token in "
                                  f"front, but it encodes the empty text as {beginning}. Take it from the model's own folder.")
        vocabulary = tokenizer.get_vocab_size(with_added_tokens=False)
        if vocabulary == LLAMA_VOCABULARY and empty_id != LLAMA_EMPTY_ID:
            raise CheckpointError(f"tokenizer.json has Llama's {LLAMA_VOCABULARY} tokens but gives U+2581 the id {empty_id}, expected "
                                  f"{LLAMA_EMPTY_ID}. The file was changed: take it from the model's own folder.")
        self.empty_id: int = empty_id

    def prompt(self, instruction: str) -> str:
        """The text the model reads. The instruction is lower-cased and not stripped, as in the released code."""
        return self.template.format_map({"instruction": instruction.lower()})

    def encode(self, instruction: str) -> list[int]:
        """Prompt ids, BOS first, `empty_id` last. Raises InstructionError for text that would become a special token."""
        text = instruction.lower()
        spelled = [token for token in self.special_tokens if token in text or token in instruction]
        # The tokenizer turns these into control ids wherever they stand; the released code lets that happen.
        if spelled:
            raise InstructionError(f"instruction {instruction!r} spells the special token {spelled[0]}. Use plain words.")
        try:
            ids: list[int] = self.tokenizer.encode(self.prompt(instruction)).ids
        except (TypeError, UnicodeError) as error:  # half a surrogate pair, as a badly encoded command line gives
            raise InstructionError(f"instruction {instruction!r} is not valid Unicode text. Type it again.") from error
        if not set(ids[1:]).isdisjoint(self.special_tokens.values()):
            raise InstructionError(f"instruction {instruction!r} holds text that the tokenizer cannot spell. Use plain words.")
        if ids[-1] != self.empty_id:
            ids.append(self.empty_id)
        return ids


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder. Raises CheckpointError if the file is missing or damaged."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json. It is part of the published layout: copy it from the model's page "
                              "(for a fine-tuned model: from the model it was made from).")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise CheckpointError(f"{path} is not a tokenizer file: {error}. Download it again.") from error


@dataclass(frozen=True)
class ActionTokens:
    """The ids at the end of the vocabulary that mean numbers: id `vocabulary - 1` is -1, `vocabulary - bins` is +1.

    vocabulary: number of text tokens, 32000 for the released models (not the padded 32064). bins: 256 edges, so 255 centres.
    """

    vocabulary: int
    bins: int = 256
    edges: FloatArray = field(init=False, repr=False, compare=False)
    centres: FloatArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        edges = np.linspace(-1.0, 1.0, self.bins)
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "centres", (edges[:-1] + edges[1:]) / 2.0)

    @property
    def first_id(self) -> int:
        """Smallest action id, 31744 for the released models."""
        return self.vocabulary - self.bins

    def holds(self, token_id: int) -> bool:
        """Whether the id is an action at all."""
        return self.first_id <= token_id < self.vocabulary

    def bins_of(self, token_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        """[N] ids -> [N] indices into `centres`. Foreign ids are clipped, as the released code does: ask `holds` first."""
        return np.clip(self.vocabulary - np.asarray(token_ids, dtype=np.int64) - 1, 0, len(self.centres) - 1)

    def decode(self, token_ids: Sequence[int]) -> FloatArray:
        """[N] ids -> [N] bin centres in -0.996 .. +0.996."""
        return self.centres[self.bins_of(token_ids)]

    def encode(self, normalized: FloatArray) -> npt.NDArray[np.int64]:
        """Numbers in [-1, 1] (clipped to it) -> ids of the same shape; at most 1/255 off after decoding. For training."""
        return self.vocabulary - np.digitize(np.clip(normalized, -1.0, 1.0), self.edges).astype(np.int64)
