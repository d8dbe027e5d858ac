"""Many instructions in one pass give what inference gives one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openvla_ros.policy.openvla.language import DecoderShape, KeyValueCache
from openvla_ros.policy.openvla.layout import END_ID, PADDING, count_tokens, make_action_tokens, make_prompt_encoder
from openvla_ros.policy.openvla.model import ModelShape, OpenvlaModel
from openvla_ros.policy.openvla.passes import Passes
from openvla_ros.policy.openvla.vision import TowerShape
from openvla_ros.training.examples import Example, make_example
from openvla_ros.training.packing import Pack, pack_examples, read_pack

WORDS = ("move", "to", "pick", "up", "the", "red", "block", "put", "on", "plate")
INSTRUCTIONS = (("move to the red block", "put the red block on the plate", "zebra"), ("pick up the block", "red", "move the plate up"))


@pytest.fixture(scope="module")
def model() -> OpenvlaModel:
    torch.manual_seed(0)
    network = OpenvlaModel(ModelShape(
        towers=(TowerShape(width=16, depth=3, heads=2, mlp=32, side=32, patch=8, prefix=5, layer_scale=True),
                TowerShape(width=16, depth=2, heads=2, mlp=32, side=32, patch=8, prefix=0, layer_scale=False)),
        decoder=DecoderShape(vocab_size=count_tokens(WORDS) + PADDING, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
                             num_attention_heads=3, num_key_value_heads=3, head_dim=8, max_position_embeddings=128)))
    for parameter in network.parameters():  # positions and registers begin as zeros
        torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.fixture(scope="module")
def examples(model: OpenvlaModel) -> list[list[Example]]:
    random = np.random.default_rng(0)
    prompt, tokens = make_prompt_encoder(WORDS, model.shape), make_action_tokens(model.shape)
    return [[make_example(prompt, tokens, END_ID, text, random.uniform(-1, 1, 7)) for text in row] for row in INSTRUCTIONS]


def one_by_one(model: OpenvlaModel, pixels: torch.Tensor, example: Example) -> torch.Tensor:
    """[7, vocab] logits by the inference path, fed with the example's own actions."""
    prompt, answer = example.input_ids[:example.prompt_length], example.input_ids[example.prompt_length:]
    cache = KeyValueCache(model.shape.decoder, 128, torch.device("cpu"), torch.float32)
    patches = model.see(pixels[None])
    passes = Passes(model, torch.zeros(6, 256), cache)
    logits = [passes.prefill(patches, [prompt])]
    for place, token in enumerate(answer[:6]):
        logits.append(passes.more(torch.tensor([[token]]), [patches.shape[1] + len(prompt) + place]))
    return torch.cat(logits, dim=1)[0]


@torch.no_grad()
def test_logits_equal_prefill_and_decode(model: OpenvlaModel, examples: list[list[Example]]) -> None:
    pixels = torch.randn(2, 6, 32, 32, generator=torch.Generator().manual_seed(1))
    packed = read_pack(model, pixels, pack_examples(examples, 7)).logits
    single = torch.stack([torch.stack([one_by_one(model, pixels[row], example) for example in examples[row]]) for row in range(2)])
    assert single.std() > 0.1
    assert torch.allclose(packed, single, atol=2e-5, rtol=1e-4)


def test_gradients_reach_every_weight(model: OpenvlaModel, examples: list[list[Example]]) -> None:
    model.zero_grad()
    pack = pack_examples(examples, 7)
    logits = read_pack(model, torch.randn(2, 6, 32, 32), pack).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 2), pack.answers.flatten()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_a_pack_puts_every_example_back_together(examples: list[list[Example]]) -> None:
    pack = pack_examples(examples, 7)
    for row, column in np.ndindex(2, 3):
        example = examples[row][column]
        ids = torch.cat([pack.prefix_ids, pack.suffix_ids[row, column]])[:len(example.input_ids) - 2]
        assert tuple(ids.tolist()) == example.input_ids[:-2]
        assert pack.answers[row, column].tolist() == list(example.input_ids[-8:-1])
        readers = (pack.readers[row, column] + len(pack.prefix_ids)).tolist()
        assert readers == list(range(example.prompt_length - 1, example.prompt_length + 6))


def test_what_all_prompts_begin_with_is_read_once(examples: list[list[Example]]) -> None:
    assert len(pack_examples(examples, 7).prefix_ids) == len(["<s>", "In:", "What", "action", "should", "the", "robot", "take", "to"])


def test_equal_instructions_keep_a_place_to_read_from(examples: list[list[Example]]) -> None:
    pack: Pack = pack_examples([[examples[0][0]], [examples[0][0]]], 7)
    assert pack.readers.min() == 0
    assert len(pack.prefix_ids) == examples[0][0].prompt_length - 1


def test_the_end_of_sequence_can_be_learned_too(model: OpenvlaModel, examples: list[list[Example]]) -> None:
    pack = pack_examples(examples, 8)
    assert (pack.answers[..., 7] == END_ID).all()
    assert read_pack(model, torch.randn(2, 6, 32, 32), pack).logits.shape == (2, 3, 8, model.shape.decoder.vocab_size)
