"""Checkpoints on disk: the published layout is read whole, and everything else is refused with words that help."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openvla_ros.errors import CheckpointError, ConfigurationError, NotEnoughMemory, UnknownStatistics
from openvla_ros.policy.catalogue import PolicySettings, load_policy
from openvla_ros.policy.openvla.checkpoint import (
    SafetensorsFolder,
    check_fit,
    check_memory,
    find_checkpoint,
    load_weights,
    needed_bytes,
    shape_table,
    weight_files,
)
from openvla_ros.policy.openvla.configuration import read_configuration, unused_shapes
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.memory import cgroup_free_bytes, free_bytes, own_cgroup
from openvla_ros.policy.openvla.model import OpenvlaModel
from openvla_ros.policy.openvla.policy import cache_positions
from openvla_ros.policy.openvla.untrained import write_untrained

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh, whole checkpoint to damage."""
    write_untrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path | str, **settings: Any) -> Any:
    return load_openvla(PolicySettings(str(folder), device="cpu", **settings), progress=False)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def split_into_shards(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    place = {name: f"model-0000{index % 3 + 1}-of-00003.safetensors" for index, name in enumerate(sorted(tensors))}
    for file in sorted(set(place.values())):
        save_file({name: tensors[name] for name in tensors if place[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


@pytest.fixture(scope="module")
def published(shared: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """openvla-7b: config.json and the shape of every tensor."""
    config = json.loads((shared / "data" / "openvla_7b_config_without_norm_stats.json").read_text())
    tensors = json.loads((shared / "data" / "openvla_7b_tensors.json").read_text())["tensors"]
    return config, {name: tuple(tensor["shape"]) for name, tensor in tensors.items()}


@pytest.mark.shared
def test_openvla_7b_has_every_published_tensor_and_no_other(published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config, shapes = published
    assert len(shapes) == 982
    configuration = read_configuration(tmp_path, config, shapes)
    with torch.device("meta"):
        model = OpenvlaModel(configuration.shape)
    needed = shape_table(model)
    must, may = unused_shapes(configuration.shape, needed)
    assert {**needed, **must, **may} == shapes
    assert not needed.keys() & (must.keys() | may.keys())
    # 24 and 27 blocks are stored, 23 and 26 are built; what is left out is the last blocks, two norms and SigLIP's pooling head
    assert [len(tower.blocks) for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer)] == [23, 26]
    assert sum(tensor.numel() for tensor in model.parameters()) == 7_541_237_184 - sum(
        torch.Size(size).numel() for size in (must | may).values())
    check_fit(model, shapes)
    assert (configuration.vocabulary, configuration.bins, configuration.end_id, configuration.prompt_style) == (32000, 256, 2, "openvla")
    decoder = configuration.shape.decoder
    assert (decoder.rms_norm_eps, decoder.head_dim, decoder.rope_theta) == (1e-6, 128, 10000.0)
    assert [tower.heads for tower in configuration.shape.towers] == [16, 16]
    assert [tower.prefix for tower in configuration.shape.towers] == [5, 0]
    assert cache_positions(configuration.shape) == 640


@pytest.mark.shared
def test_openvla_7b_memory_is_what_is_known_of_it(published, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    config, shapes = published
    with torch.device("meta"):
        model = OpenvlaModel(read_configuration(tmp_path, config, shapes).shape)
    parameters = list(model.named_parameters())
    kept, transient = needed_bytes(parameters, torch.bfloat16, "none")
    assert 14.9e9 < kept < 15.09e9 and transient == 32064 * 4096 * 2
    assert sum(needed_bytes(parameters, torch.bfloat16, "nf4")) < 7e9
    assert 8.0e9 < needed_bytes(parameters, torch.bfloat16, "int8")[0] < 9.5e9
    with pytest.raises(NotEnoughMemory, match=r"needs about 15\.\d\d GB on cpu .* but 12\.00 GB are free\. Use quantization nf4"):
        check_memory(model, CPU, torch.bfloat16, "none", 640, free=lambda device: 12_000_000_000)
    check_memory(model, CPU, torch.bfloat16, "nf4", 640, free=lambda device: 12_000_000_000)
    with pytest.raises(NotEnoughMemory, match=r"but 4\.00 GB are free\. Free memory"):
        check_memory(model, CPU, torch.bfloat16, "nf4", 640, free=lambda device: 4_000_000_000)


def test_a_container_limit_counts(tmp_path: Path) -> None:
    inner = tmp_path / "system.slice" / "robot"
    inner.mkdir(parents=True)
    for place, limit, usage, cache in ((inner, "max", "100", 0), (inner.parent, "5000", "3000", 500)):
        (place / "memory.max").write_text(limit + "\n")
        (place / "memory.current").write_text(usage + "\n")
        (place / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    assert cgroup_free_bytes("system.slice/robot", tmp_path) == 2500
    assert cgroup_free_bytes("elsewhere", tmp_path) == 2**62
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text("4000")
    (old / "memory.usage_in_bytes").write_text("3900")
    (old / "memory.stat").write_text("total_inactive_file 7\n")
    assert cgroup_free_bytes("system.slice/robot", tmp_path) == 107
    table = tmp_path / "cgroup"
    table.write_text("12:memory:/old\n0::/user.slice/me\n")
    assert own_cgroup(table) == "user.slice/me" and own_cgroup(tmp_path / "none") == ""
    assert 0 < free_bytes(CPU) < 2**50


def test_shards_with_an_index_equal_one_file(folder: Path) -> None:
    whole = load(folder).model.state_dict()
    split_into_shards(folder)
    assert len(weight_files(folder)) == 3
    policy = load(folder)
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(tensor, whole[name])
        assert tensor.device.type == "cpu" and not tensor.is_meta
    assert "untrained" in policy.notes[0] and policy.name == "model"


def test_weights_are_copied_out_of_the_file_one_by_one(folder: Path) -> None:
    class Counting:
        """The real files, remembering what is read."""

        def __init__(self) -> None:
            self.source, self.read_names = SafetensorsFolder(folder), list[str]()

        def read(self, name: str) -> Tensor:
            self.read_names.append(name)
            return self.source.read(name)

    source, reports = Counting(), list[tuple[int, int]]()
    configuration = read_configuration(folder, json.loads((folder / "config.json").read_text()), source.source.shapes())
    with torch.device("meta"):
        model = OpenvlaModel(configuration.shape)
    names = sorted(model.state_dict())
    load_weights(model, source, CPU, torch.float32, report=lambda done, total: reports.append((done, total)))
    assert sorted(source.read_names) == names and len(set(source.read_names)) == len(source.read_names)
    assert reports == [(index + 1, len(source.read_names)) for index in range(len(source.read_names))]
    assert not any(".blocks.3." in name and "fused" not in name for name in source.read_names), "the last block is not read"
    pixels = torch.randn(1, 6, *2 * [model.shape.towers[0].side])
    with torch.inference_mode():
        before = model.see(pixels)
    with (folder / "model.safetensors").open("r+b") as file:  # somebody replaces the file under us
        file.seek(-100_000, 2)  # the vision towers are the last by name
        file.write(b"\xff" * 100_000)
    with torch.inference_mode():
        assert torch.equal(model.see(pixels), before)


def test_every_tensor_that_does_not_fit_is_named(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["projector.fc2.bias"], tensors["language_model.model.layers.1.mlp.up_proj.weight"]
        tensors["vision_backbone.extra"] = torch.zeros(3, dtype=torch.bfloat16)
        tensors["projector.fc3.weight"] = torch.zeros(7, 128, dtype=torch.bfloat16)

    edit_tensors(folder, change)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    text = str(caught.value)
    assert "missing: language_model.model.layers.1.mlp.up_proj.weight; projector.fc2.bias" in text
    assert "not part of the model: vision_backbone.extra" in text
    assert "wrong shape: projector.fc3.weight [7, 128], expected [128, 128]" in text


@pytest.mark.parametrize(("removed", "words"), [
    ("vision_backbone.featurizer.blocks.3.", "has 3 blocks in the weights, expected 4"),
    ("vision_backbone.featurizer.blocks.1.", r"missing: vision_backbone\.featurizer\.blocks\.1\.attn\.proj\.bias"),
    ("vision_backbone.fused_featurizer.patch_embed", r"lacks patch_embed\.proj\.weight"),
    ("language_model.lm_head", r"missing: language_model\.lm_head\.weight"),
])
def test_missing_parts_are_never_guessed(folder: Path, removed: str, words: str) -> None:
    edit_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(removed)])
    with pytest.raises(CheckpointError, match=words):
        load(folder)


def test_unused_final_norms_may_be_absent(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "featurizer.norm." in name or "attn_pool" in name])
    assert load(folder).statistics.key == "untrained"


@pytest.mark.parametrize(("damage", "words"), [
    (lambda path: path.write_bytes(path.read_bytes()[:100_000]), "truncated or damaged"),
    (lambda path: path.write_bytes(b""), "0 bytes"),
    (lambda path: path.write_bytes(b"\n<!doctype html><html>Sign in</html>"), "web page"),
    (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    (lambda path: path.rename(path.with_name("pytorch_model.bin")), "pickle"),
    (lambda path: path.rename(path.with_name("model.pt")), "pickle"),
    (lambda path: path.unlink(), "neither model.safetensors nor"),
    (lambda path: path.rename(path.with_name("adapter_config.json")), "LoRA adapter"),
    (lambda path: (path.parent / "config.json").unlink(), r"no config\.json"),
    (lambda path: (path.parent / "config.json").write_text("{"), "not readable JSON"),
    (lambda path: (path.parent / "config.json").write_text("[]"), "JSON list"),
    (lambda path: (path.parent / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    (lambda path: (path.parent / "preprocessor_config.json").unlink(), r"no preprocessor_config\.json"),
])
def test_damaged_and_incomplete_folders(folder: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=words):
        load(folder)


def test_shard_problems(folder: Path) -> None:
    split_into_shards(folder)
    index = folder / "model.safetensors.index.json"
    shard = folder / "model-00002-of-00003.safetensors"
    shutil.copy(folder / "model-00001-of-00003.safetensors", shard)
    with pytest.raises(CheckpointError, match="stored twice"):
        load(folder)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"not in the folder: model-00002-of-00003\.safetensors\. Finish the download"):
        load(folder)
    edit_json(index, lambda content: content.update(weight_map={"a": "../model.safetensors"}))
    with pytest.raises(CheckpointError, match=r"not in the folder: \.\./model"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="not a weight index"):
        load(folder)


@pytest.mark.parametrize(("change", "words"), [
    (lambda config: config.update(model_type="llava"), "'llava', expected 'openvla'"),
    (lambda config: config.pop("text_config"), "text_config"),
    (lambda config: config["text_config"].update(model_type="mistral"), r"text_config\.model_type is 'mistral'"),
    (lambda config: config["text_config"].update(hidden_act="gelu"), r"text_config\.hidden_act is 'gelu'"),
    (lambda config: config["text_config"].update(hidden_size="wide"), r"text_config\.hidden_size is 'wide'"),
    (lambda config: config["text_config"].update(num_hidden_layers=0), r"text_config\.num_hidden_layers is 0, expected a whole"),
    (lambda config: config["text_config"].update(num_attention_heads=0), r"text_config\.num_attention_heads is 0"),
    (lambda config: config["text_config"].update(num_attention_heads=True), r"text_config\.num_attention_heads is True"),
    (lambda config: config["text_config"].update(num_attention_heads=10**6), r"hidden_size per attention head is 0"),
    (lambda config: config["text_config"].update(rms_norm_eps="small"), r"text_config\.rms_norm_eps is 'small'"),
    (lambda config: config["text_config"].update(rope_theta=0), r"text_config\.rope_theta is 0"),
    (lambda config: config["timm_model_kwargs"][0].update(num_heads=0), r"num_heads of vision_backbone\.featurizer is 0"),
    (lambda config: config["timm_model_kwargs"][1].update(num_heads=-2), r"num_heads of vision_backbone\.fused_featurizer is -2"),
    (lambda config: config["timm_model_kwargs"][0].update(num_heads=7), r"cannot be cut into num_heads 7"),
    (lambda config: config["timm_model_kwargs"][0].update(num_heads=2.5), r"num_heads of .* is 2\.5"),
    (lambda config: config["timm_model_kwargs"][0].update(num_heads=None), r"num_heads of .* is None"),
    (lambda config: config["timm_model_kwargs"][0].pop("num_heads"), "KeyError: 'num_heads'"),
    (lambda config: config["timm_model_kwargs"][0].update(depth=1), r"depth of .* is 1, expected a whole number of at least 2"),
    (lambda config: config["timm_model_kwargs"][0].update(depth="4"), r"depth of .* is '4'"),
    (lambda config: config.update(timm_model_kwargs=[4, 4]), "TypeError"),
    (lambda config: config.update(image_sizes=[0, 0]), r"image_sizes\[0\] is 0"),
    (lambda config: config.update(pad_to_multiple_of=-64), "pad_to_multiple_of is -64"),
    (lambda config: config.update(n_action_bins="many"), "n_action_bins is 'many'"),
    (lambda config: config["text_config"].update(num_key_value_heads=3), "cannot share"),
    (lambda config: config["text_config"].update(hidden_size=64), "wrong shape"),
    (lambda config: config["text_config"].update(num_hidden_layers=5), r"missing: language_model\.model\.layers\.4"),
    (lambda config: config.update(timm_model_kwargs=None), "has 4 blocks in the weights, expected 24"),
    (lambda config: config.update(timm_model_kwargs=None, timm_model_ids=["vit_giant", "vit_huge"]), "'vit_giant' is unknown"),
    (lambda config: config.update(timm_model_ids=["one"]), "names 1 towers, expected 2"),
    (lambda config: config.update(use_fused_vision_backbone=False), "names 2 towers, expected 1"),
    (lambda config: config.update(timm_override_act_layers=["quick_gelu", None]), "usual GELU"),
    (lambda config: config.update(image_sizes=[128, 130]), "cannot be cut"),
    (lambda config: config.update(image_sizes=[144, 144]), "wrong shape|makes pictures of"),
    (lambda config: config.update(n_action_bins=5000), "n_action_bins is 5000"),
    (lambda config: config.pop("norm_stats"), "no action statistics"),
])
def test_configurations_that_cannot_be_run(folder: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    edit_json(folder / "config.json", change)
    with pytest.raises(CheckpointError, match=words):
        load(folder)


def test_unknown_key_lists_the_known_ones(folder: Path) -> None:
    with pytest.raises(UnknownStatistics, match=r"'bridge_orig'; it has untrained\. Set unnorm_key"):
        load(folder, unnorm_key="bridge_orig")


def test_weights_quantised_on_disk_are_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"projector.fc2.weight": torch.zeros(128, 544, dtype=torch.int8)}))
    with pytest.raises(CheckpointError, match=r"projector\.fc2\.weight in .* has type I8"):
        load(folder)


def test_prompt_style_comes_from_the_base_model_and_can_be_forced(folder: Path) -> None:
    def style(policy: Any) -> str:
        return "v01" if "USER:" in policy.prompt.template else "openvla"

    assert style(load(folder)) == "openvla" and style(load(folder, prompt_style="v01")) == "v01"
    edit_json(folder / "config.json", lambda config: config.update(llm_backbone_id="vicuna-v15-7b"))
    assert style(load(folder)) == "v01" and style(load(folder, prompt_style="openvla")) == "openvla"
    edit_json(folder / "config.json", lambda config: config.update(llm_backbone_id="phi-2"))
    with pytest.raises(ConfigurationError, match="Set prompt_style"):
        load(folder)
    assert style(load(folder, prompt_style="openvla")) == "openvla"


def test_dataset_statistics_file_wins(folder: Path) -> None:
    entry = {"action": {"q01": [0.0] * 10, "q99": [1.0] * 10}}
    (folder / "dataset_statistics.json").write_text(json.dumps({"two_arms": entry}))
    assert load(folder).statistics.key == "two_arms"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_gpu_that_is_not_there(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="sees no GPU"):
        load_openvla(PolicySettings(str(folder), device="cuda"))


def test_hub_names_are_tried_and_the_failure_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no folder 'openvla/openvla-7b'.*hub did not give.*offline: copy"):
        find_checkpoint("openvla/openvla-7b")


def test_a_hub_snapshot_in_the_cache_is_used_without_network(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models--someone--small-vla"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, place / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    policy = load("someone/small-vla")
    assert policy.name == "someone/small-vla" and policy.statistics.key == "untrained"


def test_a_file_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a file, expected .* a folder"):
        load_policy(PolicySettings(str(folder / "model.safetensors")))


def test_not_enough_memory_is_said_before_any_weight_is_read(folder: Path) -> None:
    # Two tables of together 0.6 of this computer's memory, as a sparse file that takes no disk space; float32 needs twice that.
    path, width = folder / "model.safetensors", 128
    rows = int(0.6 * psutil.virtual_memory().total / (2 * width * 2))
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    for name in ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"):
        del header[name]
    kept = sorted((entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    size = 0
    for (start, end), name in kept:  # the format allows no holes
        header[name]["data_offsets"] = [size, size + end - start]
        size += end - start
    for name in ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"):
        header[name] = {"dtype": "BF16", "shape": [rows, width], "data_offsets": [size, size + rows * width * 2]}
        size += rows * width * 2
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    edit_json(folder / "config.json", lambda config: config["text_config"].update(vocab_size=rows))
    with pytest.raises(NotEnoughMemory, match=r"needs about \d+\.\d\d GB on cpu .* but \d+\.\d\d GB are free\. Use quantization"):
        load(folder, dtype="float32")
