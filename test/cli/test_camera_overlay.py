"""`openvla-ros doctor --camera-overlay` with a file, a recording and a running camera."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openvla_ros.cli import app


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A frame with a bright block, as a file."""
    picture = np.full((120, 160, 3), 40, np.uint8)
    picture[30:80, 40:100] = (200, 60, 30)
    path = tmp_path / "reference.png"
    Image.fromarray(picture).save(path)
    return path


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    code = app.answer(["doctor", "--json", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out)


def test_a_file_against_a_reference(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live, output = tmp_path / "live.jpg", tmp_path / "drawn.png"
    Image.fromarray(np.roll(np.asarray(Image.open(reference)), (7, 12), axis=(0, 1))).save(live, quality=95)
    code, said = answer(capsys, "--camera-overlay", reference, "--image", live, "--output", output)
    assert code == 0 and said["picture"] == str(live) and said["output"] == str(output) and said["size_note"] == ""
    assert said["shift_right_down_px"] == pytest.approx([12, 7], abs=0.5)
    assert said["advice"].startswith("turn the camera 12 px to the right and 7 px down")
    assert said["edge_overlap"] < 0.5 < said["edge_overlap_shifted"] and 0 < said["edge_overlap_by_chance"] < 0.5
    with Image.open(output) as drawn:
        assert drawn.size == (160, 144)

    assert app.answer(["doctor", "--camera-overlay", str(reference), "--image", str(reference), "--output", str(output)]) == 0
    lines = capsys.readouterr().out
    assert "100 % of the reference's edges are met; chance alone meets" in lines and "magenta where the reference" in lines


@pytest.mark.shared
def test_the_first_picture_of_a_recording(reference: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag, output = shared / "data" / "bags" / "bridge_v2_broccoli_640x480", tmp_path / "drawn.png"
    code, said = answer(capsys, "--camera-overlay", reference, "--bag", bag, "--output", output)
    assert code == 0 and said["picture"] == f"{bag}, /camera/image_raw/compressed, frame 0"
    assert said["size_note"].endswith("scaled, the shape is the same.") and said["shift_right_down_px"] is None


@pytest.mark.parametrize(("arguments", "words"), [
    (["--camera-overlay", "missing.png", "--image", "REFERENCE"], "there is no picture missing.png"),
    (["--camera-overlay", "REFERENCE", "--image", "missing.png"], "there is no picture missing.png"),
    (["--camera-overlay", __file__, "--image", "REFERENCE"], "not a readable picture"),
    (["--camera-overlay", "REFERENCE", "--image", "REFERENCE", "--bag", "x"], "both name the picture"),
    (["--camera-overlay", "REFERENCE", "--bag", "x"], "no recording at x"),
    (["--camera-overlay", "REFERENCE", "--image", "REFERENCE", "--output", "drawn.jpg"], "must be a .png file"),
    (["--camera-overlay", "REFERENCE", "--image", "REFERENCE", "--output", "no/folder/drawn.png"], "in a folder that exists"),
    (["--camera-overlay", "REFERENCE", "--image", "REFERENCE", "--alpha", "1.5"], "alpha"),
    (["--image", "REFERENCE"], "belong to --camera-overlay"),
])
def test_what_is_refused_writes_nothing(arguments: list[str], words: str, reference: Path, tmp_path: Path,
                                        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = answer(capsys, *(str(reference) if word == "REFERENCE" else word for word in arguments))
    assert code == 2 and words in said["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["reference.png"]


def test_a_picture_of_16_bits_is_refused(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = tmp_path / "depth.png"
    Image.fromarray(np.full((120, 160), 4000, np.uint16)).save(deep)
    code, said = answer(capsys, "--camera-overlay", reference, "--image", deep, "--output", tmp_path / "drawn.png")
    assert code == 2 and "expected 8 bits per channel" in said["error"]


@pytest.fixture
def camera(ros_domain_id: int, reference: Path) -> Iterator[None]:
    """A running camera on /left/image that sees the reference 9 px too far left."""
    rclpy = pytest.importorskip("rclpy", reason="needs ROS")
    from sensor_msgs.msg import Image as ImageMessage

    picture = np.roll(np.asarray(Image.open(reference)), -9, axis=1)
    message = ImageMessage(height=120, width=160, encoding="rgb8", step=480, data=picture.tobytes())
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain_id)
    node = rclpy.create_node("camera", context=context)
    publisher, done = node.create_publisher(ImageMessage, "/left/image", 1), threading.Event()

    def film() -> None:
        while not done.wait(0.05):
            publisher.publish(message)

    thread = threading.Thread(target=film)
    thread.start()
    yield
    done.set()
    thread.join()
    node.destroy_node()
    rclpy.try_shutdown(context=context)


def run(environment: dict[str, str], *arguments: object) -> tuple[int, Any]:
    """In a process of its own, since the command joins ROS."""
    code = "from openvla_ros.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "doctor", "--json", "--seconds", "15", *map(str, arguments)], env=environment,
                          capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.ros
def test_the_running_camera(camera: None, reference: Path, ros_environment: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "drawn.png"
    overlay = ("--camera-overlay", reference, "--output", output)
    code, said = run(ros_environment, *overlay, "--namespace", "left")
    assert code == 0 and said["picture"] == "/left/image"
    assert said["shift_right_down_px"] == pytest.approx([-9, 0], abs=0.5) and "9 px to the left" in said["advice"]
    output.unlink()
    code, said = run(ros_environment, *overlay, "--seconds", "2", "--image-topic", "/right/image")
    assert code == 2 and said["error"].endswith("publishes /right/image. Name one of the image topics with --image-topic: /left/image.")
    assert not output.exists()
