"""The page of a run: it opens in a real browser without a word of complaint, shows what matters, and stays small."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.bags import page_plot
from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.frames import frames, select
from openvla_ros.bags.highlights import most_different, most_interesting, pictures, tool_position
from openvla_ros.bags.motion import STEPS_LONG, WIDTH, overlay, project
from openvla_ros.bags.page import MAX_BYTES, PageFrame, PageRun, Track, write_page
from openvla_ros.bags.read import Recording
from openvla_ros.errors import BagError
from openvla_ros.robot import Camera

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

DOWN = Camera(640, 480, 600.0, 600.0, 320.0, 240.0, (0.3, 0.0, 1.0), (0.7071068, -0.7071068, 0.0, 0.0))
"""One metre above the table, looking straight down: the picture's right is -y (right), its top is x (forward)."""

PROBE = """<script>addEventListener('load', () => {
  const track = document.querySelector('.track');
  for (const key of ['End', 'ArrowLeft']) track.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  const zoom = document.querySelector('.frames .zoom');
  zoom.click();
  const open = document.querySelector('dialog').open;
  document.querySelector('dialog .zoom').click();
  document.body.dataset.seen = JSON.stringify({
    broken: [...document.images].filter(image => !(image.complete && image.naturalWidth > 0)).length, images: document.images.length,
    loaded: performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:')),
    said: track.querySelector('figure[data-column="6"] output').textContent,
    open, closed: !document.querySelector('dialog').open, wide: document.documentElement.scrollWidth > innerWidth});
});</script></body>"""


@pytest.fixture(scope="module")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "episode"
    make_episode(folder, EpisodeSettings(seconds=4.0, width=320, height=240))
    return folder


def page_frames(path: Path) -> list[PageFrame]:
    """What a policy might have said: the recorded action and a little more in dx, growing frame by frame."""
    with Recording(path) as recording:
        return [PageFrame(frame.index, frame.stamp_ns, frame.log_ns, frame.instruction, recorded=frame.recorded,
                          predicted=None if frame.recorded is None else frame.recorded + 0.001 * frame.index * np.eye(7)[0],
                          margin=5.0, driver="POLICY", tool_m=np.array([0.3, 0.0, 0.1]), stage_ms={"vision": 20.0, "total": 50.0})
                for frame in frames(recording, select(recording))]


@pytest.fixture
def track(episode: Path) -> Track:
    return Track("episode", episode, "/camera/image_raw/compressed", page_frames(episode), "/teleop/action7")


def with_frame(track: Track, index: int, **changes: object) -> Track:
    return replace(track, frames=[replace(frame, **changes) if frame.index == index else frame for frame in track.frames])


