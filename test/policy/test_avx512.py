"""Our own kernels against float64: the same numbers to the last digit of bfloat16, for every shape; nothing behind a cache is looked at."""

from __future__ import annotations

import json
import math
import shutil
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from openvla_ros.contract import Observation
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla import avx512
from openvla_ros.policy.openvla.attention import attend_sdpa, filling
from openvla_ros.policy.openvla.language import DecoderShape, KeyValueCache, LanguageModel
from openvla_ros.policy.openvla.linear import BlockedLinear, PackedLinear, can_pack, fastest_linear
from openvla_ros.policy.openvla.loading import load_openvla

DECODE = avx512.decode
HALF_STEP = torch.finfo(torch.bfloat16).eps / 2

needs_kernels = pytest.mark.skipif(avx512.most_rows() == 0, reason=f"our kernels are {avx512.describe()}")


@pytest.fixture
def all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU without AMX, where the kernels take any number of rows."""
    monkeypatch.setattr(avx512, "most_rows", lambda: sys.maxsize)


def draw(*size: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))).to(torch.bfloat16)


def attend_obviously(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    scores = query.double() @ key.double().transpose(-1, -2) / math.sqrt(query.shape[-1])
    if causal:
        queries, keys = query.shape[2], key.shape[2]
        scores = scores.masked_fill(~torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries), -math.inf)
    return scores.softmax(dim=-1) @ value.double()


def test_they_are_there_where_they_can_be() -> None:
    """A set-up that failed to compile them would otherwise only be slow."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text() if cpu.is_file() else ""
    headers = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    if "avx512_bf16" not in flags or not shutil.which("g++") or not headers:
        pytest.skip("no AVX-512 BF16, no compiler, or no headers of Python")
    assert avx512.most_rows() == (avx512.FEW_ROWS if "amx_bf16" in flags else sys.maxsize), avx512.describe()


def test_a_weight_in_blocks_is_the_weight_in_another_order() -> None:
    weight = torch.arange(-384, 384).view(128, 6).to(torch.bfloat16)
    blocks = avx512.block_weight(weight, avx512.Room())
    assert blocks.shape == (2, 3, 64, 2) and blocks.is_contiguous()
    assert all(blocks[output // 64, feature // 2, output % 64, feature % 2] == weight[output, feature]
               for output in (0, 1, 63, 64, 127) for feature in range(6))


def test_weights_lie_side_by_side_in_large_pages() -> None:
    room = avx512.Room(slab_bytes=1000)
    first, second = room.take(100), room.take(300)
    assert first.data_ptr() % avx512.HUGE_PAGE == 0 and second.data_ptr() - first.data_ptr() == 256 and len(second) == 300
    assert room.take(200).data_ptr() % avx512.HUGE_PAGE == 0, "the next slab"
    assert len(room.take(5000)) == 5000, "larger than a slab"


@needs_kernels
@pytest.mark.parametrize("rows", [*range(1, 16), 50])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 64), (96, 192), (1537 * 2, 128)])
@torch.inference_mode()
def test_products_are_right(rows: int, inputs: int, outputs: int) -> None:
    weight, tokens, bias = draw(outputs, inputs), draw(rows, inputs, seed=1), draw(outputs, seed=2)
    blocks = avx512.block_weight(weight, avx512.Room())
    for added in (None, bias):
        result = avx512.multiply(tokens, blocks.data_ptr(), outputs, added)
        exact = tokens.double() @ weight.double().T + (0.0 if added is None else added.double())
        # Half a step of rounding at the end, and what float32 loses in summing.
        allowed = HALF_STEP * exact.abs() * 1.01 + inputs**0.5 * 1e-5
        assert result.shape == exact.shape and ((result.double() - exact).abs() <= allowed).all()


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@torch.inference_mode()
def test_threads_change_nothing(threads: int) -> None:
    weight, tokens, query, keys = draw(192, 64), draw(29, 64, seed=1), draw(1, 3, 40, 32, seed=2), draw(1, 3, 50, 32, seed=3)
    layer, before = nn.Linear(64, 192, bias=False, dtype=torch.bfloat16), torch.get_num_threads()
    layer.weight.copy_(weight)
    blocked = BlockedLinear(layer, avx512.Room())
    product, mixed = blocked(tokens), avx512.attend(query, keys, keys, True)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(blocked(tokens), product) and torch.equal(avx512.attend(query, keys, keys, True), mixed)
    finally:
        torch.set_num_threads(before)


