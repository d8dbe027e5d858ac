"""The image path against TensorFlow's and torchvision's results, which the released scripts used."""

from __future__ import annotations

import json

import numpy as np
import pytest

from openvla_ros.contract import Observation
from openvla_ros.errors import CheckpointError
from openvla_ros.policy.openvla.preprocess import (
    ImagePath,
    Processor,
    TowerInput,
    crop_centre,
    crop_centre_float,
    jpeg_round_trip,
    lanczos_float,
    lanczos_resize,
    parse_processor,
    read_processor,
)

GREY = TowerInput(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
EVALUATION_IMAGES = ("bridge_256x256", "bridge_real_480x640", "google_coke_256x320", "small_96x128", "stack_cube_480x640")


@pytest.fixture(params=EVALUATION_IMAGES)
def evaluation(request, golden):  # type: ignore[no-untyped-def]
    with np.load(golden / "eval_preproc" / f"{request.param}.npz") as arrays:
        return dict(arrays)


@pytest.mark.shared
def test_lanczos_resize_equals_tensorflow(evaluation) -> None:  # type: ignore[no-untyped-def]
    np.testing.assert_allclose(lanczos_float(evaluation["image"], 224), evaluation["lanczos_float_no_jpeg"], rtol=0, atol=5e-4)
    # behind the same JPEG round trip the result is the official one, but for values that lie on a rounding edge
    difference = np.abs(lanczos_resize(evaluation["jpeg_roundtrip"], 224).astype(int) - evaluation["resized"])
    assert difference.max() <= 1 and np.count_nonzero(difference) <= 50


@pytest.mark.shared
def test_bridge_path_is_within_what_the_other_jpeg_decoder_explains(evaluation) -> None:  # type: ignore[no-untyped-def]
    frame = ImagePath("bridge").apply(Observation(evaluation["image"], "go", 0), 224)
    difference = np.abs(frame.astype(int) - evaluation["resized"])
    assert difference.max() <= 16 and difference.mean() <= 1.5
    assert np.abs(jpeg_round_trip(evaluation["image"]).astype(int) - evaluation["jpeg_roundtrip"]).mean() <= 1.5


@pytest.mark.shared
def test_a_frame_out_of_a_jpeg_is_not_compressed_again(evaluation) -> None:  # type: ignore[no-untyped-def]
    frame = ImagePath("bridge").apply(Observation(evaluation["jpeg_roundtrip"], "go", 0, jpeg=True), 224)
    assert np.abs(frame.astype(int) - evaluation["resized"]).max() <= 1


@pytest.mark.shared
def test_centre_crop_equals_tensorflow(evaluation) -> None:  # type: ignore[no-untyped-def]
    for source, result in (("resized", "center_crop_of_resized"), ("image", "center_crop_direct")):
        difference = np.abs(crop_centre(evaluation[source], 224).astype(int) - evaluation[result])
        assert difference.max() <= 1 and np.count_nonzero(difference) <= 2  # none on the machine this was written on
    np.testing.assert_allclose(crop_centre_float(evaluation["resized"], 224), evaluation["center_crop_of_resized_float"], rtol=0, atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
def test_resize_strategies_equal_the_released_processor(golden, strategy: str) -> None:  # type: ignore[no-untyped-def]
    processor, compared = Processor(strategy, (GREY,)), 0
    with np.load(golden / "units" / "resize_strategies.npz") as arrays:
        for name in arrays.files:
            picture, _, kind = name.partition("/")
            if kind == strategy or (kind == "letterbox_fused_second" and strategy == "letterbox"):
                pixels = processor.to_pixels(arrays[f"{picture}/image"])
                np.testing.assert_array_equal(np.rint((pixels * 0.5 + 0.5) * 255).astype(np.uint8), arrays[name].transpose(2, 0, 1))
                compared += 1
    assert compared >= 3


def test_order_is_turn_then_resize_then_crop() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    frame = ImagePath("bridge", rotate_180=True, centre_crop=True).apply(Observation(rgb, "go", 0, jpeg=True), 224)
    np.testing.assert_array_equal(frame, crop_centre(lanczos_resize(np.ascontiguousarray(rgb[::-1, ::-1]), 224), 224))
    turned = ImagePath(rotate_180=True).apply(Observation(rgb, "go", 0), 224)
    np.testing.assert_array_equal(turned, np.rot90(rgb, 2))
    assert ImagePath().apply(Observation(rgb, "go", 0), 224).shape == rgb.shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (7, 224), (224, 224), (3000, 20)])
@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
def test_any_picture_size_gives_the_tower_its_size(strategy: str, shape: tuple[int, int]) -> None:
    rgb = np.full((*shape, 3), 200, dtype=np.uint8)
    pixels = Processor(strategy, (TowerInput(64, (0.5,) * 3, (0.5,) * 3),)).to_pixels(rgb)
    assert pixels.shape == (3, 64, 64) and np.isfinite(pixels).all()
    for path in (ImagePath("bridge"), ImagePath(centre_crop=True), ImagePath("bridge", True, True)):
        assert path.apply(Observation(rgb, "go", 0), 64).shape == (64, 64, 3)


def test_stored_normalisation_wins_over_the_exact_means(shared) -> None:  # type: ignore[no-untyped-def]
    content = json.loads((shared / "data" / "openvla_7b_preprocessor_config.json").read_text())
    processor = parse_processor(content)
    assert processor.strategy == "resize-naive" and [tower.side for tower in processor.towers] == [224, 224]
    assert processor.towers[0].mean == (0.484375, 0.455078125, 0.40625)
    assert processor.towers[0].std == (0.228515625, 0.2236328125, 0.224609375)


@pytest.mark.parametrize(("content", "words"), [
    (None, r"no preprocessor_config\.json"),
    ("<html>", "JSONDecodeError"),
    ("[]", "not an OpenVLA image processor"),
    ('{"image_resize_strategy": "stretch", "input_sizes": []}', "'stretch', expected one of resize-naive"),
    ('{"image_resize_strategy": "letterbox", "input_sizes": [[4, 8, 8]], "means": [[0,0,0]], "stds": [[1,1,1]]}', "3 colours"),
    ('{"image_resize_strategy": "letterbox", "input_sizes": [[3, 8, 8]], "means": [[0,0,0]], "stds": [[0,1,1]]}', "std above 0"),
    ('{"image_resize_strategy": "letterbox", "input_sizes": [[3, 8, 8]]}', "means"),
])
def test_processor_files_that_cannot_be_used(tmp_path, content: str | None, words: str) -> None:  # type: ignore[no-untyped-def]
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        read_processor(tmp_path)
