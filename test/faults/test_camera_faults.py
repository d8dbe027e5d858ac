"""A camera that fails while the policy moves the arm: camera, policy_node and command_node over DDS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.faults]

INSTRUCTION = "put the spoon on the towel"


@pytest.fixture(scope="module")
def world(stage: Any) -> Any:
    world = stage.world()
    stage.command_node()
    world.film()
    world.say(INSTRUCTION)
    stage.policy_node(world, frozen_after=3)
    return world


def stop(world: Any) -> Callable[[Any], Any]:
    return lambda picture: None


def repeat_stamp(world: Any) -> Callable[[Any], Any]:
    newest = world.seen_ns

    def distort(picture: Any) -> Any:
        stamp(picture, newest)
        return picture
    return distort


def repeat_picture(world: Any) -> Callable[[Any], Any]:
    first: list[Any] = []

    def distort(picture: Any) -> Any:
        first.append(picture.data)
        picture.data = first[0]
        return picture
    return distort


def no_stamp(world: Any) -> Callable[[Any], Any]:
    def distort(picture: Any) -> Any:
        stamp(picture, 0)
        return picture
    return distort


def shift(seconds: float) -> Callable[[Any], Callable[[Any], Any]]:
    def make(world: Any) -> Callable[[Any], Any]:
        def distort(picture: Any) -> Any:
            stamp(picture, picture.header.stamp.sec * 10**9 + picture.header.stamp.nanosec + round(seconds * 1e9))
            return picture
        return distort
    return make


def go_back(world: Any) -> Callable[[Any], Any]:
    """Each stamp a little older than the one before, none of them old."""
    newest = [world.seen_ns]

    def distort(picture: Any) -> Any:
        newest[0] -= 10_000_000
        stamp(picture, newest[0])
        return picture
    return distort


def encode(encoding: str) -> Callable[[Any], Callable[[Any], Any]]:
    def make(world: Any) -> Callable[[Any], Any]:
        def distort(picture: Any) -> Any:
            picture.encoding = encoding
            return picture
        return distort
    return make


def truncate(world: Any) -> Callable[[Any], Any]:
    def distort(picture: Any) -> Any:
        picture.data = picture.data[:-1]
        return picture
    return distort


def claim_size(world: Any) -> Callable[[Any], Any]:
    def distort(picture: Any) -> Any:
        picture.height = picture.width = 2**31
        return picture
    return distort


def stamp(picture: Any, stamp_ns: int) -> None:
    picture.header.stamp.sec, picture.header.stamp.nanosec = divmod(stamp_ns, 10**9)


@pytest.mark.parametrize(("fault", "part", "words"), [
    pytest.param(stop, "camera", "No camera frame arrives", id="stops", marks=pytest.mark.representative),
    pytest.param(repeat_stamp, "camera", "the same stamp again", id="repeats_its_stamp"),
    pytest.param(repeat_picture, "camera", "the same picture with new stamps", id="freezes"),
    pytest.param(no_stamp, "camera", "does not stamp", id="does_not_stamp"),
    pytest.param(shift(5.0), "camera", "ahead of this node's clock", id="stamps_in_the_future"),
    pytest.param(shift(-5.0), "camera", "too old", id="stamps_in_the_past"),
    pytest.param(go_back, "camera", "go back", id="stamps_go_back"),
    pytest.param(encode("16UC1"), "policy", "16UC1", id="changes_its_encoding"),
    pytest.param(encode("yuv9000"), "policy", "yuv9000", id="speaks_an_unknown_encoding"),
    pytest.param(truncate, "policy", "bytes", id="truncates_its_pictures"),
    pytest.param(claim_size, "policy", "", id="claims_a_huge_size"),
])
def test_a_camera_that_fails_stops_the_arm_by_age(world: Any, fault: Any, part: str, words: str) -> None:
    """From the last good picture's stamp, within the bound. When the camera is well again nothing moves before a human wants it."""
    twists, _ = world.drive()
    world.distort = fault(world)
    world.see("HOLD")
    world.until(lambda: words in world.health[f"/policy_node: {part}"].message, f"{words!r} in diagnostics")
    world.stops_by_age(twists, f"camera: {fault.__qualname__.split('.')[0]}")
    world.distort = None
    count = len(world.heard)
    world.until(lambda: any(chunk.steps for chunk in world.heard[count:]), "chunks of the camera that is well again")
    world.stays()