def open_in_browser(page: Path, folder: Path) -> tuple[dict[str, object], list[str]]:
    """What PROBE saw, and everything that the browser wrote to its console."""
    assert BROWSER is not None
    probed = folder / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                           f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900", "--enable-logging=stderr",
                           "--virtual-time-budget=5000", "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=90)
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen, done.stderr
    return json.loads(html.unescape(seen[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_shows_everything_and_says_nothing(track: Track, tmp_path: Path) -> None:
    track = with_frame(track, 4, predicted=None, fault="</script><script>alert(1)</script> & a <b>fault</b>")
    track = with_frame(track, 9, rules=("speed", "lead"), sent=np.zeros(7), against=np.ones(7))
    hostile = replace(track, name="<img src=http://example.com/a.png onerror=alert(2)>", camera=DOWN)
    run = PageRun("a </title> run", "policy <one>", [track, hostile], against="golden", passed=False, facts={"sha256": "00"},
                  notes=["untrained"], failed={"lost": "recording lost cannot be read"})
    seen, console = open_in_browser(write_page(run, tmp_path), tmp_path)
    assert console == []
    assert seen["images"] > 10 and seen["broken"] == 0 and seen["loaded"] == []
    assert seen["open"] and seen["closed"] and not seen["wide"]
    assert seen["said"].startswith("#18 ") and "recorded" in seen["said"]  # the last but one of 20


def test_a_page_holds_no_address(track: Track, tmp_path: Path) -> None:
    text = write_page(PageRun("run", "policy", [track]), tmp_path / "sub" / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href|url|@import)\s*[=(]?\s*["']?\s*(https?:|//|file:)""", text)
    assert "default-src 'none'" in text


def test_a_page_replaces_the_old_one_and_leaves_nothing_beside_it(track: Track, tmp_path: Path) -> None:
    for title in ("first", "second"):
        file = write_page(PageRun(title, "policy", [track]), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file.name] and "<h1>second</h1>" in file.read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_is_named(track: Track, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match=r"cannot be written to .*Choose another"):
        write_page(PageRun("run", "policy", [track]), tmp_path / "file" / "page.html")


def test_a_page_without_any_frame_says_so(tmp_path: Path) -> None:
    run = PageRun("run", "policy", [], failed={"bad": "it is <truncated>"})
    text = write_page(run, tmp_path).read_text(encoding="utf-8")
    assert "could not be run: it is &lt;truncated&gt;" in text and "None stands out" in text


def test_a_large_run_stays_small(track: Track, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    many = [replace(track.frames[k % 19], index=k, stamp_ns=k * 10**8, log_ns=0, predicted=random.normal(size=7),
                    sent=random.normal(size=7), against=random.normal(size=7), rules=("speed",) * (k % 2),
                    fault=f"fault {k}" * (k % 5 == 0), instruction=f"do thing {k // 3}") for k in range(1500)]
    run = PageRun("run", "policy", [replace(track, name=f"day {k}", frames=many) for k in range(12)], against="other")
    assert write_page(run, tmp_path).stat().st_size <= MAX_BYTES


def test_a_recording_that_went_away_leaves_its_reason(track: Track, tmp_path: Path) -> None:
    gone = replace(track, path=tmp_path / "gone")
    text = write_page(PageRun("run", "policy", [gone]), tmp_path).read_text(encoding="utf-8")
    assert "no picture: there is no recording at" in text and "<img" not in text


# ---------------------------------------------------------------------- which frames


def test_what_is_interesting_comes_in_turn_with_all_its_reasons(track: Track) -> None:
    track = with_frame(track, 2, difference="ids differ")
    track = with_frame(with_frame(track, 6, fault="no token", predicted=None), 7, fault="no token", predicted=None)
    track = with_frame(with_frame(track, 10, margin=0.1), 18, rules=("lead",))
    found = {highlight.frame.index: highlight.reasons for highlight in most_interesting(PageRun("run", "policy", [track]), 5)}
    assert found.keys() == {2, 6, 10, 15, 18}  # 18 holds the largest error too; 7, 16 and 17 are too near to others
    assert found[2] == ("differs: ids differ",) and found[6] == ("fault: no token",)
    assert found[10] == ("margin 0.1: a close call",) and found[15] == ("error 15 mm, 0°, gripper 0.00",)
    assert found[18] == ("error 18 mm, 0°, gripper 0.00", "safety: lead")


def test_a_run_in_which_nothing_stands_out_shows_examples(track: Track) -> None:
    calm = replace(track, frames=[replace(frame, recorded=frame.predicted, margin=None) for frame in track.frames])
    found = most_interesting(PageRun("run", "policy", [calm]))
    assert [highlight.frame.index for highlight in found] == [0, 3, 7, 11, 15, 19]
    assert all(highlight.reasons == ("an example",) for highlight in found)


def test_the_furthest_apart_come_first(track: Track) -> None:
    frames = [frame if frame.predicted is None else replace(
        frame, against=frame.predicted + np.eye(7)[6] * (0.9 if frame.index == 11 else 0.1)) for frame in track.frames]
    found = most_different(PageRun("run", "policy", [replace(track, frames=frames)], against="int8"), 3)
    assert found[0].frame.index == 11 and found[0].reasons == ("apart by 0 mm, 0°, gripper 0.90",) and len(found) == 3


def test_pictures_are_those_of_their_frames(track: Track, episode: Path) -> None:
    with Recording(episode) as recording:
        whole = {frame.index: frame.rgb for frame in frames(recording, select(recording))}
    found = pictures(track, [track.frames[3], track.frames[17]], 320)
    assert all(np.array_equal(found[index], whole[index]) for index in (3, 17))
    turned = pictures(replace(track, rotate_180=True), [track.frames[3]], 160)[3]
    assert turned.shape == (120, 160, 3) and abs(turned.astype(float) - whole[3][::-2, ::-2]).mean() < 5


def test_the_tool_is_where_the_recording_measured_it(track: Track, episode: Path, tmp_path: Path) -> None:
    with Recording(episode) as recording:
        measured = [recording.decode(raw).pose.position for raw in recording.messages([recording.topic("/state/ee_pose")])]
    assert tool_position(track, track.frames[4]) is track.frames[4].tool_m
    unsaid = replace(track.frames[4], tool_m=None)
    assert tool_position(track, unsaid) == pytest.approx([measured[4].x, measured[4].y, measured[4].z])
    assert tool_position(replace(track, path=tmp_path / "gone"), unsaid) is None


# ---------------------------------------------------------------------- what is drawn


def test_points_are_projected_through_the_camera() -> None:
    pixels = project(np.array([[0.3, 0.0, 0.0], [0.4, 0.0, 0.0], [0.3, 0.1, 0.5], [0.3, 0.0, 2.0]]), DOWN)
    assert np.allclose(pixels[:3], [[320, 240], [320, 180], [200, 240]], atol=1e-3) and np.isnan(pixels[3]).all()


def test_a_motion_is_projected_only_where_that_is_true() -> None:
    step, tool = {"predicted": np.array([0.02, 0, 0, 0, 0, 0, 1.0])}, np.array([0.3, 0.0, 0.0])
    drawing, projected = overlay(step, (480, 640, 3), DOWN, tool)
    half = WIDTH / 2
    end = 240 * WIDTH / 640 - STEPS_LONG * 0.02 * 600 * WIDTH / 640
    assert projected and f"M{half:.1f} 192.0L{half:.1f} {end:.1f}" in drawing and "not projected" not in drawing
    for shape, camera, at in (((480, 480, 3), DOWN, tool), ((480, 640, 3), None, tool), ((480, 640, 3), DOWN, None),
                              ((480, 640, 3), DOWN, np.array([3.0, 0.0, 0.0]))):
        drawing, projected = overlay(step, shape, camera, at)
        assert not projected and "not projected" in drawing


def test_unknown_numbers_of_a_step_are_not_drawn_as_numbers() -> None:
    drawing, _ = overlay({"recorded": np.array([0.01, 0, 0, 0, 0, 0, np.nan])}, (480, 640, 3))
    assert "fill recorded" not in drawing and 'd="Mnan' not in drawing and "nan nan" not in drawing


def test_lines_keep_a_single_spike_and_break_at_gaps() -> None:
    values = np.zeros(10_000)
    values[5_000], values[7_000:7_100] = 1.0, np.nan
    drawing = page_plot.lines(np.arange(10_000.0), {"predicted": values}, "label", columns=100)
    path = re.search(r'class="line predicted" d="([^"]*)"', drawing)[1]
    heights = [float(point.split()[1]) for point in re.findall(r"[ML]([\d.]+ [\d.]+)", path)]
    assert len(heights) <= 200 and min(heights) < page_plot.TOP + 0.1 * page_plot.INNER_H and path.count("M") == 2


def test_ticks_are_round() -> None:
    assert page_plot.ticks(-0.03, 0.05, 4) == pytest.approx([-0.02, 0.0, 0.02, 0.04])
    assert page_plot.ticks(0.0, 0.0, 4) == [0.0]