@needs_kernels
@torch.inference_mode()
def test_views_nan_and_infinity_go_through_a_layer_row_by_row() -> None:
    layer = BlockedLinear(nn.Linear(64, 128, dtype=torch.bfloat16), avx512.Room())
    tokens = draw(2, 20, 64)
    sound = layer(tokens)
    assert sound.shape == (2, 20, 128) and torch.equal(layer(tokens.transpose(0, 1))[7, 1], sound[1, 7])
    tokens[0, 3, 5], tokens[1, 4, 6] = math.nan, math.inf
    result = layer(tokens)
    assert torch.isnan(result[0, 3]).all() and not torch.isfinite(result[1, 4]).any()
    kept = torch.ones(2, 20, dtype=torch.bool)
    kept[0, 3] = kept[1, 4] = False
    assert torch.equal(result[kept], sound[kept])


@needs_kernels
@torch.inference_mode()
def test_tokens_of_another_type_or_width_are_refused() -> None:
    layer = BlockedLinear(nn.Linear(64, 128, dtype=torch.bfloat16), avx512.Room())
    with pytest.raises(TypeError, match=r"weights are bfloat16 on a CPU, and the tokens .* torch.float32"):
        layer(torch.zeros(1, 64))
    with pytest.raises(ValueError, match="32 features, and this layer takes 64"):
        layer(torch.zeros(4, 32, dtype=torch.bfloat16))


@needs_kernels
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [16, 64, 72, 128, 200])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 17), (7, 7), (7, 287), (8, 64), (33, 65), (120, 120)])
@torch.inference_mode()
def test_attention_is_right(causal: bool, width: int, queries: int, keys: int, all_rows: None) -> None:
    query = draw(2, queries, 3, width, seed=1).transpose(1, 2)
    cache_keys, cache_values = draw(2, 3, keys + 9, width, seed=2), draw(2, 3, keys + 9, width, seed=3)
    cache_keys[:, :, keys:] = cache_values[:, :, keys:] = math.nan  # nobody looks behind the end
    key, value = cache_keys[:, :, :keys], cache_values[:, :, :keys]
    for scale in (1.0, 30.0):  # 30: nearly all weight on one key
        assert avx512.can_attend(scale * query, key, value)
        result = attend_sdpa(scale * query, key, value, causal)
        exact = attend_obviously(scale * query, key, value, causal)
        assert result.shape == exact.shape and result.dtype == torch.bfloat16
        # The weights are rounded to bfloat16, too, so half a step of the values once more, as in torch.
        torch.testing.assert_close(result.double(), exact, rtol=2.5 * HALF_STEP, atol=2.5 * HALF_STEP * float(value.abs().max()))


@needs_kernels
@torch.inference_mode()
def test_nan_is_seen_by_those_who_look_at_it_only() -> None:
    query, key, value = draw(1, 2, 40, 64), draw(1, 2, 40, 64, seed=1), draw(1, 2, 40, 64, seed=2)
    sound = avx512.attend(query, key, value, True)
    query[0, 1, 20, 3] = math.nan
    key[0, 0, 39, 5] = math.nan
    result = avx512.attend(query, key, value, True)
    assert torch.isnan(result[0, 1, 20]).all() and torch.isnan(result[0, 0, 39]).all()
    kept = torch.ones(2, 40, dtype=torch.bool)
    kept[1, 20] = kept[0, 39] = False
    assert torch.equal(result[0][kept], sound[0][kept])


@needs_kernels
def test_what_needs_a_gradient_goes_to_torch() -> None:
    query = draw(1, 1, 4, 16).requires_grad_()
    assert not avx512.can_attend(query, query, query)
    attend_sdpa(query, query, query, False).sum().backward()
    assert query.grad is not None


# --- the decoder in one call


