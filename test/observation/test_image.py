"""Pixels are right in every encoding, and nothing is guessed when a header and its bytes disagree."""

from __future__ import annotations

import array
import io
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openvla_ros.errors import ImageError
from openvla_ros.observation.image import BAYER_CODES, CHANNELS, MAX_SIDE_PX, decode_compressed, decode_raw, is_jpeg

PICTURE = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)

# What a ROS pattern name says: colours of pixel (0,0), (0,1), (1,0), (1,1).
MOSAICS = {"bayer_rggb8": "rggb", "bayer_bggr8": "bggr", "bayer_gbrg8": "gbrg", "bayer_grbg8": "grbg"}


def in_encoding(rgb: np.ndarray, encoding: str) -> np.ndarray:
    """The oracle: the same picture as a camera of that encoding would send it, [H, W, channels]."""
    alpha = np.full((*rgb.shape[:2], 1), 7, np.uint8)
    return {"rgb8": rgb, "bgr8": rgb[:, :, ::-1], "rgba8": np.dstack([rgb, alpha]),
            "bgra8": np.dstack([rgb[:, :, ::-1], alpha])}[encoding]


def with_padding(pixels: np.ndarray, padding: int) -> bytes:
    rows = pixels.reshape(pixels.shape[0], -1)
    return np.hstack([rows, np.full((rows.shape[0], padding), 0xEE, np.uint8)]).tobytes()


