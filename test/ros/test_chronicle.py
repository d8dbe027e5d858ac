"""What a run keeps of itself: bounded, on one time line, and the same things that were said."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS")
from openvla_msgs.msg import ActionChunk, CommandReport
from sensor_msgs.msg import Image

from openvla_ros.ros.chronicle import PICTURES, SPACING_S, Chronicle
from openvla_ros.ros.convert import to_time

pytestmark = pytest.mark.ros


def report(time_s: float, driver: int = CommandReport.POLICY, x: float | None = None) -> CommandReport:
    message = CommandReport(driver=driver)
    message.header.stamp = to_time(round(time_s * 1e9))
    if x is not None:
        message.measured_pose_valid, message.measured_pose.position.x = True, x
        message.step_started, message.sent.translation.x, message.sent.gripper = True, 0.01, 0.25
    return message


def picture(time_s: float, grey: int, encoding: str = "rgb8") -> Image:
    message = Image(height=4, width=6, step=18, encoding=encoding, data=bytes([grey]) * 72)
    message.header.stamp = to_time(round(time_s * 1e9))
    return message


def test_reports_and_chunks_lie_on_one_time_line() -> None:
    chronicle = Chronicle()
    chronicle.on_report(report(100.0, CommandReport.HOLD))
    chronicle.on_report(report(100.5, x=0.3))
    chronicle.on_chunk(ActionChunk(instruction="go", stage_names=["image", "decode"], stage_ms=[1.0, 20.0]))
    chronicle.on_chunk(ActionChunk(instruction="go", stage_names=["image"], stage_ms=[2.0]))
    chronicle.on_chunk(ActionChunk(instruction=""))
    chronicle.on_opening(0.5)
    page = chronicle.page()
    assert [(row.time_s, row.driver) for row in page.rows] == [(0.0, "HOLD"), (0.5, "POLICY")]
    assert np.isnan(page.rows[0].measured_m).all() and page.rows[1].measured_m[0] == 0.3
    assert page.rows[0].sent == () and page.rows[1].sent == (0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25)
    assert page.latencies == ((0.5, 21.0), (0.5, 2.0)) and page.openings == ((0.5, 0.5),)
    assert page.instructions == ((0.5, "go"), (0.5, ""))


def test_a_clock_that_jumps_is_taken_up_where_it_was() -> None:
    chronicle = Chronicle()
    for time_s in (100.0, 102.0, 100.5, 10.0, 11.0):
        chronicle.on_report(report(time_s))
    assert [row.time_s for row in chronicle.page().rows] == [0.0, 2.0, 0.5, 2.0, 3.0]


def test_pictures_carry_what_held_when_they_were_taken() -> None:
    chronicle = Chronicle()
    chronicle.on_report(report(0.0))
    chronicle.on_chunk(ActionChunk(instruction="go"))
    chronicle.on_picture(picture(0.0, 7), "step 1 of 45")
    chronicle.on_picture(picture(0.05, 80), "step 1 of 45")  # too soon
    chronicle.on_picture(picture(0.2, 9), "step 1 of 45")  # looks the same
    chronicle.on_picture(picture(0.3, 90, "nonsense"), "step 1 of 45")
    chronicle.on_picture(picture(0.4, 7), "done after 2 steps")
    first, last = chronicle.page().pictures
    assert (first.instruction, first.driver, first.verdict, last.verdict) == ("go", "POLICY", "step 1 of 45", "done after 2 steps")
    assert first.rgb().shape == (4, 6, 3) and (first.rgb() == 7).all()


def test_a_long_run_keeps_its_whole_length_in_a_bounded_number_of_pictures() -> None:
    chronicle = Chronicle()
    for number in range(10 * PICTURES):
        chronicle.on_picture(picture(number * SPACING_S, 90 * number % 256), "")
    page = chronicle.page()
    times_s = [moment.time_s for moment in page.pictures]
    assert PICTURES / 2 <= len(times_s) <= PICTURES and page.spacing_s == 16 * SPACING_S
    assert times_s[0] == 0.0 and times_s[-1] > (10 * PICTURES - 20) * SPACING_S
    assert np.allclose(np.diff(times_s), page.spacing_s)