def small_decoder(key_heads: int, layers: int = 3) -> LanguageModel:
    shape = DecoderShape(vocab_size=64, hidden_size=192, intermediate_size=320, num_hidden_layers=layers, num_attention_heads=6,
                         num_key_value_heads=key_heads, head_dim=32, max_position_embeddings=64)
    model = LanguageModel(shape, attend_sdpa).to(torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(1.0 + 0.1 * noise if "norm" in name else noise * parameter.shape[-1]**-0.5)
    return model


def put_in_blocks(model: LanguageModel) -> None:
    room = avx512.Room()
    for layer in model.model.layers:
        layer.self_attn.fuse()
        layer.mlp.fuse()
        layer.self_attn.qkv_proj = BlockedLinear(layer.self_attn.qkv_proj, room)
        layer.self_attn.o_proj = BlockedLinear(layer.self_attn.o_proj, room)
        layer.mlp.gate_up_proj = BlockedLinear(layer.mlp.gate_up_proj, room)
        layer.mlp.down_proj = BlockedLinear(layer.mlp.down_proj, room)


@needs_kernels
@pytest.mark.parametrize("key_heads", [6, 3, 2])
@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_a_decoder_in_one_call_is_the_decoder_step_by_step(key_heads: int, batch: int, all_rows: None,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    model, exact = small_decoder(key_heads), small_decoder(key_heads).float()
    put_in_blocks(model)
    shape, cpu = model.shape, torch.device("cpu")
    caches = [KeyValueCache(shape, 40, cpu, dtype, batch) for dtype in (torch.bfloat16, torch.bfloat16, torch.float32)]
    start, calls = 0, list[int]()
    for seed, count in enumerate((17, 1, 7, 8, 1)):  # a prompt, tokens, drafts: each behind what the cache holds
        tokens = draw(batch, count, shape.hidden_size, seed=seed)
        calls.clear()
        monkeypatch.setattr(avx512, "decode", lambda *given: calls.append(given[-2]) or DECODE(*given))
        at_once = model(tokens, caches[0], caches[0].consecutive(start, count))
        assert calls == [(start,)]
        with monkeypatch.context() as patch:
            patch.setattr(avx512, "can_decode", lambda *given: False)
            by_steps = model(tokens, caches[1], caches[1].consecutive(start, count))
        reference = exact(tokens.float(), caches[2], caches[2].consecutive(start, count))
        allowed = 3.0 * float((by_steps - reference).norm())  # both round to bfloat16 between the products, each in its own places
        assert at_once.shape == reference.shape and float((at_once - reference).norm()) <= allowed
        assert float((at_once - reference).norm()) < 0.03 * float(reference.norm())
        start += count
    wanted = torch.tensor([[2, 7]] * batch)  # in the last layer of a prompt only these are looked at
    tokens = draw(batch, 9, shape.hidden_size, seed=9)
    some = model(tokens, caches[0], caches[0].consecutive(0, 9), wanted)
    reference = exact(tokens.float(), caches[2], caches[2].consecutive(0, 9), wanted)
    assert some.shape == reference.shape and float((some - reference).norm()) < 0.03 * float(reference.norm())
    for ours, theirs in zip((*caches[0].keys, *caches[0].values), (*caches[2].keys, *caches[2].values), strict=True):
        torch.testing.assert_close(ours.float(), theirs, rtol=0.05, atol=0.08)
        assert (ours[:, :, start:] == 0).all(), "nothing is written behind the tokens"


@needs_kernels
@pytest.mark.parametrize("key_heads", [6, 2])
@pytest.mark.parametrize("count", [1, 3, 9])
@torch.inference_mode()
def test_a_decoder_in_one_call_takes_rows_at_places_of_their_own(key_heads: int, count: int, all_rows: None,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    model, exact = small_decoder(key_heads), small_decoder(key_heads).float()
    put_in_blocks(model)
    caches = [KeyValueCache(model.shape, 40, torch.device("cpu"), dtype, 3) for dtype in (torch.bfloat16, torch.float32)]
    prompt = draw(3, 31, model.shape.hidden_size)
    model(prompt, caches[0], caches[0].consecutive(0, 31))  # what stands behind a row's own beginning is not seen
    exact(prompt.float(), caches[1], caches[1].consecutive(0, 31))
    starts, tokens, calls = (17, 5, 31), draw(3, count, model.shape.hidden_size, seed=1), list[object]()
    for row, start in enumerate(starts):
        caches[0].memory[:, :, row, :, start:] = math.nan
    monkeypatch.setattr(avx512, "decode", lambda *given: calls.append(given[-2]) or DECODE(*given))
    result = model(tokens, caches[0], caches[0].staggered(starts, count))
    assert calls == [starts]
    reference = exact(tokens.float(), caches[1], caches[1].staggered(starts, count))
    for row in range(3):
        assert float((result[row] - reference[row]).norm()) < 0.03 * float(reference[row].norm())
    for ours, theirs in zip((*caches[0].keys, *caches[0].values), (*caches[1].keys, *caches[1].values), strict=True):
        for row, start in enumerate(starts):
            torch.testing.assert_close(ours[row, :, :start + count].float(), theirs[row, :, :start + count], rtol=0.05, atol=0.08)


@needs_kernels
@torch.inference_mode()
def test_nan_in_a_decoder_is_not_lost(all_rows: None) -> None:
    model = small_decoder(6)
    put_in_blocks(model)
    cache = KeyValueCache(model.shape, 40, torch.device("cpu"), torch.bfloat16)
    tokens = draw(1, 12, model.shape.hidden_size)
    assert torch.isfinite(model(tokens, cache, cache.consecutive(0, 12))).all()
    tokens[0, 9, 4] = math.nan
    assert torch.isnan(model(tokens, cache, cache.consecutive(0, 12))[0, 9:]).all()


@needs_kernels
def test_a_decoder_with_a_gradient_or_of_another_kind_goes_step_by_step() -> None:
    model = small_decoder(6)
    assert model.in_blocks() is None, "not laid out"
    put_in_blocks(model)
    assert model.in_blocks() is not None
    cache = KeyValueCache(model.shape, 40, torch.device("cpu"), torch.bfloat16, batch=2)
    places, memory = cache.consecutive(37, 3), cache.memory

    def can(tokens: Tensor, cosine: Tensor = places.cosine, memory: Tensor = memory, rows: int = 2,
            starts: tuple[int, ...] = (37,)) -> bool:
        return avx512.can_decode(tokens, cosine, places.sine, memory, rows, starts)

    tokens = draw(2, 3, 192)
    assert not can(tokens), "gradients are on"
    with torch.inference_mode():
        assert can(tokens)
        assert not can(tokens.float()) and not can(tokens, memory=memory.float()) and not can(tokens, places.cosine.float())
        assert not can(tokens, rows=1), "a row that is another's"
        assert not can(tokens, starts=(38,)) and not can(tokens, places.cosine[:2]), "behind the end of the cache"
        assert not can(tokens, starts=(-1,)) and not can(tokens, starts=(1, 2)), "before its beginning; without tables for each row"
        own = cache.staggered((5, 37), 3)
        assert avx512.can_decode(tokens, own.cosine, own.sine, memory, 2, own.starts)
        assert not avx512.can_decode(tokens, own.cosine, own.sine, memory, 2, (5, 38))
        assert not avx512.can_decode(tokens, own.cosine, own.sine, memory, 2, (5, 6, 7))
        with pytest.raises(RuntimeError):  # torch says it
            model(draw(2, 5, 192), cache, cache.consecutive(37, 5))
        with pytest.raises(ValueError, match="128 features, and this decoder takes 192"):
            model(draw(2, 3, 128), cache, places)


@needs_kernels
@torch.inference_mode()
def test_a_decoder_of_one_layer(all_rows: None) -> None:
    model = small_decoder(6, layers=1)
    exact = small_decoder(6, layers=1).float()
    put_in_blocks(model)
    tokens, wanted = draw(1, 9, 192), torch.tensor([[3, 8]])
    caches = [KeyValueCache(model.shape, 40, torch.device("cpu"), dtype) for dtype in (torch.bfloat16, torch.float32)]
    for chosen in (wanted, None):
        result = model(tokens, caches[0], caches[0].consecutive(0, 9), chosen)
        reference = exact(tokens.float(), caches[1], caches[1].consecutive(0, 9), chosen)
        assert float((result - reference).norm()) < 0.03 * float(reference.norm())


@needs_kernels
@torch.inference_mode()
def test_no_rows_are_no_work() -> None:
    layer = BlockedLinear(nn.Linear(64, 128, dtype=torch.bfloat16), avx512.Room())
    assert layer(torch.zeros(0, 64, dtype=torch.bfloat16)).shape == (0, 128)


def test_what_another_version_compiled_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avx512, "import_module", lambda name: SimpleNamespace(has_avx512_bf16=1, has_amx=0))
    avx512.find_kernels.cache_clear()
    try:
        assert "another version" in str(avx512.find_kernels())
    finally:
        avx512.find_kernels.cache_clear()


# --- the three kinds of computer


@pytest.mark.parametrize("most_rows", [0, avx512.FEW_ROWS, sys.maxsize], ids=["without kernels", "few rows, as with AMX", "all rows"])
@pytest.mark.shared
@pytest.mark.parametrize("name", ["tiny_fused", "tiny_siglip_v01"])
def test_golden_ids_on_every_kind_of_computer(golden: Path, name: str, most_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if most_rows > avx512.most_rows():
        pytest.skip(f"our kernels are {avx512.describe()}")
    monkeypatch.setattr(avx512, "most_rows", lambda: most_rows)
    policy = load_openvla(PolicySettings(str(golden / name / "checkpoint"), "bridge_orig", device="cpu", dtype="bfloat16"), progress=False)
    kinds = {type(module) for module in policy.model.modules()}
    assert (BlockedLinear in kinds) == (most_rows > avx512.FEW_ROWS)
    for case in json.loads((golden / name / "cases.json").read_text())["cases"]:
        with np.load(golden / name / case["file"]) as arrays:
            result = policy.predict(Observation(arrays["image"], case["instruction"], 0), keep_logits=True)
            assert list(result.generated_ids) == case["generated_ids"]
            np.testing.assert_allclose(result.logits[0], arrays["logits"][0], rtol=0, atol=0.5)


@torch.inference_mode()
def test_layers_are_chosen_by_what_the_computer_can(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, odd = nn.Linear(96, 128, dtype=torch.bfloat16), nn.Linear(96, 100, dtype=torch.bfloat16)
    monkeypatch.setattr(avx512, "most_rows", lambda: 0)
    assert type(fastest_linear(layer, avx512.Room())) is (PackedLinear if can_pack(torch.bfloat16) else nn.Linear)
    assert filling(281, draw(1)) == 7
    monkeypatch.setattr(avx512, "most_rows", lambda: sys.maxsize)
    assert type(fastest_linear(layer, avx512.Room())) is BlockedLinear and type(fastest_linear(odd, avx512.Room())) is not BlockedLinear
    assert type(fastest_linear(nn.Linear(96, 128), avx512.Room())) is not BlockedLinear
    assert filling(281, draw(1)) == 0


@needs_kernels
@torch.inference_mode()
def test_few_rows_are_multiplied_by_onednns_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_pack(torch.bfloat16):
        pytest.skip("this torch has no packed products")
    monkeypatch.setattr(avx512, "most_rows", lambda: avx512.FEW_ROWS)
    packed = fastest_linear(nn.Linear(1536, 4608, dtype=torch.bfloat16), avx512.Room())
    assert isinstance(packed, PackedLinear)
    if not packed.blocks:
        pytest.skip("oneDNN packs in another way on this CPU")
    by_onednn = list[Tensor]()
    monkeypatch.setattr(PackedLinear, "multiply", lambda self, tokens: by_onednn.append(tokens) or packed_product(self, tokens))
    for rows in (1, avx512.FEW_ROWS, avx512.FEW_ROWS + 1):
        tokens = draw(1, rows, 1536)
        torch.testing.assert_close(packed(tokens), packed_product(packed, tokens), rtol=2 * HALF_STEP, atol=0.01)
    assert [tokens.shape[1] for tokens in by_onednn] == [avx512.FEW_ROWS + 1]


def packed_product(layer: PackedLinear, tokens: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(tokens, layer.packed, layer.bias, "none", [], "")
