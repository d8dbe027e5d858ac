"""Service calls that nobody waits for: a conversation is written as a generator, and runs while the executor spins."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from rclpy.client import Client
from rclpy.clock import Clock, ClockType
from rclpy.task import Future

from openvla_ros.errors import HandoffRefused

ANSWER_S = 2.0
"""A service that has not answered by then is not going to."""

VALID_S = 5.0
"""What was settled is settled for so long; whoever takes over later asks again."""

SECOND_NS = 1_000_000_000


class Question(NamedTuple):
    """One service call. remedy: what to do when the service is not there or does not answer."""

    client: Client
    request: Any
    remedy: str


Conversation = Generator[Question, Any, None]
"""Yields questions, is sent their answers, and returns when all is well. Raises HandoffRefused when it is not."""


class Errand:
    """One conversation at a time. All methods, and the answers, come on the node's only executor thread."""

    def __init__(self, begin: Callable[[], Conversation]) -> None:
        self._begin = begin
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._conversation: Conversation | None = None
        self._question: Question | None = None
        self._answer: Future | None = None
        self._asked_ns = 0
        self._settled_ns: int | None = None
        self._refusal: HandoffRefused | None = None

    def require(self) -> None:
        """Return when the conversation has come to a good end. Raises HandoffRefused: why not, or that it is not ready yet.

        The first call begins it. A refusal is raised once; the call after it begins anew.
        """
        if self._settled_ns is not None and self._clock.now().nanoseconds - self._settled_ns <= VALID_S * SECOND_NS:
            return
        if self._conversation is None and self._refusal is None:
            self._settled_ns, self._conversation = None, self._begin()
            self._go_on(None)
        elif self._question is not None and self._clock.now().nanoseconds - self._asked_ns > ANSWER_S * SECOND_NS:
            self._give_up(f"{self._question.client.srv_name} did not answer within {ANSWER_S:g} s. {self._question.remedy}")
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise refusal
        if self._question is not None:
            raise HandoffRefused(f"not ready yet: waiting for {self._question.client.srv_name}. Try again.")

    def _go_on(self, answer: Any) -> None:
        """Hand the conversation its answer and ask what it asks next."""
        assert self._conversation is not None
        self._question = self._answer = None
        try:
            self._question = self._conversation.send(answer)
        except StopIteration:
            self._conversation, self._settled_ns = None, self._clock.now().nanoseconds
            return
        except HandoffRefused as refusal:
            self._conversation, self._refusal = None, refusal
            return
        if not self._question.client.service_is_ready():
            self._give_up(f"{self._question.client.srv_name} is not there. {self._question.remedy}")
            return
        self._asked_ns = self._clock.now().nanoseconds
        self._answer = self._question.client.call_async(self._question.request)
        self._answer.add_done_callback(self._on_answer)

    def _on_answer(self, future: Future) -> None:
        if future is self._answer:  # else it was given up meanwhile
            self._go_on(future.result())

    def _give_up(self, reason: str) -> None:
        if self._question is not None and self._answer is not None:
            self._question.client.remove_pending_request(self._answer)
        self._conversation = self._question = self._answer = None
        self._refusal = HandoffRefused(reason)
