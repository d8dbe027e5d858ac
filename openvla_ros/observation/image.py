"""Bytes of a camera message in, a red-green-blue picture out, or an ImageError that says what came and what is taken.

Plain values go in, so that live messages and recordings share this file. Nothing is guessed: 16-bit, depth and
packed YUV pictures are refused, and so is a picture whose length, row step or end does not fit its own header.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from openvla_ros.contract import ByteArray
from openvla_ros.errors import ImageError

MAX_SIDE_PX = 8192
"""Longest side that is taken. A wrong header must not ask for gigabytes."""

# ROS names a Bayer pattern by the first two pixels of row 0 and row 1. OpenCV names the same pattern by the second and
# third pixel of row 1 and 2, so the letters differ: "rggb" of ROS is "BG" of OpenCV.
BAYER_CODES = {
    "bayer_rggb8": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr8": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGB2RGB,
}
CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, **dict.fromkeys(BAYER_CODES, 1)}
"""Encodings of sensor_msgs/Image that are taken, with their bytes per pixel."""

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
PNG_START, PNG_END = b"\x89PNG", b"IEND"
PNG_DEPTH_AT = 24
"""Place of the bits per channel in a PNG file: signature, chunk length and name, width, height come before."""


def decode_raw(data: Any, height: int, width: int, encoding: str, step: int) -> ByteArray:
    """The pixels of a raw picture, uint8 [height, width, 3], red first.

    data: any buffer of bytes (bytes, array.array, ndarray, memoryview), `height` rows of `step` bytes; what lies behind
    the pixels of a row is padding. Byte order does not matter: every encoding of CHANNELS has 8 bits.
    An rgb8 picture without padding in a read-only buffer (bytes, a recording) is a read-only view of it; everything else
    is a copy, so that whoever fills a buffer again cannot change a picture that was handed out. Raises ImageError.
    """
    pixels = check_raw(data, height, width, encoding, step)
    if encoding in BAYER_CODES:
        if min(height, width) < 3:
            raise ImageError(f"a {width}x{height} {encoding} picture is too small to be demosaiced; 3x3 is the least.")
        return _as_bytes(cv2.cvtColor(np.ascontiguousarray(pixels[:, :, 0]), BAYER_CODES[encoding]))
    if encoding == "mono8":
        return np.repeat(pixels, 3, axis=2)
    if encoding.startswith("bgr"):
        return np.ascontiguousarray(pixels[:, :, 2::-1])
    if encoding == "rgba8":
        return np.ascontiguousarray(pixels[:, :, :3])
    return pixels.copy() if pixels.flags.writeable or not pixels.flags.c_contiguous else pixels


def check_raw(data: Any, height: int, width: int, encoding: str, step: int) -> ByteArray:
    """A view [height, width, channels] onto `data` in its own encoding, once its header was found to be possible."""
    channels = CHANNELS.get(encoding)
    if channels is None:
        raise ImageError(f"image encoding is {encoding!r}; taken are {', '.join(CHANNELS)}. Set the camera driver to one "
                         "of them (usb_cam: pixel_format; RealSense: the colour stream), or convert it with image_proc.")
    check_size(height, width)
    if step < width * channels:
        raise ImageError(f"image row step is {step} bytes, but {width} pixels of {encoding} take {width * channels}. "
                         "The camera driver fills in a wrong step.")
    try:
        flat = np.frombuffer(data, dtype=np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise ImageError(f"image data is {type(data).__name__}, expected one contiguous buffer of bytes: {error}.") from None
    # The padding of the last row may be missing: some drivers send a region of interest that way.
    if not step * (height - 1) + width * channels <= flat.size <= step * height:
        raise ImageError(f"image data has {flat.size} bytes, but {height} rows of {step} bytes make {step * height}. "
                         "The message is truncated or its header is wrong.")
    return np.lib.stride_tricks.as_strided(flat, (height, width, channels), (step, channels, 1),
                                           writeable=flat.flags.writeable)


def decode_compressed(data: Any, image_format: str) -> ByteArray:
    """The pixels of a JPEG or PNG file, uint8 [height, width, 3], red first; always memory of its own, which is read-only.

    image_format: the field `format` of sensor_msgs/CompressedImage: "jpeg", "jpg", "png", or image_transport's
    "rgb8; jpeg compressed bgr8". Alpha is dropped, EXIF rotation is not applied (as in the training data).
    The whole file must be there. A file that was damaged in its middle but has its end cannot be told from a good one.
    Raises ImageError.
    """
    file = memoryview(data).tobytes()
    source_encoding = check_format(image_format)
    check_end(file)
    try:
        with Image.open(io.BytesIO(file), formats=("JPEG", "PNG")) as picture:
            check_size(picture.height, picture.width)
            deep = picture.format == "PNG" and file[PNG_DEPTH_AT] > 8  # Pillow would drop the low byte without a word
            if deep or picture.mode not in ("RGB", "RGBA", "L", "LA", "P", "1"):
                raise ImageError(f"compressed picture has {'16-bit ' if deep else ''}pixels of kind {picture.mode!r}; taken "
                                 "are colour and grey of 8 bits. Choose the colour stream of the camera.")
            if source_encoding.startswith("bayer_") and picture.mode == "L":
                raise ImageError(f"compressed image format is {image_format!r}: a Bayer mosaic that was compressed as grey. "
                                 "Demosaic first (image_proc) and compress the colour topic.")
            return _pixels(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except UnidentifiedImageError:
        raise ImageError(f"compressed image of format {image_format!r} begins with {file[:4].hex(' ') or 'nothing'}: "
                         "neither JPEG nor PNG. Set the image transport to jpeg or png.") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"compressed image is refused: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reports broken PNG chunks as SyntaxError
        raise ImageError(f"compressed image of {len(file)} bytes and format {image_format!r} cannot be decoded: {error}. "
                         "The picture is truncated or damaged on its way.") from None


def is_jpeg(data: Any) -> bool:
    """Whether these bytes are a JPEG file, whatever the message calls them."""
    return bytes(memoryview(data)[:2]) == JPEG_START


def check_end(file: bytes) -> None:
    """Raises ImageError for a JPEG or PNG file whose end is missing: decoders fill the missing part with grey."""
    jpeg_cut = is_jpeg(file) and file.rfind(JPEG_END) < file.rfind(JPEG_SCAN)
    if jpeg_cut or (file.startswith(PNG_START) and PNG_END not in file[-64:]):
        raise ImageError(f"compressed image of {len(file)} bytes has no end marker: the picture is truncated. "
                         "Check the cable and the transport; a UVC camera may need a lower resolution.")


def check_format(image_format: str) -> str:
    """The encoding that the picture had before it was compressed ("" where unsaid). Raises ImageError.

    An empty format passes: the bytes themselves say what they are.
    """
    source, separator, codec = (part.strip() for part in image_format.lower().partition(";"))
    words: Sequence[str] = codec.split() if separator else source.split()
    if "compresseddepth" in words or source in ("16uc1", "32fc1"):
        raise ImageError(f"compressed image format is {image_format!r}: a depth picture. "
                         "Name the colour topic of the camera instead.")
    if words and words[0] not in ("jpeg", "jpg", "png"):
        raise ImageError(f"compressed image format is {image_format!r}; taken are jpeg and png. "
                         "Set the image transport of the camera to one of them.")
    # image_transport always compresses colour as bgr8. Anything else left its red and blue swapped in old releases.
    if separator and source[:3] in ("rgb", "bgr") and words[2:3] not in (["bgr8"], ["mono8"]):
        raise ImageError(f"compressed image format is {image_format!r}: it does not say 'compressed bgr8', so red and blue "
                         "may be swapped. Use image_transport, or write the plain format 'jpeg' or 'png'.")
    return source if separator else ""


def check_size(height: int, width: int) -> None:
    """Raises ImageError for a picture without pixels or with absurdly many."""
    if min(height, width) < 1:
        raise ImageError(f"image is {width}x{height}: it holds no pixel. Check the camera driver.")
    if max(height, width) > MAX_SIDE_PX:
        raise ImageError(f"image is {width}x{height}; at most {MAX_SIDE_PX} pixels a side are taken. "
                         "The header is wrong, or the camera needs a smaller mode (OpenVLA sees 224x224).")


def _pixels(picture: Image.Image) -> ByteArray:
    """Of a picture of mode RGB. The two copies less than by np.array(picture.convert("RGB")) are a third of the time of a decode."""
    return np.frombuffer(picture.tobytes(), dtype=np.uint8).reshape(picture.height, picture.width, 3)


def _as_bytes(pixels: Any) -> ByteArray:
    """OpenCV types its results loosely; the demosaic of uint8 is uint8."""
    return np.asarray(pixels, dtype=np.uint8)
