"""cv_bridge, where it is installed, gives the same pictures; where it does not, it is dropped and named."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from openvla_ros.errors import ImageError
from openvla_ros.observation.image import CHANNELS, decode_raw
from openvla_ros.ros.convert_image import ImageConverter, find_bridge


def message(encoding: str, padding: int = 5) -> SimpleNamespace:
    step = 8 * CHANNELS[encoding] + padding
    data = np.random.default_rng(3).integers(0, 256, 6 * step, dtype=np.uint8).tobytes()
    return SimpleNamespace(data=data, height=6, width=8, encoding=encoding, step=step, is_bigendian=0)


class OtherBridge:
    """A cv_bridge that is wrong in one way."""

    def __init__(self, swapped: bool = False) -> None:
        self.swapped = swapped

    def imgmsg_to_cv2(self, image: SimpleNamespace, encoding: str) -> np.ndarray:
        if not self.swapped:
            raise SystemError("numpy.core.multiarray failed to import")
        return decode_raw(image.data, image.height, image.width, image.encoding, image.step)[:, :, ::-1]


@pytest.mark.skipif(find_bridge() is None, reason="cv_bridge is not installed (it is not on PyPI; apt ROS has it)")
def test_cv_bridge_gives_the_same_picture() -> None:
    converter = ImageConverter()
    for encoding in sorted(CHANNELS):
        image = message(encoding)
        expected = decode_raw(image.data, 6, 8, encoding, image.step)
        for _ in range(2):  # the first is the proof, the second comes from cv_bridge alone
            np.testing.assert_array_equal(converter.to_rgb(image), expected)
    assert converter.backend == "cv_bridge"


@pytest.mark.parametrize(("bridge", "word"), [(OtherBridge(swapped=True), "another picture"), (OtherBridge(), "SystemError")])
def test_a_bridge_that_differs_is_dropped_and_named(bridge: OtherBridge, word: str) -> None:
    converter, image = ImageConverter(bridge), message("bgr8")
    for _ in range(2):
        np.testing.assert_array_equal(converter.to_rgb(image), decode_raw(image.data, 6, 8, "bgr8", image.step))
    assert converter.backend == "numpy" and word in converter.note


def test_a_truncated_picture_never_reaches_cv_bridge() -> None:
    image = message("rgb8")
    image.data = image.data[:-20]
    with pytest.raises(ImageError, match="truncated"):
        ImageConverter(OtherBridge(swapped=True)).to_rgb(image)
