"""A ROS domain of its own on this computer, the processes under test in it, and a witness who notes what they say and when."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from openvla_msgs.msg import ActionChunk
from openvla_msgs.srv import SetDriver
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from openvla_ros.benchmark.overhead import Answer
from openvla_ros.cli.surroundings import surroundings
from openvla_ros.errors import ConfigurationError, OpenvlaRosError
from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, to_ns
from openvla_ros.ros.processes import Part, Process
from openvla_ros.ros.supervisor import ORDERLY_CODES, PartDied, story
from openvla_ros.ros.transport import PROFILE_VARIABLES

TICK_S = 0.01
"""How often a condition is looked at."""

PATIENCE_S = 120.0
"""Longest wait for anything, loading a small model included."""

ASK_AGAIN_S = 5.0
"""A service may lose its answer before its reader matched: the question is asked again after so long."""

EVERYTHING = QoSProfile(depth=1000)
"""Reliable, and deep enough for a witness that was not scheduled for a while."""


class Witness(Node):  # type: ignore[misc]
    """Its callbacks run on the lab's thread; the lists only grow."""

    def __init__(self, context: rclpy.Context) -> None:
        super().__init__("openvla_ros_bench", context=context, use_global_arguments=False)
        self.answers: list[Answer] = []
        self.ticks_ns: list[int] = []  # stamps of the commands: when command_node's tick began
        self.health: dict[str, Mapping[str, str]] = {}  # "/policy_node: policy" -> the newest numbers behind it
        self.driver = ""
        # rclpy takes a second argument for what the middleware knows of a message; its types do not say so.
        self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, EVERYTHING)  # type: ignore[arg-type]
        self.create_subscription(TwistStamped, "delta_twist_cmds", self._on_twist, EVERYTHING)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, EVERYTHING)
        self.create_subscription(String, "driver", self._on_driver, LATCHED)
        self.drivers = self.create_client(SetDriver, "set_driver")

    def _on_chunk(self, message: ActionChunk, info: Mapping[str, int]) -> None:
        stage_ms = dict(zip(message.stage_names, map(float, message.stage_ms), strict=False))
        self.answers.append(Answer(to_ns(message.header.stamp), info["source_timestamp"], info["received_timestamp"], stage_ms,
                                   message.fault))

    def _on_twist(self, message: TwistStamped) -> None:
        self.ticks_ns.append(to_ns(message.header.stamp))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.health[status.name] = {pair.key: pair.value for pair in status.values}

    def _on_driver(self, message: String) -> None:
        self.driver = message.data

    def now_ns(self) -> int:
        """What the nodes take for now."""
        return int(self.get_clock().now().nanoseconds)


