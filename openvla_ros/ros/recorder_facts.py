"""What a recording says about how it was made: versions, robot profile, policy, checkpoint, and the parameters of every node.

Running nodes are asked for their parameters for as long as they do not answer. Nothing is guessed: what policy_node and command_node
have not said is "unknown". All values are texts, those of more than one line YAML.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import yaml
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.utilities import get_rmw_implementation_identifier

from openvla_ros import __version__
from openvla_ros.bags.mcap_file import FACTS
from openvla_ros.errors import CheckpointError, ConfigurationError, OpenvlaRosError
from openvla_ros.policy.catalogue import DEFAULT, SCRIPTED, default_checkpoint, read_profile
from openvla_ros.policy.fingerprint import checkpoint_digest
from openvla_ros.ros.profile import profile_path
from openvla_ros.share import share_folder

ANSWER_S, LONGEST_S = 3.0, 30.0
"""How long a node may take to answer before it is asked again: at first, and at most. Each time it may take twice as long."""

PATIENCE_S = 9.0
"""So long after a node was found its answer is still expected soon, and worth a moment at the end of a recording."""

OPEN_QUESTIONS = 3
"""So many questions to a node are kept open: an answer to an earlier one counts too, however late it comes."""

LONGEST_TEXT = 16 * 1024
"""A longer parameter (a robot description) is named by its length and hash: such a text is on a topic too."""


class Facts:
    """Collects while the graph changes. One thread calls `look`, any thread the others; the checkpoint is read on one of its own."""

    def __init__(self, node: Node, robot: str = "", checkpoint: str = "") -> None:
        """robot, checkpoint: said instead of what command_node and policy_node say."""
        self._node, self._robot, self._checkpoint = node, robot, checkpoint
        self._space = node.get_namespace().rstrip("/")
        self._inquiries: dict[str, Inquiry] = {}
        self._digests: dict[str, str] = {}  # checkpoint -> digest, or why there is none
        self._reading: threading.Thread | None = None
        self._seen: object = None
        self.clock = ""

    def look(self) -> bool:
        """Ask nodes that are new, take what was answered; true when something was learned. It never waits: call it often."""
        own = (self._node.get_name(), self._node.get_namespace())
        present = {f"{space.rstrip('/')}/{name}" for name, space in self._node.get_node_names_and_namespaces()
                   if (name, space) != own and not name.startswith("_")}
        for gone in self._inquiries.keys() - present:
            self._inquiries.pop(gone).drop()  # asked again when it comes back, perhaps with other values
        for name in present - self._inquiries.keys():
            self._inquiries[name] = Inquiry(self._node, name)
        for inquiry in self._inquiries.values():
            inquiry.step()
        checkpoint = self._policy()["checkpoint"]
        if checkpoint and checkpoint not in self._digests and (self._reading is None or not self._reading.is_alive()):
            self._reading = threading.Thread(target=self._read_checkpoint, args=(checkpoint,), name="checkpoint", daemon=True)
            self._reading.start()
        seen = self.clock, dict(self._digests), {name for name, inquiry in self._inquiries.items() if inquiry.values is not None}
        before, self._seen = self._seen, seen
        return seen != before

    def settled(self) -> bool:
        """Whether nothing more is expected from the nodes that are there, nor from the checkpoint."""
        expected = any(inquiry.expected for inquiry in list(self._inquiries.values()))
        return not (expected or (self._reading and self._reading.is_alive()))

    def texts(self) -> dict[str, str]:
        """All that is known now."""
        robot, profile = self._robot_profile()
        policy = self._policy()
        said = {
            "version": __version__,
            "ros": f"{os.environ.get('ROS_DISTRO', 'jazzy')}, {get_rmw_implementation_identifier()}",
            "clock": self.clock,
            "robot": robot or "unknown: command_node did not answer",
            "robot_profile": profile,
            "policy": policy["name"] or "unknown: policy_node did not answer",
            "policy_profile": policy["profile"],
            "checkpoint": policy["checkpoint"],
            "checkpoint_digest": self._digests.get(policy["checkpoint"], ""),
            **{f"parameters.{name}": text for name, text in self._parameters().items()},
        }
        return {f"{FACTS}.{name}": text for name, text in said.items() if text}

    def _values(self, name: str) -> Mapping[str, Any]:
        inquiry = self._inquiries.get(f"{self._space}/{name}")
        return inquiry.values if inquiry is not None and inquiry.values is not None else {}

    def _parameters(self) -> dict[str, str]:
        unknown = {f"{self._space}/{name}": f"unknown: {name} did not answer" for name in ("policy_node", "command_node")}
        said = {name: _yaml(inquiry.values) for name, inquiry in sorted(list(self._inquiries.items())) if inquiry.values is not None}
        return {**unknown, **said}

    def _robot_profile(self) -> tuple[str, str]:
        robot = self._robot or str(self._values("command_node").get("robot", ""))
        if not robot:
            return "", ""
        try:
            return robot, _read(profile_path(robot))
        except ConfigurationError as error:
            return robot, f"# {error}\n"

    def _policy(self) -> dict[str, str]:
        """Its profile and checkpoint. Without a running policy_node only what was given."""
        values = self._values("policy_node")
        name, checkpoint = str(values.get("policy", "")), self._checkpoint or str(values.get("checkpoint", ""))
        profile = ""
        if name:
            path = Path(name).expanduser() if name.endswith(".yaml") else share_folder() / "config" / "policies" / f"{name}.yaml"
            profile = _read(path)
            try:
                checkpoint = checkpoint or read_profile(name).checkpoint
            except OpenvlaRosError as error:
                profile = f"# {error}\n{profile}"
        return {"name": name, "profile": profile, "checkpoint": checkpoint}

    def _read_checkpoint(self, checkpoint: str) -> None:
        try:
            folder = _folder(checkpoint)
            self._digests[checkpoint] = "" if folder is None else checkpoint_digest(folder)
        except CheckpointError as error:
            self._digests[checkpoint] = f"none: {error}"


class Inquiry:
    """All parameters of one node, asked for without waiting, and again while no answer comes. One that comes late counts too.

    A client stays until its questions are answered: a node that answers a client that is no more waits for it up to 0.1 s, and so does
    its arm.
    """

    def __init__(self, node: Node, name: str) -> None:
        self._node, self._name = node, name
        self.values: dict[str, Any] | None = None
        self._found_s = monotonic()
        self._asked: dict[Any, deque[Any]] = {}  # client -> what was asked through it, the newest last
        self._begin(ListParameters, "list_parameters", ListParameters.Request())

    def _begin(self, kind: Any, service: str, question: Any) -> None:
        self._client, self._question = self._node.create_client(kind, f"{self._name}/{service}"), question
        self._asked[self._client] = deque()
        self._again_s: float = 0.0
        self._answer_s: float = ANSWER_S

    @property
    def expected(self) -> bool:
        """Whether an answer is likely to come soon."""
        return self.values is None and monotonic() - self._found_s < PATIENCE_S

    def step(self) -> None:
        """Go on as far as answers have come."""
        if self.values is None:
            self._ask()
        for client, futures in list(self._asked.items()):
            if (self.values is not None or client is not self._client) and all(future.done() for future in futures):
                self._node.destroy_client(client)
                del self._asked[client]

    def drop(self) -> None:
        """The node has gone."""
        for client in self._asked:
            self._node.destroy_client(client)

    def _ask(self) -> None:
        futures = self._asked[self._client]
        answer = next((future.result() for future in futures if future.done()), None)
        if isinstance(answer, ListParameters.Response):
            self._begin(GetParameters, "get_parameters", GetParameters.Request(names=sorted(answer.result.names)))
        elif answer is not None:
            values = map(parameter_value_to_python, answer.values)
            self.values = {name: _plain(value) for name, value in zip(self._question.names, values, strict=False)}
        elif monotonic() >= self._again_s and self._client.service_is_ready():
            if len(futures) == OPEN_QUESTIONS:
                self._client.remove_pending_request(futures.popleft())
            futures.append(self._client.call_async(self._question))
            self._again_s, self._answer_s = monotonic() + self._answer_s, min(2.0 * self._answer_s, LONGEST_S)


def _plain(value: Any) -> Any:
    """A value that YAML has, short enough for a recording's metadata."""
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"({len(value)} characters, sha256 {hashlib.sha256(value.encode()).hexdigest()[:16]})"
    return value if isinstance(value, (bool, int, float, str, type(None))) else [_plain(entry) for entry in value]


def _folder(checkpoint: str) -> Path | None:
    """Where a checkpoint lies on this computer; None for what has no files. Nothing is fetched. Raises CheckpointError."""
    if checkpoint == SCRIPTED:
        return None
    if checkpoint == DEFAULT:
        return default_checkpoint()
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download  # late: a robot computer has neither it nor the weights

        return Path(snapshot_download(checkpoint, local_files_only=True))
    except Exception as error:  # the hub's library has many kinds, and some for names that are none
        raise CheckpointError(f"checkpoint {checkpoint!r} is not on this computer") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return f"# {path} cannot be read here: {error}\n"


def _yaml(values: Any) -> str:
    return str(yaml.safe_dump(values, allow_unicode=True, width=120))
