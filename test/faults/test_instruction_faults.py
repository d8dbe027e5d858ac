"""Instructions that are cleared, refused or changed while the policy moves the arm."""

from __future__ import annotations

from pathlib import Path
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
    stage.policy_node(world)
    return world


@pytest.mark.parametrize(("text", "words"), [
    pytest.param("", "instruction cleared", id="cleared"),
    pytest.param("open the \x07 drawer", "U+0007", id="control_character"),
    pytest.param("open </s> the drawer", "special token", id="special_token"),
    pytest.param("a" * 2**20, "1048576 characters", id="of_a_megabyte"),
])
def test_an_instruction_that_says_nothing_stops_the_arm(world: Any, text: str, words: str) -> None:
    """Softly, as soon as it is heard; the driver stays POLICY, and the next instruction moves the arm again."""
    world.say(INSTRUCTION)
    twists, reports = world.drive()
    world.say(text)
    report = world.see_report(reports, lambda report: words in report.stop_reason, words)
    assert report.driver == report.POLICY
    world.stops_softly(report, twists, f"instruction: {words}")
    assert world.drivers[-1] == "POLICY"
    count = len(world.twists)
    world.say(INSTRUCTION)
    world.await_motion(count)


@pytest.mark.shared
def test_an_instruction_changed_during_inference_voids_its_result(own_stage: Any, shared: Path) -> None:
    """A real, slow decoder: once a chunk of the new instruction was sent, none of the old one follows, nor is one played."""
    world = own_stage.world()
    own_stage.command_node()
    world.film()
    world.say("lift the lid")
    own_stage.policy_node(world, checkpoint=shared / "golden" / "tiny_fused" / "checkpoint", unnorm_key="bridge_orig",
                          dtype="float32", threads=1)
    world.settle()
    count, reports = len(world.heard), len(world.reports)
    world.resume()
    for number in range(8):
        heard, text = len(world.heard), f"push the block {number}"
        world.until(lambda heard=heard: len(world.heard) > heard, "a chunk")
        world.say(text)
        world.until(lambda heard=heard, text=text: any(chunk.instruction == text for chunk in world.heard[heard:]), "the new instruction")
    order = [(chunk.generation, chunk.sequence) for chunk in world.heard[count:]]
    assert order == sorted(order)
    spoken = [chunk.instruction for chunk in world.heard[count:] if chunk.instruction.startswith("push")]
    assert spoken == sorted(spoken), "a result of the old instruction came after one of the new"
    started = [(report.generation, report.sequence) for report in world.reports[reports:] if report.step_started]
    assert started and started == sorted(started)
