"""Prompt and action tokens against the released tokenizer code, and what must never happen to an instruction."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel

from openvla_ros.errors import CheckpointError, InstructionError
from openvla_ros.policy.openvla.tokens import LLAMA_EMPTY_ID, PROMPTS, ActionTokens, PromptEncoder, read_tokenizer

TOKENS = ActionTokens(32000)


@pytest.fixture(scope="module")
def units(golden):  # type: ignore[no-untyped-def]
    return json.loads((golden / "units" / "text_and_actions.json").read_text())


@pytest.fixture(scope="module")
def encoders(golden):  # type: ignore[no-untyped-def]
    tokenizer = read_tokenizer(golden / "tiny_fused" / "checkpoint")
    return {style: PromptEncoder(tokenizer, style) for style in PROMPTS}


@pytest.mark.shared
@pytest.mark.parametrize("style", sorted(PROMPTS))
def test_prompts_and_ids_of_the_released_tokenizer(units, encoders, style: str) -> None:  # type: ignore[no-untyped-def]
    encoder, compared = encoders[style], 0
    for line in units["tokenization"]:
        assert encoder.prompt(line["instruction"]) == line[style]["prompt"]
        if any(token in line["instruction"].lower() for token in ("<s>", "</s>", "<unk>", "<pad>")):
            continue  # refused, see below
        ids = line[style]["ids"]
        assert encoder.encode(line["instruction"]) == ids + [LLAMA_EMPTY_ID] * (ids[-1] != LLAMA_EMPTY_ID)
        compared += 1
    assert compared >= 12


@pytest.mark.shared
@pytest.mark.parametrize("style", sorted(PROMPTS))
@pytest.mark.parametrize("text", ["go <s>", "</s>", "pick <unk> up", "put <PAD>", "<S> now", "</S>"])
def test_special_tokens_never_come_from_an_instruction(encoders, style: str, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InstructionError, match="special token"):
        encoders[style].encode(text)


@pytest.mark.shared
@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_gives_ordinary_ids_or_is_refused(encoders, text: str) -> None:  # type: ignore[no-untyped-def]
    try:
        ids = encoders["openvla"].encode(text)
    except InstructionError:
        return
    assert ids[0] == 1 and ids[-1] == LLAMA_EMPTY_ID
    assert all(3 <= token_id < 32000 for token_id in ids[1:])


@pytest.mark.shared
def test_actions_encode_as_in_training(units) -> None:  # type: ignore[no-untyped-def]
    golden = units["action_encode"]
    ids = TOKENS.encode(np.array(golden["actions"]))
    assert ids.ravel().tolist() == np.ravel(golden["token_ids"]).tolist()
    np.testing.assert_allclose(TOKENS.decode(ids.ravel()), np.ravel(golden["decoded"]), rtol=0, atol=1e-12)


@pytest.mark.shared
def test_ids_decode_as_released_foreign_ones_too(units) -> None:  # type: ignore[no-untyped-def]
    golden = units["token_decode"]
    np.testing.assert_allclose(TOKENS.decode(golden["token_ids"]), golden["normalized"], rtol=0, atol=1e-12)
    inside = [token_id for token_id in golden["token_ids"] if TOKENS.holds(token_id)]
    assert min(inside) == 31744 and max(inside) == 31999


@pytest.mark.shared
@pytest.mark.parametrize("style", sorted(PROMPTS))
def test_a_training_example_is_prompt_then_action_ids_then_end(units, encoders, style: str) -> None:  # type: ignore[no-untyped-def]
    for example in units["train_examples"]:
        ids = encoders[style].encode(example["instruction"]) + TOKENS.encode(np.array(example["action"])).tolist() + [2]
        assert ids == example[style]["input_ids"]
        assert [label for label in example[style]["labels"] if label != -100] == ids[-8:]


@settings(max_examples=200, deadline=None)
@given(values=arrays(np.float64, 7, elements=st.floats(-1, 1)))
def test_encode_then_decode_is_within_half_a_bin(values: np.ndarray) -> None:
    ids = TOKENS.encode(values)
    assert all(TOKENS.holds(token_id) for token_id in ids)
    assert np.abs(TOKENS.decode(ids) - values).max() <= 1 / 255 + 1e-12
    decoded_again = TOKENS.encode(TOKENS.decode(ids))
    assert all(again == token_id or (token_id == TOKENS.first_id and again == token_id + 1)
               for again, token_id in zip(decoded_again, ids, strict=True))


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a Llama tokenizer"):
        PromptEncoder(Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")), "openvla")
    with pytest.raises(CheckpointError, match="not a Llama tokenizer"):
        PromptEncoder(Tokenizer(BPE({"\u2581": 0}, [])), "openvla")


def test_missing_and_damaged_tokenizer_files(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("<html>login</html>")
    with pytest.raises(CheckpointError, match="not a tokenizer file"):
        read_tokenizer(tmp_path)
