"""The film, the plot and the Rerun file of a run, read back."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS")
from PIL import Image

from openvla_ros.cli import film
from openvla_ros.cli.film import write_film
from openvla_ros.cli.rerun_file import write_rerun
from openvla_ros.cli.run_plot import write_plot
from openvla_ros.ros.chronicle import Page, Picture, Row

pytestmark = pytest.mark.ros

HEIGHT, WIDTH = 96, 128


def moment(number: int, noise: bool = False) -> Picture:
    """A red square that goes right."""
    rgb = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    if noise:
        rgb = np.random.default_rng(number).integers(0, 255, rgb.shape, dtype=np.uint8)
    rgb[20:40, 3 * number: 3 * number + 20] = (200, 30, 30)
    words = "pick up the red block " * (1 + number % 9)
    return Picture(0.1 * number, rgb.shape, zlib.compress(rgb.tobytes(), 1), words, "POLICY", "step 3 of 45")


def page(pictures: int, noise: bool = False) -> Page:
    rows = tuple(Row(0.1 * number, "HUMAN" if 10 < number < 20 else "POLICY", np.array([0.3, 0.0, 0.2]), np.array([0.3, 0.0, 0.21]),
                     (0.0,) * 6 + (1.0,)) for number in range(30))
    return Page(rows, latencies=((0.5, 30.0), (1.0, 35.0)), instructions=((0.2, "go"), (1.5, "")), openings=((0.1, 0.4), (0.6, 0.5)),
                pictures=tuple(moment(number, noise) for number in range(pictures)))


def test_the_film_shows_every_picture_with_a_caption(tmp_path: Path) -> None:
    path = write_film(page(20), tmp_path / "run.gif")
    assert path is not None
    with Image.open(path) as gif:
        assert gif.n_frames == 20 and gif.size == (WIDTH, HEIGHT + film.BAR_PX)
        assert gif.info["loop"] == 0 and gif.info["duration"] == film.FRAME_MS
        gif.seek(10)
        shown = np.asarray(gif.convert("RGB")).astype(int)
    true = moment(10).rgb().astype(int)
    assert np.abs(shown[:HEIGHT] - true).max() < 12, "few colours, but the same picture"
    caption = shown[HEIGHT:]
    assert (caption.min(axis=2) < 80).sum() > 100, "ink"
    assert (caption[:, :6].min() > 200) and (caption[:, -6:].min() > 200), "and it fits"
    assert [left.name for left in tmp_path.iterdir()] == ["run.gif"]


def test_a_film_that_would_be_large_loses_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "LARGEST_BYTES", 150_000)
    path = write_film(page(20, noise=True), tmp_path / "run.gif")
    assert path is not None and path.stat().st_size <= 150_000
    with Image.open(path) as gif:
        assert 4 <= gif.n_frames < 20


def test_the_plot_is_drawn_with_and_without_a_pose(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    nowhere = tuple(Row(0.1 * number, "HOLD", np.full(3, np.nan), np.full(3, np.nan), ()) for number in range(5))
    sizes = []
    for name, one in (("whole", page(0)), ("bare", Page(rows=nowhere))):
        path = write_plot(one, "openvla-ros run", tmp_path / f"{name}.png")
        assert path is not None
        with Image.open(path) as picture:
            sizes.append(picture.size)
            assert len(np.unique(np.asarray(picture.convert("L").resize((60, 40))))) > 5
    assert sizes[0][1] > sizes[1][1], "no panels for what is not known"


def test_nothing_is_written_of_nothing(tmp_path: Path) -> None:
    idle = [replace(moment(number), driver="HOLD") for number in range(3)]
    assert write_film(page(1), tmp_path / "run.gif") is None and write_film(Page(pictures=tuple(idle)), tmp_path / "run.gif") is None
    assert write_plot(Page(), "", tmp_path / "run.png") is None and write_rerun(Page(), tmp_path / "run.rrd") is None
    assert not list(tmp_path.iterdir())


def test_the_rerun_file_is_written(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="needs rerun-sdk; pip install 'openvla-ros[viewer]'")
    path = write_rerun(page(3), tmp_path / "run.rrd")
    assert path is not None and path.read_bytes()[:4] in (b"RRF2", b"RRF3") and path.stat().st_size > 1000
