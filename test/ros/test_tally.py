"""What `run` says about a run: rates, latencies and losses out of real messages."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("rclpy", reason="needs ROS")
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from openvla_msgs.msg import ActionChunk, CommandReport, EndEffectorDelta

from openvla_ros.ros.tally import Tally, percentile, spoken

pytestmark = pytest.mark.ros

OURS = ("/policy_node:", "/command_node:")


def health(name: str, level: bytes = DiagnosticStatus.OK, message: str = "", **values: object) -> DiagnosticArray:
    pairs = [KeyValue(key=key.replace("_colon_", ": "), value=str(value)) for key, value in values.items()]
    return DiagnosticArray(status=[DiagnosticStatus(level=level, name=name, message=message, values=pairs)])


def chunk(decode_ms: float, fault: str = "") -> ActionChunk:
    return ActionChunk(instruction="go", stage_names=["image", "decode"], stage_ms=[1.0, decode_ms], fault=fault,
                       steps=[] if fault else [EndEffectorDelta()])


def test_latency_and_rate_are_those_of_the_chunks() -> None:
    tally = Tally()
    for index, decode_ms in enumerate((10.0, 20.0, 30.0)):
        tally.on_chunk(chunk(decode_ms), now_s=5.0 + 0.2 * index)
    summary = tally.summary(None)
    assert summary["chunks"] == 3 and math.isclose(summary["hz"], 5.0)
    assert list(summary["latency_ms"]) == ["image", "decode", "total"]
    assert summary["latency_ms"]["total"] == {"median": 21.0, "p99": 31.0}
    assert tally.view().instruction == "go"


def test_a_fault_is_no_chunk_and_a_stop_word_is_no_fault() -> None:
    tally = Tally()
    tally.on_chunk(chunk(1.0, fault="token 5 is no action"), 0.0)
    tally.on_chunk(ActionChunk(fault="policy deactivated"), 1.0)
    summary = tally.summary(None)
    assert summary["chunks"] == 0 and summary["hz"] is None and summary["faults"] == {"token 5 is no action": 1}


def test_lost_frames_are_said_with_the_remedy() -> None:
    """Compressed or raw, the run has set a profile for Fast DDS: that is not what to mend."""
    tally = Tally()
    tally.on_diagnostics(health("/policy_node: camera", received=12, refused_colon_stale=3), OURS)
    tally.on_diagnostics(health("/policy_node: policy", taken=9, replaced=3, overtaken=1, refused=2, notes="untrained"), OURS)
    summary = tally.summary(frames_played=43)
    assert summary["frames_received"] == 12 and summary["frames_inferred"] == 9
    assert summary["frames_refused"] == {"stale": 3, "too old or not decodable when the policy was free": 2}
    assert "untrained" in summary["notes"]
    lost = next(note for note in summary["notes"] if "12 of 43" in note)
    assert "too busy" in lost and "--rate" in lost and "Fast DDS" not in lost
    assert "no chunk came out of the whole recording; look at the log of policy_node" in summary["notes"]
    assert tally.view().dropped == 9


def test_a_run_that_was_cut_short_has_lost_nothing() -> None:
    tally = Tally()
    tally.on_diagnostics(health("/policy_node: camera", received=1), OURS)
    assert tally.summary(6, complete=False)["notes"] == [
        "the recording's end was not waited for; frames received and inferred are as policy_node last said them"]
    assert tally.summary(None, complete=False)["notes"] == []


def test_it_is_known_who_has_spoken_and_what_the_camera_found() -> None:
    tally = Tally()
    assert tally.heard("policy_node") == 0 and tally.camera_publishers() == 0
    tally.on_diagnostics(health("/policy_node: camera", publishers=0), OURS)
    tally.on_diagnostics(health("/policy_node: policy"), OURS)
    assert tally.heard("policy_node") == 1, "one message has all of a node's parts"
    tally.on_diagnostics(health("/policy_node: camera", publishers=1), OURS)
    assert (tally.heard("policy_node"), tally.heard("command_node"), tally.camera_publishers()) == (2, 0, 1)


def report(driver: int, reason: str = "", step: bool = False) -> CommandReport:
    return CommandReport(driver=driver, stop_reason=reason, step_started=step)


def test_a_fall_out_of_policy_is_the_headline() -> None:
    tally = Tally()
    for _ in range(6):
        tally.on_report(report(CommandReport.POLICY, step=True))
    tally.on_report(report(CommandReport.HOLD, "no fresh chunk for 0.6 s"))
    words = "POLICY fell to HOLD after 6 steps: no fresh chunk for 0.6 s"
    assert tally.summary(None)["headline"] == words, "on a robot, every fall counts"
    tally.on_chunk(chunk(1.0), 0.0)
    assert tally.summary(43)["headline"] == "", "the end of the recording: one chunk was still being computed"
    tally.on_chunk(chunk(1.0, fault="token 5 is no action"), 0.2)
    assert tally.summary(43)["headline"] == words, "the recording went on"
    tally.on_report(report(CommandReport.POLICY, step=True))
    assert tally.summary(43)["headline"] == tally.summary(None)["headline"] == "", "somebody resumed"
    tally.on_report(report(CommandReport.STOPPED, "emergency stop"))
    assert tally.summary(None)["headline"] == "POLICY fell to STOPPED after 7 steps: emergency stop"


def test_a_stop_on_purpose_is_no_fall() -> None:
    tally = Tally()
    tally.on_report(report(CommandReport.POLICY, step=True))
    tally.on_end()
    tally.on_report(report(CommandReport.HOLD, "HOLD was chosen"))
    assert tally.summary(None)["headline"] == ""


def test_a_frame_or_two_are_not_called_a_loss() -> None:
    tally = Tally()
    tally.on_diagnostics(health("/policy_node: camera", received=42), OURS)
    note = tally.summary(43)["notes"][0]
    assert note.startswith("policy_node received 42 of 43 frames (") and "fastdds" not in note


def test_steps_and_the_reasons_of_policy_are_counted() -> None:
    tally = Tally()
    hold = CommandReport(driver=CommandReport.HOLD, stop_reason="no driver was chosen yet")
    waiting = CommandReport(driver=CommandReport.POLICY, stop_reason="waiting")
    moving = CommandReport(driver=CommandReport.POLICY, step_started=True)
    moving.sent.translation.x, moving.sent.gripper = 0.01, 0.5
    for report in (hold, waiting, waiting, moving, waiting, CommandReport(stop_reason="the clock stands still"), hold):
        tally.on_report(report)
    summary = tally.summary(None)
    assert summary["steps_started"] == 1 and summary["stop_reasons"] == {"waiting": 2, "the clock stands still": 1}
    assert spoken(tally.view().delta) == "move +10.0 +0.0 +0.0 mm, turn +0.0 +0.0 +0.0 deg, gripper 50 % open"


def test_a_recording_without_a_step_says_why() -> None:
    tally = Tally()
    tally.on_chunk(chunk(1.0), 0.0)
    tally.on_report(CommandReport(driver=CommandReport.POLICY, stop_reason="chunk has the wrong frame"))
    assert tally.summary(10)["notes"] == ["1 chunks came, but command_node started no step: chunk has the wrong frame"]


def test_rules_and_refusals_come_from_the_nodes_own_words() -> None:
    tally = Tally()
    tally.on_diagnostics(health("/command_node: driver", count_chunks=9, count_steps=7, count_age=2), OURS)
    tally.on_diagnostics(health("/policy_node: policy", DiagnosticStatus.ERROR, "configure refused: no key"), OURS)
    tally.on_diagnostics(health("/other_node: policy", DiagnosticStatus.ERROR, "not ours"), OURS)
    assert tally.summary(None)["rules"] == {"age": 2} and tally.rule_count("age") == 2 and tally.rule_count("clock") == 0
    assert tally.refusal() == "configure refused: no key"
    assert tally.view().problems == ("/policy_node: policy: configure refused: no key",)


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.99) == 99.0 and percentile(values, 0.5) == 50.0 and percentile([7.0], 0.99) == 7.0
