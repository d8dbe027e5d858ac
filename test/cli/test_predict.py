"""`openvla-ros predict` and `make-checkpoint` from the outside: stdout, exit codes, errors."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openvla_ros.cli import make_checkpoint, predict
from openvla_ros.cli.app import answer

COMMAND = [sys.executable, "-c", "from openvla_ros.cli.app import main; main()"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "tiny"
    assert answer(["make-checkpoint", "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows, columns = np.mgrid[0:120, 0:160]
    path = tmp_path_factory.mktemp("pictures") / "frame.png"
    Image.fromarray(np.stack([rows * 2, columns, rows + columns], axis=2).clip(0, 255).astype(np.uint8)).save(path)
    return path


def ask(*arguments: object) -> tuple[int, Any, str]:
    """Exit code, the one JSON object of stdout, stderr; in a process of its own."""
    done = subprocess.run([*COMMAND, *map(str, arguments), "--json"], capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout), done.stderr


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that is refused; in this process, which is quicker."""
    assert answer([*map(str, arguments), "--json"]) == 2
    out = capsys.readouterr().out
    content = json.loads(out)
    assert list(content) == ["error"]
    return str(content["error"])


@pytest.mark.shared
def test_a_golden_case_from_the_command_line(shared: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "tiny_siglip_v01"
    case = json.loads((golden / "cases.json").read_text())["cases"][0]
    with np.load(golden / case["file"]) as arrays:
        Image.fromarray(arrays["image"]).save(tmp_path / "frame.png")
        logits = arrays["logits"]
    code, result, errors = ask("predict", "--checkpoint", golden / "checkpoint", "--image", tmp_path / "frame.png", "--instruction",
                               case["instruction"], "--unnorm-key", case["unnorm_key"], "--dtype", "float32",
                               "--logits", tmp_path / "logits.npz")
    assert code == 0 and errors == ""
    assert result["input_ids"] == case["model_input_ids"] and result["generated_ids"] == case["generated_ids"]
    assert result["token_ids"] == case["action_token_ids"] and result["fault"] is None
    np.testing.assert_allclose(result["normalized_action"], case["normalized_action"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result["action"], case["action"], rtol=0, atol=1e-12)
    assert set(result["stage_ms"]) == {"preprocess", "upload", "vision", "prefill", "decode"}
    with np.load(tmp_path / "logits.npz") as arrays:
        assert arrays["logits"].dtype == np.float32
        np.testing.assert_allclose(arrays["logits"], logits, rtol=0, atol=2e-4)


@pytest.mark.shared
def test_a_fault_is_shown_with_its_numbers_and_is_no_error(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = shared / "golden" / "tiny_fused"
    case = next(case for case in json.loads((golden / "cases.json").read_text())["cases"] if case["early_eos"])
    with np.load(golden / case["file"]) as arrays:
        np.save(tmp_path / "frame.npy", arrays["image"])
    arguments = ["predict", "--checkpoint", str(golden / "checkpoint"), "--image", str(tmp_path / "frame.npy"), "--instruction",
                 case["instruction"], "--unnorm-key", case["unnorm_key"]]
    assert answer([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["generated_ids"] == case["generated_ids"] and len(result["token_ids"]) == 7
    assert result["token_ids"] == case["action_token_ids"] and "ended its answer early" in result["fault"]
    np.testing.assert_allclose(result["action"], case["action"], rtol=0, atol=1e-12)
    assert answer(arguments) == 0
    assert "must not move a robot" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("length", [7, 10, 14, 16])
def test_any_action_length_of_the_statistics(tiny: Path, picture: Path, tmp_path: Path, length: int,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    entry = {"action": {"q01": [0.0] * length, "q99": [float(index) for index in range(length)]}}
    (folder / "dataset_statistics.json").write_text(json.dumps({"other": entry}))
    arguments = ["predict", "--checkpoint", str(folder), "--image", str(picture), "--instruction", "go",
                 "--logits", str(tmp_path / "l.npz")]
    assert answer([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert all(len(result[name]) == length for name in ("generated_ids", "token_ids", "normalized_action", "action"))
    assert result["unnorm_key"] == "other" and result["policy"] == "model" and "random numbers" in result["notes"][0]
    with np.load(tmp_path / "l.npz") as arrays:
        assert arrays["logits"].shape == (length, 1088)


def test_a_table_for_people(tiny: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["predict", "--checkpoint", str(tiny), "--image", str(picture), "--instruction", "go"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("droll", "gripper", "token", "prefill", "random numbers"))


def test_settings_reach_the_model(tiny: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = {}
    for name, options in {"plain": (), "bridge": ("--resize", "bridge"), "turned": ("--rotate-180",), "cropped": ("--centre-crop",),
                          "prompt": ("--prompt-style", "v01")}.items():
        assert answer(["predict", "--checkpoint", str(tiny), "--image", str(picture), "--instruction", "go", "--dtype", "float32",
                       *options, "--json"]) == 0
        answers[name] = json.loads(capsys.readouterr().out)
    assert len(answers["prompt"]["input_ids"]) > len(answers["plain"]["input_ids"]) + 10
    assert all(answers[name]["token_ids"] != answers["plain"]["token_ids"] for name in ("turned", "cropped", "prompt"))


def test_pictures_that_cannot_be_used(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.png").write_text("no picture")
    np.save(tmp_path / "float.npy", np.zeros((4, 4, 3), dtype=np.float32))
    np.save(tmp_path / "flat.npy", np.zeros((4, 4), dtype=np.uint8))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "deep.png")
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(stream.getvalue()[:700])
    for name, words in {"none.png": "there is no picture", "text.png": "not a readable picture", "float.npy": "float32 [4, 4, 3]",
                        "flat.npy": "uint8 [4, 4]", "objects.npy": "not a readable picture", "deep.png": "expected 8 bits",
                        "cut.jpg": "not a readable picture", ".": "not a readable picture"}.items():
        assert words in refused(capsys, "predict", "--checkpoint", tiny, "--image", tmp_path / name, "--instruction", "go"), name


@pytest.mark.parametrize(("options", "words"), [
    (("--checkpoint", "scripted"), "no tokens to show"),
    (("--checkpoint", "/no/such/model"), "there is no folder '/no/such/model'"),
    (("--unnorm-key", "bridge_orig"), "it has untrained"),
    (("--dtype", "float8"), "expected one of bfloat16, float32"),
    (("--quantization", "int2"), "expected one of none, int8, nf4"),
    (("--attention", "flash"), "needs a CUDA device"),
    (("--instruction", ""), "instruction is empty"),
    (("--instruction", "go </s>"), "special token </s>"),
    (("--instruction", "go \udcff"), "not valid Unicode"),
    (("--logits", "/no/such/folder/l.npz"), "no folder /no/such/folder"),
    (("--logits", "/"), "expected the name of an .npz file"),
    (("--logits", "/dev/null"), "expected the name of an .npz file"),
    (("--logits", "/proc/l.npz"), "/proc/l.npz cannot be written"),
    (("--threads", "many"), "--threads"),
    (("--no-such-option",), "--no-such-option"),
])
def test_refusals_are_one_json_object_and_exit_code_2(tiny: Path, picture: Path, capsys: pytest.CaptureFixture[str],
                                                      options: tuple[str, ...], words: str) -> None:
    plain = {"--checkpoint": str(tiny), "--image": str(picture), "--instruction": "go"}
    plain = {name: value for name, value in plain.items() if name != options[0]}
    assert words in refused(capsys, "predict", *[word for pair in plain.items() for word in pair], *options)


def test_logits_are_whole_or_as_they_were(tiny: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "l.npz"
    old.write_bytes(b"older")
    arguments = ("predict", "--checkpoint", tiny, "--image", picture, "--instruction", "go", "--logits", old)
    assert "it has untrained" in refused(capsys, *arguments, "--unnorm-key", "mars")
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", fill_the_disk)
        assert "No space left" in refused(capsys, *arguments)
    assert old.read_bytes() == b"older" and list(tmp_path.iterdir()) == [old]
    assert answer([*map(str, arguments), "--json"]) == 0
    with np.load(old) as arrays:
        assert arrays["logits"].shape == (7, 1088)
    assert list(tmp_path.iterdir()) == [old]


def fill_the_disk(file: io.BufferedWriter, **arrays: Any) -> None:
    file.write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_keeps_stdout_to_one_object_in_a_process_of_its_own(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (tmp_path / "config.json").write_text('{"model_type": "openvla"}')
    code, result, _ = ask("predict", "--checkpoint", tmp_path, "--image", picture, "--instruction", "go")
    assert code == 2 and list(result) == ["error"] and "Opening a pickle runs whatever code" in result["error"]


def test_help_needs_no_torch() -> None:
    code = ("import sys; from openvla_ros.cli.app import answer; answer(['predict', '--help']); answer(['make-checkpoint', '--help']); "
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
    assert predict.main.__doc__ and make_checkpoint.main.__doc__


def test_make_checkpoint_reports_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "deep" / "tiny"
    assert answer(["make-checkpoint", "--output", str(folder), "--seed", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["untrained"] is True and result["unnorm_key"] == "untrained" and result["seed"] == 3
    assert 1e6 < result["parameters"] < 5e6
    assert "exists already" in refused(capsys, "make-checkpoint", "--output", folder)
    assert "expected one of tiny" in refused(capsys, "make-checkpoint", "--output", tmp_path / "x", "--size", "7b")
    assert answer(["make-checkpoint", "--output", str(folder), "--force"]) == 0
    assert "untrained checkpoint" in capsys.readouterr().out
