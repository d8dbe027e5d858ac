"""The worker thread: newest frame wins, results can be overtaken, the last word is a stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from openvla_ros.contract import Action, ActionChunk, ChunkIdentity

pytest.importorskip("rclpy", reason="openvla_ros.ros needs rclpy")
from openvla_ros.ros.inference import Inference, Job

STEP = Action(np.array([0.01, 0.0, 0.0]), np.zeros(3), 1.0)
DEADLINE_S = 10.0


class Desk:
    """A policy whose answer the test lets go when it wants, and everything that was published."""

    def __init__(self) -> None:
        self.started: list[Job[str]] = []
        self.published: list[tuple[ActionChunk, ChunkIdentity]] = []
        self.begun, self.go, self.out = threading.Semaphore(0), threading.Semaphore(0), threading.Semaphore(0)
        self.usable = True

    def act(self, job: Job[str]) -> ActionChunk | None:
        self.started.append(job)
        self.begun.release()
        assert self.go.acquire(timeout=DEADLINE_S)
        return ActionChunk((STEP,), 0.2, job.stamp_ns, job.instruction) if self.usable else None

    def publish(self, chunk: ActionChunk, identity: ChunkIdentity) -> None:
        self.published.append((chunk, identity))
        self.out.release()


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def inference(desk: Desk) -> Iterator[Inference[str]]:
    worker = Inference(desk.act, desk.publish, session=7, step_s=0.2)
    yield worker
    for _ in range(5):
        desk.go.release()
    assert worker.end(DEADLINE_S)


def start(inference: Inference[str]) -> None:
    inference.instruct("put the spoon on the towel", 0)
    inference.open()


def test_newest_frame_wins_and_the_ones_between_are_counted(desk: Desk, inference: Inference[str]) -> None:
    start(inference)
    inference.offer("first", 1)
    assert desk.begun.acquire(timeout=DEADLINE_S)
    for stamp_ns, frame in enumerate(("second", "third", "fourth"), start=2):
        inference.offer(frame, stamp_ns)
    desk.go.release()
    assert desk.begun.acquire(timeout=DEADLINE_S)
    assert [job.frame for job in desk.started] == ["first", "fourth"]
    assert inference.counts.replaced == 2
    desk.go.release()
    assert desk.out.acquire(timeout=DEADLINE_S) and desk.out.acquire(timeout=DEADLINE_S)
    assert [chunk.observation_stamp_ns for chunk, _ in desk.published] == [1, 4]
    assert [identity.sequence for _, identity in desk.published] == [1, 2]
    assert {identity.session for _, identity in desk.published} == {7}


def test_result_of_an_older_instruction_is_dropped(desk: Desk, inference: Inference[str]) -> None:
    start(inference)
    inference.offer("old", 1)
    assert desk.begun.acquire(timeout=DEADLINE_S)
    inference.instruct("open the drawer", 2)
    inference.offer("new", 3)
    desk.go.release()
    assert desk.begun.acquire(timeout=DEADLINE_S)
    desk.go.release()
    assert desk.out.acquire(timeout=DEADLINE_S)
    assert [(chunk.instruction, chunk.observation_stamp_ns) for chunk, _ in desk.published] == [("open the drawer", 3)]
    assert inference.counts.overtaken == 1


def test_a_waiting_frame_of_the_old_generation_is_not_used(desk: Desk, inference: Inference[str]) -> None:
    start(inference)
    inference.offer("running", 1)
    assert desk.begun.acquire(timeout=DEADLINE_S)
    inference.offer("waiting", 2)
    inference.supersede("driver is POLICY", 2)
    inference.offer("after the switch", 3)
    desk.go.release()
    assert desk.begun.acquire(timeout=DEADLINE_S)
    assert [job.frame for job in desk.started] == ["running", "after the switch"]


def test_clearing_the_instruction_sends_a_stop_newer_than_everything(desk: Desk, inference: Inference[str]) -> None:
    start(inference)
    inference.offer("frame", 1)
    assert desk.begun.acquire(timeout=DEADLINE_S)
    inference.instruct("", 5)
    desk.go.release()
    assert desk.out.acquire(timeout=DEADLINE_S)
    (stop, identity), = desk.published
    assert stop.steps == () and stop.fault == "instruction cleared" and stop.observation_stamp_ns == 5
    assert identity.generation == inference.generation > desk.started[0].generation


def test_nothing_is_published_before_open_or_after_close(desk: Desk, inference: Inference[str]) -> None:
    inference.instruct("put the spoon on the towel", 0)
    inference.offer("too early", 1)
    inference.open()
    inference.offer("in time", 2)
    assert desk.begun.acquire(timeout=DEADLINE_S)
    inference.close("policy deactivated", 3)
    inference.close("again", 4)
    inference.offer("too late", 5)
    desk.go.release()
    assert inference.end(DEADLINE_S)
    assert [job.frame for job in desk.started] == ["in time"]
    assert [(chunk.steps, chunk.fault) for chunk, _ in desk.published] == [((), "policy deactivated")]


def test_same_instruction_again_changes_nothing(desk: Desk, inference: Inference[str]) -> None:
    start(inference)
    generation = inference.generation
    inference.instruct("put the spoon on the towel", 9)
    assert inference.generation == generation and desk.published == []


def test_a_frame_that_cannot_be_used_is_counted_and_publishes_nothing(desk: Desk, inference: Inference[str]) -> None:
    desk.usable = False
    start(inference)
    inference.offer("damaged", 1)
    assert desk.begun.acquire(timeout=DEADLINE_S)
    desk.go.release()
    assert inference.end(DEADLINE_S)
    assert desk.published == [] and inference.counts.refused == 1


def test_without_an_instruction_no_frame_is_looked_at(desk: Desk, inference: Inference[str]) -> None:
    inference.open()
    inference.offer("frame", 1)
    assert inference.end(DEADLINE_S)
    assert desk.started == [] and desk.published == []