def encoded(kind: str, picture: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("padding", [0, 1, 40])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_colour_encodings_give_the_same_picture(encoding: str, padding: int) -> None:
    pixels = in_encoding(PICTURE, encoding)
    step = 8 * CHANNELS[encoding] + padding
    rgb = decode_raw(with_padding(pixels, padding), 6, 8, encoding, step)
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    np.testing.assert_array_equal(rgb, PICTURE)


def test_mono_becomes_three_equal_channels() -> None:
    rgb = decode_raw(with_padding(PICTURE[:, :, :1], 5), 6, 8, "mono8", 13)
    np.testing.assert_array_equal(rgb, np.repeat(PICTURE[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("encoding", sorted(BAYER_CODES))
@pytest.mark.parametrize("colour", [(200, 100, 50), (10, 20, 250)])
def test_bayer_of_one_colour_gives_that_colour_everywhere(encoding: str, colour: tuple[int, int, int]) -> None:
    """A mosaic of a plain surface is exact to demosaic, so a swapped pattern cannot hide."""
    values = dict(zip("rgb", colour, strict=True))
    tile = np.array([values[letter] for letter in MOSAICS[encoding]], np.uint8).reshape(2, 2)
    mosaic = np.tile(tile, (5, 7))
    rgb = decode_raw(with_padding(mosaic[:, :, None], 3), 10, 14, encoding, 17)
    np.testing.assert_array_equal(rgb, np.broadcast_to(np.array(colour, np.uint8), (10, 14, 3)))


def test_bayer_keeps_the_place_of_an_edge() -> None:
    """Red left, blue right: the demosaic may blur one pixel at the edge and nothing further away."""
    rgb = np.zeros((8, 16, 3), np.uint8)
    rgb[:, :8, 0], rgb[:, 8:, 2] = 255, 255
    rows, columns = np.indices((8, 16))
    channel = np.array([[0, 1], [1, 2]])[rows % 2, columns % 2]  # rggb
    mosaic = np.take_along_axis(rgb, channel[:, :, None], axis=2)
    found = decode_raw(mosaic.tobytes(), 8, 16, "bayer_rggb8", 16)
    np.testing.assert_array_equal(found[:, :6], rgb[:, :6])
    np.testing.assert_array_equal(found[:, 10:], rgb[:, 10:])


def test_a_picture_never_changes_with_a_buffer_that_is_filled_again() -> None:
    buffer = array.array("B", PICTURE.tobytes())
    for encoding in ("rgb8", "bgr8"):
        rgb = decode_raw(buffer, 6, 8, encoding, 24)
        before = rgb.copy()
        for index in range(len(buffer)):
            buffer[index] ^= 0xFF
        np.testing.assert_array_equal(rgb, before)


def test_read_only_rgb_is_not_copied() -> None:
    data = PICTURE.tobytes()
    rgb = decode_raw(data, 6, 8, "rgb8", 24)
    assert np.shares_memory(rgb, np.frombuffer(data, np.uint8)) and not rgb.flags.writeable


def test_the_padding_of_the_last_row_may_be_missing() -> None:
    data = with_padding(PICTURE, 10)[:-10]
    np.testing.assert_array_equal(decode_raw(data, 6, 8, "rgb8", 34), PICTURE)


@pytest.mark.parametrize("encoding", ["mono16", "16UC1", "32FC1", "rgb16", "8UC3", "yuv422_yuy2", "bayer_rggb16", "", "RGB8"])
def test_other_encodings_are_refused_by_name(encoding: str) -> None:
    with pytest.raises(ImageError, match="taken are rgb8") as caught:
        decode_raw(b"\0" * 1000, 2, 2, encoding, 100)
    assert repr(encoding) in str(caught.value)


@pytest.mark.parametrize(("height", "width", "step", "length", "word"), [
    (0, 8, 24, 0, "holds no pixel"), (6, 0, 24, 144, "holds no pixel"), (6, 8, 23, 144, "row step is 23"),
    (6, 8, 0, 144, "row step is 0"), (6, 8, 24, 143, "143 bytes"), (6, 8, 24, 145, "145 bytes"), (6, 8, 24, 0, "0 bytes"),
    (2**31, 2**31, 2**40, 144, f"at most {MAX_SIDE_PX}"), (1, MAX_SIDE_PX + 1, 3 * MAX_SIDE_PX + 3, 144, "at most"),
])
def test_impossible_headers_are_refused(height: int, width: int, step: int, length: int, word: str) -> None:
    with pytest.raises(ImageError, match=word):
        decode_raw(b"\1" * length, height, width, "rgb8", step)


def test_a_list_is_refused() -> None:
    with pytest.raises(ImageError, match="data is list"):
        decode_raw([1, 2, 3], 1, 1, "rgb8", 3)


def test_tiny_bayer_is_refused() -> None:
    with pytest.raises(ImageError, match="too small"):
        decode_raw(b"\0" * 4, 2, 2, "bayer_rggb8", 2)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=400), height=st.integers(0, 12), width=st.integers(0, 12), step=st.integers(0, 60),
       encoding=st.sampled_from([*sorted(CHANNELS), "16UC1"]))
def test_any_header_gives_its_shape_or_an_image_error(data: bytes, height: int, width: int, step: int, encoding: str) -> None:
    try:
        rgb = decode_raw(data, height, width, encoding, step)
    except ImageError:
        return
    assert rgb.shape == (height, width, 3) and rgb.dtype == np.uint8


@pytest.mark.parametrize("image_format", ["jpeg", "jpg", "JPEG", "", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8",
                                          "bgra8;jpeg compressed bgr8", "bayer_rggb8; jpeg compressed bgr8"])
def test_jpeg_agrees_with_opencv(image_format: str) -> None:
    smooth = cv2.resize(PICTURE, (64, 48), interpolation=cv2.INTER_CUBIC)
    file = encoded("JPEG", smooth, quality=95)
    rgb = decode_compressed(array.array("B", file), image_format)
    np.testing.assert_array_equal(rgb, cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1])
    assert is_jpeg(file)


@pytest.mark.parametrize("image_format", ["png", "rgb8; png compressed bgr8", "bgr8; png compressed bgr8"])
def test_png_is_lossless_and_alpha_is_dropped(image_format: str) -> None:
    np.testing.assert_array_equal(decode_compressed(encoded("PNG", PICTURE), image_format), PICTURE)
    with_alpha = np.dstack([PICTURE, np.zeros((6, 8), np.uint8)])
    np.testing.assert_array_equal(decode_compressed(encoded("PNG", with_alpha), image_format), PICTURE)
    assert not is_jpeg(encoded("PNG", PICTURE))


def test_grey_files_become_three_channels() -> None:
    grey = PICTURE[:, :, 0]
    rgb = decode_compressed(encoded("PNG", grey), "mono8; png compressed mono8")
    np.testing.assert_array_equal(rgb, np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize(("image_format", "word"), [
    ("16UC1; compressedDepth png", "depth"), ("32FC1; compressedDepth", "depth"), ("16UC1; png compressed ", "depth"),
    ("h264", "taken are jpeg and png"), ("webp", "taken are jpeg and png"), ("rgb8; tiff compressed bgr8", "taken are jpeg"),
    ("rgb8; jpeg compressed ", "may be swapped"), ("bgr8; jpeg compressed rgb8", "may be swapped"),
])
def test_other_formats_are_refused_by_name(image_format: str, word: str) -> None:
    with pytest.raises(ImageError, match=word) as caught:
        decode_compressed(encoded("JPEG", PICTURE), image_format)
    assert repr(image_format) in str(caught.value)


def test_a_compressed_mosaic_is_not_taken_for_grey() -> None:
    with pytest.raises(ImageError, match="Bayer mosaic"):
        decode_compressed(encoded("JPEG", PICTURE[:, :, 0]), "bayer_rggb8; jpeg compressed ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_truncation_is_refused(kind: str) -> None:
    """From nothing at all to some bytes short of the end."""
    picture = np.random.default_rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = encoded(kind, picture)
    for length in [*range(0, len(file) - 20, 37), *range(len(file) - 20, len(file) - 8)]:
        with pytest.raises(ImageError):
            decode_compressed(file[:length], kind.lower())


def test_the_last_bytes_of_a_jpeg_count() -> None:
    file = encoded("JPEG", PICTURE)
    for missing in (1, 2):
        with pytest.raises(ImageError, match="no end marker"):
            decode_compressed(file[:-missing], "jpeg")
    padded = file + b"\0" * 100  # a UVC camera pads its buffer
    np.testing.assert_array_equal(decode_compressed(padded, "jpeg"), decode_compressed(file, "jpeg"))


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\xff", b"\x89PNG\r\n\x1a\n", b"\0" * 50])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode_compressed(data, "jpeg")


def test_deep_and_cmyk_pictures_are_refused() -> None:
    deep = cv2.imencode(".png", np.full((4, 4, 3), 40_000, np.uint16))[1].tobytes()
    deep_grey = cv2.imencode(".png", np.full((4, 4), 40_000, np.uint16))[1].tobytes()
    ink = io.BytesIO()
    Image.fromarray(PICTURE).convert("CMYK").save(ink, "JPEG")
    for data, word in ((deep, "16-bit"), (deep_grey, "16-bit"), (ink.getvalue(), "CMYK")):
        with pytest.raises(ImageError, match=word):
            decode_compressed(data, "")


def test_a_file_that_claims_to_be_enormous_is_refused_before_it_is_decoded() -> None:
    bomb = bytearray(encoded("PNG", PICTURE))
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(ImageError, match="pixels"):
        decode_compressed(bytes(bomb), "png")
    wide = encoded("PNG", np.zeros((1, MAX_SIDE_PX + 1), np.uint8))
    with pytest.raises(ImageError, match=f"at most {MAX_SIDE_PX}"):
        decode_compressed(wide, "png")


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 800), value=st.integers(0, 255))
def test_a_changed_byte_gives_a_picture_or_an_image_error(place: int, value: int) -> None:
    file = bytearray(encoded("JPEG", PICTURE))
    file[place % len(file)] = value
    try:
        rgb = decode_compressed(bytes(file), "jpeg")
    except ImageError:
        return
    assert rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.dtype == np.uint8
