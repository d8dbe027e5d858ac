"""What a recording says about how it was made: versions, robot profile, policy, checkpoint, and the parameters of every node.

Running nodes are asked for their parameters; of policy_node and command_node, where they do not answer, what is configured is said
instead, and the text says so. All values are texts, those of more than one line YAML.
"""

from __future__ import annotations

import hashlib
import os
import threading
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

ANSWER_S = 3.0
"""How long a node may take to answer before it is asked again."""

TRIES = 3

LONGEST_TEXT = 16 * 1024
"""A longer parameter (a robot description) is named by its length and hash: such a text is on a topic too."""


class Facts:
    """Collects while the graph changes. One thread calls it; the checkpoint is read on another."""

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
        return all(inquiry.ended for inquiry in self._inquiries.values()) and not (self._reading and self._reading.is_alive())

    def wait(self, longest_s: float) -> None:
        """Wait for the checkpoint, if it is being read."""
        if self._reading is not None:
            self._reading.join(longest_s)

    def texts(self) -> dict[str, str]:
        """All that is known now."""
        robot, profile = self._robot_profile()
        policy = self._policy()
        said = {
            "version": __version__,
            "ros": f"{os.environ.get('ROS_DISTRO', 'jazzy')}, {get_rmw_implementation_identifier()}",
            "clock": self.clock,
            "robot": robot,
            "robot_profile": profile,
            "policy": policy["name"],
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
        found = {name: _yaml(inquiry.values) for name, inquiry in sorted(self._inquiries.items()) if inquiry.values is not None}
        for name in ("policy_node", "command_node"):
            if f"{self._space}/{name}" not in found:
                path = share_folder() / "config" / f"{name}.yaml"
                found[f"{self._space}/{name}"] = f"# {name} did not answer; this is config/{name}.yaml\n{_read(path)}"
        return found

    def _robot_profile(self) -> tuple[str, str]:
        said = str(self._values("command_node").get("robot", ""))
        robot = self._robot or said or str(_configured("command_node").get("robot", ""))
        if not robot:
            return "", ""
        note = "" if self._robot or said else "# as configured: command_node did not answer\n"
        try:
            return robot, note + _read(profile_path(robot))
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
    """All parameters of one node, asked for without waiting. An answer that is lost is asked for again."""

    def __init__(self, node: Node, name: str) -> None:
        self._node, self._name = node, name
        self.values: dict[str, Any] | None = None
        self.ended = False
        self._tries, self._since_s = 0, monotonic()
        self._names: list[str] = []
        self._future: Any = None
        self._client: Any = node.create_client(ListParameters, f"{name}/list_parameters")

    def step(self) -> None:
        """Go on as far as answers have come."""
        if self.ended:
            return
        if self._future is not None and self._future.done():
            self._take(self._future.result())
        elif self._future is None and self._client.service_is_ready():
            ask = GetParameters.Request(names=self._names) if self._names else ListParameters.Request()
            self._future, self._since_s = self._client.call_async(ask), monotonic()
        elif monotonic() - self._since_s > ANSWER_S:
            self._tries, self._future, self._since_s = self._tries + 1, None, monotonic()
            if self._tries == TRIES:
                self.drop()

    def drop(self) -> None:
        """Stop asking."""
        self.ended = True
        if self._client is not None:
            self._node.destroy_client(self._client)
            self._client = None

    def _take(self, answer: Any) -> None:
        self._future, self._since_s = None, monotonic()
        if not self._names:
            self._names = sorted(answer.result.names)
            self._node.destroy_client(self._client)
            self._client = self._node.create_client(GetParameters, f"{self._name}/get_parameters")
            if self._names:
                return
            self.values = {}
        else:
            self.values = {name: _plain(parameter_value_to_python(value)) for name, value in zip(self._names, answer.values, strict=False)}
        self.drop()


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


def _configured(name: str) -> Mapping[str, Any]:
    content = yaml.safe_load(_read(share_folder() / "config" / f"{name}.yaml")) or {}
    return next((entry.get("ros__parameters", {}) for entry in content.values()), {})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return f"# {path} cannot be read here: {error}\n"


def _yaml(values: Any) -> str:
    return str(yaml.safe_dump(values, allow_unicode=True, width=120))