class Lab:
    """A context: left, nothing of it lives on and the environment is what it was. Its methods are called on the thread that made it."""

    def __init__(self, folder: Path, fastdds: bool = True) -> None:
        """folder: for the logs. fastdds: use the user's Fast DDS profile, or the shipped one; false: the middleware's defaults."""
        self._folder, self._fastdds = folder, fastdds
        self._processes: list[Process] = []
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> Lab:
        self._set({**surroundings(private=True, domain=None), "ROS_LOG_DIR": str(self._folder)})
        if not self._fastdds:
            self._set(dict.fromkeys(PROFILE_VARIABLES))
        self._context = rclpy.Context()
        rclpy.init(context=self._context, args=[])
        self.witness = Witness(self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.witness)
        self._thread = threading.Thread(target=self._spin, name="witness", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in reversed(self._processes):
            process.stop()
        self._executor.shutdown()
        self._thread.join()
        self.witness.destroy_node()
        rclpy.shutdown(context=self._context)
        self._set(self._before)

    @property
    def profile(self) -> str:
        """The Fast DDS profile that holds in here; empty: none."""
        return next((os.environ[name] for name in PROFILE_VARIABLES if os.environ.get(name)), "")

    def start(self, name: str, entry: str, parameters: Mapping[str, object] | None = None, namespace: str = "") -> Process:
        """Another process, `entry` as "module:function", with ROS parameters."""
        words = ["--ros-args", *(word for key, value in (parameters or {}).items() for word in ("-p", f"{key}:={as_yaml(value)}"))]
        if namespace:
            words += ["-r", f"__ns:={namespace}"]
        process = Process(Part(name, entry, tuple(words)), self._folder)
        self._processes.append(process)
        return process

    def stop(self, process: Process) -> None:
        """End a process. Raises PartDied when it does not leave as it should."""
        self._processes.remove(process)
        if not process.stop() or process.exit_code not in ORDERLY_CODES:
            raise PartDied(story(process))

    def start_policy(self, checkpoint: str, instruction: str, namespace: str = "", **parameters: object) -> Process:
        """policy_node, configured and active, with an instruction. Raises ConfigurationError when it refuses."""
        process = self.start("policy_node", "openvla_ros.ros.policy_node:main", {"checkpoint": checkpoint, **parameters}, namespace)
        self.witness.create_publisher(String, f"{namespace}/instruction" if namespace else "instruction", LATCHED).publish(
            String(data=instruction))
        transitions = self.witness.create_client(ChangeState, f"{namespace}/policy_node/change_state")
        for wish, state in ((Transition.TRANSITION_CONFIGURE, "inactive"), (Transition.TRANSITION_ACTIVATE, "active")):
            self._transit(process, transitions, wish, f"{namespace}/policy_node: policy", state)
        return process

    def _transit(self, process: Process, transitions: Any, wish: int, part: str, state: str) -> None:
        self.wait(transitions.service_is_ready, "policy_node")
        future = transitions.call_async(ChangeState.Request(transition=Transition(id=wish)))
        # Its own word counts too: an answer may be lost, and the same transition cannot be asked for twice.
        self.wait(lambda: future.done() or self.witness.health.get(part, {}).get("state") == state, f"policy_node to be {state}")
        if future.done() and not future.result().success:
            raise ConfigurationError("\n".join(["policy_node refused to be made ready:", *process.tail()]))

    def wait(self, condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
        """Until a condition holds. Raises PartDied when a process ended, OpenvlaRosError when nothing happened for patience_s."""
        until_s = monotonic() + patience_s
        while not condition():
            self.look()
            if monotonic() > until_s:
                raise OpenvlaRosError(f"waited {patience_s:g} s for {what} in vain. {tails(self._processes)}")
            sleep(TICK_S)

    def rest(self, seconds: float) -> None:
        """Let time pass while everything runs."""
        until_s = monotonic() + seconds
        while (left_s := until_s - monotonic()) > 0:
            self.look()
            sleep(min(left_s, 0.2))

    def look(self) -> None:
        """Raises PartDied when a process has ended."""
        for process in self._processes:
            if process.exit_code is not None:
                raise PartDied(story(process))

    def ask(self, client: Any, request: Any, what: str) -> Any:
        """The answer of a service that may be asked twice."""
        self.wait(client.service_is_ready, what)
        futures, asked_s = [client.call_async(request)], monotonic()

        def answered() -> bool:
            nonlocal asked_s
            if monotonic() - asked_s > ASK_AGAIN_S:
                futures.append(client.call_async(request))
                asked_s = monotonic()
            return any(future.done() for future in futures)

        self.wait(answered, what)
        return next(future for future in futures if future.done()).result()

    def hand(self) -> Any:
        """A publisher of chunks, in place of a policy."""
        return self.witness.create_publisher(ActionChunk, "action_chunk", NEWEST_RELIABLE)

    def _set(self, values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            self._before.setdefault(name, os.environ.get(name))
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()


def as_yaml(value: object) -> str:
    """A parameter's value on a command line. Texts are quoted, or ROS would make a number of a name such as 1."""
    if isinstance(value, bool):
        return str(value).lower()
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def tails(processes: Sequence[Process]) -> str:
    """What the processes said last."""
    return "\n".join(line for process in processes for line in (f"{process.name}:", *process.tail(5)))
