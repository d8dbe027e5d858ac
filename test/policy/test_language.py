"""The decoder against transformers' LlamaForCausalLM: the slow, obvious oracle, with the same random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openvla_ros.policy.openvla.attention import attend_sdpa, choose_attention
from openvla_ros.policy.openvla.language import DecoderShape, KeyValueCache, LanguageModel

CPU = torch.device("cpu")


def random_shape(random: np.random.Generator) -> DecoderShape:
    heads = int(random.choice([1, 2, 4, 6]))
    shared_by = int(random.choice([divisor for divisor in (1, 2, 3) if heads % divisor == 0]))
    head_dim = int(random.choice([4, 16, 34]))
    return DecoderShape(vocab_size=int(random.integers(20, 300)), hidden_size=heads * head_dim,
                        intermediate_size=int(random.integers(8, 200)), num_hidden_layers=int(random.integers(1, 5)),
                        num_attention_heads=heads, num_key_value_heads=heads // shared_by,
                        head_dim=head_dim, rms_norm_eps=float(random.choice([1e-6, 1e-5])), rope_theta=float(random.choice([1e4, 5e5])),
                        max_position_embeddings=256)


def pair(shape: DecoderShape):  # type: ignore[no-untyped-def]
    """Our decoder and the oracle with equal random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=shape.vocab_size, hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
                         num_hidden_layers=shape.num_hidden_layers, num_attention_heads=shape.num_attention_heads,
                         num_key_value_heads=shape.num_key_value_heads, head_dim=shape.head_dim, rms_norm_eps=shape.rms_norm_eps,
                         rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta}, attn_implementation="eager")
    oracle = LlamaForCausalLM(config).eval()
    for parameter in oracle.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = LanguageModel(shape, attend_sdpa).eval()
    ours.load_state_dict(oracle.state_dict())
    return ours, oracle


@pytest.mark.parametrize("seed", range(12))
@torch.inference_mode()
def test_prefill_and_decode_agree_with_transformers(seed: int) -> None:
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    shape = random_shape(random)
    ours, oracle = pair(shape)
    length, steps = int(random.integers(1, 60)), int(random.integers(1, 9))
    ids = torch.randint(0, shape.vocab_size, (1, length + steps))
    cache = KeyValueCache(shape, length + steps, CPU, torch.float32)
    full = oracle(input_ids=ids).logits[0]
    memory = oracle(input_ids=ids[:, :length], use_cache=True)
    logits = ours(ours.embed(ids[:, :length]), cache, cache.consecutive(0, length))[0]
    torch.testing.assert_close(logits, memory.logits[0], rtol=1e-4, atol=2e-4)
    for position in range(length, length + steps):
        memory = oracle(input_ids=ids[:, position:position + 1], past_key_values=memory.past_key_values, use_cache=True)
        logits = ours(ours.embed(ids[:, position:position + 1]), cache, cache.consecutive(position, 1))[0, -1]
        torch.testing.assert_close(logits, memory.logits[0, -1], rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(logits, full[position], rtol=1e-4, atol=2e-4)


@torch.inference_mode()
def test_any_cut_into_blocks_and_a_used_cache_change_nothing() -> None:
    torch.manual_seed(1)
    shape = DecoderShape(97, 64, 96, 3, 4, 2, 16)
    model = LanguageModel(shape, attend_sdpa).eval()
    tokens = torch.randn(2, 30, 64)
    cache = KeyValueCache(shape, 40, CPU, torch.float32, batch=2)
    whole = model(tokens, cache, cache.consecutive(0, 30))
    for cuts in ([30], [1] * 30, [7, 1, 12, 10]):
        start, logits = 0, []
        for count in cuts:  # the cache still holds what the run before left there
            logits.append(model(tokens[:, start:start + count], cache, cache.consecutive(start, count)))
            start += count
        torch.testing.assert_close(torch.cat(logits, dim=1), whole, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_rows_at_positions_of_their_own_and_chosen_tokens_equal_the_plain_pass() -> None:
    torch.manual_seed(2)
    shape = DecoderShape(97, 64, 96, 3, 4, 2, 16)
    model = LanguageModel(shape, attend_sdpa).eval()
    tokens = torch.randn(3, 30, 64)
    cache = KeyValueCache(shape, 40, CPU, torch.float32, batch=3)
    whole = model(tokens, cache, cache.consecutive(0, 30))
    wanted = torch.tensor([[29, 3], [0, 17], [5, 5]])
    chosen = model(tokens, cache, cache.consecutive(0, 30), wanted)
    torch.testing.assert_close(chosen, whole.gather(1, wanted[:, :, None].expand(-1, -1, 97)), rtol=1e-4, atol=1e-4)
    begins, count = [12, 7, 20], 4  # each row goes on from another place; what stands behind is from the pass before, and not seen
    positions = torch.tensor(begins)[:, None] + torch.arange(count)
    next_tokens = torch.stack([row[begin:begin + count] for row, begin in zip(tokens, begins, strict=True)])
    for end in (max(begins) + count, 40):
        places = cache.scattered(positions, end) if end == 40 else cache.staggered(begins, count)
        logits = model(next_tokens, cache, places)
        for row, begin in enumerate(begins):
            torch.testing.assert_close(logits[row], whole[row, begin:begin + count], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_joined_projections_give_what_separate_ones_gave() -> None:
    torch.manual_seed(3)
    shape = DecoderShape(97, 64, 96, 3, 4, 2, 16)
    model, tokens = LanguageModel(shape, attend_sdpa).eval(), torch.randn(2, 9, 64)
    cache = KeyValueCache(shape, 40, CPU, torch.float32, batch=2)
    before = model(tokens, cache, cache.consecutive(0, 9))
    stored = sum(parameter.numel() for parameter in model.parameters())
    for layer in model.model.layers:
        layer.self_attn.fuse()
        layer.mlp.fuse()
    assert sum(parameter.numel() for parameter in model.parameters()) == stored
    torch.testing.assert_close(model(tokens, cache, cache.consecutive(0, 9)), before, rtol=1e-5, atol=1e-5)


def test_cache_is_allocated_once_and_counted_right() -> None:
    shape = DecoderShape(97, 64, 96, 3, 4, 2, 16)
    cache = KeyValueCache(shape, 40, CPU, torch.bfloat16)
    places = [tensor.data_ptr() for tensor in cache.keys + cache.values]
    assert sum(tensor.nbytes for tensor in cache.keys + cache.values) == KeyValueCache.count_bytes(shape, 40, torch.bfloat16)
    with torch.inference_mode():
        model = LanguageModel(shape, attend_sdpa).to(torch.bfloat16)
        model(torch.randn(1, 5, 64, dtype=torch.bfloat16), cache, cache.consecutive(0, 5))
    assert places == [tensor.data_ptr() for tensor in cache.keys + cache.values]


def test_flash_attention_says_clearly_why_it_cannot_be_used() -> None:
    from openvla_ros.errors import ConfigurationError, DependencyMissing

    with pytest.raises(ConfigurationError, match="needs a CUDA device"):
        choose_attention("flash", CPU, torch.bfloat16)
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(DependencyMissing, match="pip install flash-attn"):
            choose_attention("flash", torch.device("cuda"), torch.bfloat16)
