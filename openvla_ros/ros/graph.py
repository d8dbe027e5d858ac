"""What `doctor` sees of a running system: nodes, publishers and their QoS, camera stamps, states. It listens and asks; it
changes nothing and publishes nothing. A system that does not run is a note, not trouble.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from openvla_ros.contract import Check
from openvla_ros.observation.assemble import FrameJudge, FrameLimits
from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, to_ns
from openvla_ros.ros.transport import PROFILE_VARIABLES

DISCOVERY_S = 1.5
"""Discovery is over when nothing new was seen for so long. Processes on an idle computer find each other in 0.05 to 0.3 s."""

DISCOVERY_LIMIT_S = 15.0
"""Longest time for it, however much comes and goes."""

ANSWER_S = 3.0
"""Longest wait for a service of a node that is there."""

CAMERA_TYPES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}
COMMAND_TYPES = ("geometry_msgs/msg/TwistStamped", "trajectory_msgs/msg/JointTrajectory")
SHARED_PARAMETERS = ("use_sim_time", "base_frame", "max_observation_age_s")

SENSOR = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)


@dataclass(frozen=True)
class Input:
    """A topic that our nodes read: its type and the QoS of the readers; a publisher must suit one of them."""

    name: str
    kind: str
    readers: tuple[QoSProfile, ...]


INPUTS = (
    Input("instruction", "std_msgs/msg/String", (LATCHED, NEWEST_RELIABLE)),
    Input("action_chunk", "openvla_msgs/msg/ActionChunk", (NEWEST_RELIABLE,)),
    Input("driver", "std_msgs/msg/String", (LATCHED,)),
    Input("joint_states", "sensor_msgs/msg/JointState", (SENSOR,)),
)


def live_checks(seconds: float, namespace: str = "", image_topic: str = "") -> list[Check]:
    """Listen for `seconds` (after discovery) in the ROS domain of this process, and judge what is there."""
    rclpy.init()
    try:
        visitor = Visitor(namespace)
        try:
            return visitor.look(seconds, image_topic)
        finally:
            visitor.destroy_node()
    finally:
        rclpy.try_shutdown()


class Visitor(Node):
    """A node that subscribes and asks. One thread uses it."""

    def __init__(self, namespace: str) -> None:
        super().__init__(f"openvla_ros_doctor_{os.getpid()}", namespace=namespace or None)
        self._latched: dict[str, str] = {}
        self._health: dict[str, tuple[int, str]] = {}
        self._judge = FrameJudge(FrameLimits())
        self._simulated = False
        for name in ("driver", "instruction"):
            self.create_subscription(String, name, self._remember(name), LATCHED)
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def look(self, seconds: float, image_topic: str) -> list[Check]:
        """All checks of the running system."""
        self._discover()
        camera = self._listen(seconds, image_topic)
        if camera != self._camera_topic(image_topic) or self._clock_is_simulated() != self._simulated:
            camera = self._listen(seconds, image_topic)  # what was listened to was found only meanwhile: a busy computer
        checks = [*self._node_checks(), *self._camera_checks(camera, image_topic), *self._clock_checks(), *self._input_checks()]
        return [*checks, *self._arm_checks(), *self._latched_checks(), *self._diagnostics_checks()]

    # ------------------------------------------------------------------ listening

    def _spin(self, seconds: float) -> None:
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            rclpy.spin_once(self, timeout_sec=left)

    def _discover(self) -> None:
        """Wait until the picture of nodes and topics stands still."""
        seen, now = None, monotonic()
        changed_at, until = now, now + DISCOVERY_LIMIT_S
        while now - changed_at < DISCOVERY_S and now < until:
            self._spin(0.1)
            now = monotonic()
            present = (sorted(self.get_node_names_and_namespaces()),
                       sorted((topic, self.count_publishers(topic)) for topic, _ in self.get_topic_names_and_types()))
            if present != seen:
                seen, changed_at = present, now

    def _listen(self, seconds: float, image_topic: str) -> tuple[str, type] | None:
        """Hear the camera, on the clock of the system, with the QoS that policy_node would use. Returns its topic and type."""
        self._simulated = self._clock_is_simulated()
        self.set_parameters([Parameter("use_sim_time", value=self._simulated)])
        self._judge = FrameJudge(FrameLimits())
        camera = self._camera_topic(image_topic)
        subscription = None
        if camera is not None:
            offers = [info.qos_profile.reliability for info in self.get_publishers_info_by_topic(camera[0])]
            reliable = bool(offers) and all(offer == ReliabilityPolicy.RELIABLE for offer in offers)
            subscription = self.create_subscription(camera[1], camera[0], self._on_image, NEWEST_RELIABLE if reliable else SENSOR)
        self._spin(seconds)
        self._seen = self._judge.statistics(self.get_clock().now().nanoseconds)  # now: the checks that follow take their time
        if subscription is not None:
            self.destroy_subscription(subscription)
        return camera

    def _clock_is_simulated(self) -> bool:
        return bool(self.get_publishers_info_by_topic("/clock"))

    def _remember(self, name: str) -> Callable[[String], None]:
        return lambda message: self._latched.__setitem__(name, message.data)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._health[status.name] = (int.from_bytes(status.level, "little"), status.message)

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._judge.judge(to_ns(message.header.stamp), self.get_clock().now().nanoseconds, message.data)

    # ------------------------------------------------------------------ the graph

    def _is_here(self, name: str) -> bool:
        return (name, self.get_namespace()) in self.get_node_names_and_namespaces()

    def _path(self, name: str) -> str:
        return f"{self.get_namespace().rstrip('/')}/{name}"

    def _types(self, topic: str) -> Sequence[str]:
        return dict(self.get_topic_names_and_types()).get(topic, ())

    def _camera_topic(self, asked: str) -> tuple[str, type] | None:
        """The topic to listen to: the one asked for, else what policy_node reads, else ours if somebody publishes it."""
        wanted = [self.resolve_topic_name(asked)] if asked else []
        if not asked and self._is_here("policy_node"):
            reads = self.get_subscriber_names_and_types_by_node("policy_node", self.get_namespace())
            wanted = [topic for topic, kinds in reads if set(kinds) & set(CAMERA_TYPES)]
        for topic in wanted or [self.resolve_topic_name(name) for name in ("image", "image/compressed")]:
            for kind in self._types(topic):
                if kind in CAMERA_TYPES:
                    return topic, CAMERA_TYPES[kind]
        return None

    def _ask(self, service: type, name: str, request: Any) -> Any | None:
        """The answer of a service, or None when none came in time."""
        client = self.create_client(service, name)
        try:
            if not client.wait_for_service(timeout_sec=ANSWER_S):
                return None
            future = client.call_async(request)
            rclpy.spin_until_future_complete(self, future, timeout_sec=ANSWER_S)
            return future.result() if future.done() else None
        finally:
            self.destroy_client(client)

    # ------------------------------------------------------------------ verdicts

    def _node_checks(self) -> list[Check]:
        here = Counter(self.get_node_names_and_namespaces())
        checks = []
        for name in ("policy_node", "command_node"):
            count = here[(name, self.get_namespace())]
            others = sorted({space for node, space in here if node == name and space != self.get_namespace()})
            if count > 1:
                checks.append(Check(name, False, f"{count} nodes have the name {self._path(name)}. Stop all but one, or give each a "
                                    "namespace."))
            elif count == 0:
                elsewhere = f"; there is one in {', '.join(others)} (use --namespace)" if others else ""
                checks.append(Check(name, True, f"not running as {self._path(name)}{elsewhere}. Start: openvla-ros run, or ros2 launch.",
                                    note=True))
            elif name == "policy_node":
                checks.append(self._lifecycle_check())
            else:
                checks.append(Check(name, True, f"{self._path(name)} is running"))
        if all(here[(name, self.get_namespace())] == 1 for name in ("policy_node", "command_node")):
            checks += self._agreement_checks()
        return checks

    def _lifecycle_check(self) -> Check:
        answer = self._ask(GetState, "policy_node/get_state", GetState.Request())
        if answer is None:
            return Check("policy_node", False, f"{self._path('policy_node')} does not say its state within {ANSWER_S:g} s. It hangs or the "
                         "computer is overloaded; look at its log.")
        state = answer.current_state.label
        hints = {"unconfigured": ". Configure it: ros2 lifecycle set policy_node configure (its diagnostics say why it refused)",
                 "inactive": ". Activate it: ros2 lifecycle set policy_node activate"}
        return Check("policy_node", state not in ("finalized", "errorprocessing"),
                     f"{self._path('policy_node')} is {state}{hints.get(state, '')}", note=state in hints)

    def _agreement_checks(self) -> list[Check]:
        """The two nodes must agree on clock, frame and age, or every chunk is refused."""
        values = {}
        for name in ("policy_node", "command_node"):
            answer = self._ask(GetParameters, f"{name}/get_parameters", GetParameters.Request(names=list(SHARED_PARAMETERS)))
            if answer is None or len(answer.values) != len(SHARED_PARAMETERS):
                continue  # a node that does not have one of them answers with none at all
            values[name] = [parameter_value_to_python(value) for value in answer.values]
        if len(values) < 2:
            return []
        policy, command = values["policy_node"], values["command_node"]
        return [Check(f"both nodes: {parameter}", mine == theirs,
                      str(mine) if mine == theirs else f"policy_node has {mine!r}, command_node {theirs!r}. Give both the same value.")
                for parameter, mine, theirs in zip(SHARED_PARAMETERS, policy, command, strict=True)
                if theirs != ""]  # command_node's frame: empty means that of its robot profile, which cannot be seen from here

    def _camera_checks(self, camera: tuple[str, type] | None, asked: str) -> list[Check]:
        if camera is None:
            present = sorted(topic for topic, kinds in self.get_topic_names_and_types() if set(kinds) & set(CAMERA_TYPES))
            found = f" Pictures are on {', '.join(present)}: name one with --image-topic." if present else ""
            wanted = self.resolve_topic_name(asked) if asked else f"{self._path('image')} or {self._path('image/compressed')}"
            return [Check("camera", not (asked or self._is_here("policy_node")), f"nobody publishes {wanted}.{found}"
                          + ("" if present else " Start the camera driver."), note=True)]
        topic, kind = camera
        publishers = self.get_publishers_info_by_topic(topic)
        name = f"camera {topic}"
        if not publishers:
            return [Check(name, False, "policy_node listens, but nobody publishes. Start the camera driver, or remap the topic 'image'.")]
        seen = self._seen
        numbers = [f"{seen.received} frames"]
        if seen.rate_hz is not None:
            numbers.append(f"{seen.rate_hz:.1f} Hz")
        if seen.age_s is not None:
            numbers.append(f"{1000 * seen.age_s:.0f} ms old when they come")
        if seen.lost_fraction:
            numbers.append(f"{100 * seen.lost_fraction:.0f} % lost")
        numbers += [f"{count} x {reason.value}" for reason, count in seen.refused.items()]
        checks = [Check(name, seen.healthy, f"{kind.__name__}, {', '.join(numbers)}. {seen.remedy}".rstrip(". "))]
        if len(publishers) > 1:
            checks.append(Check(f"{name} publishers", False, f"{len(publishers)}: {endpoints(publishers)}. Two cameras on one topic "
                                "alternate between two views; stop or remap one."))
        profile = any(os.environ.get(name) for name in PROFILE_VARIABLES)
        best_effort = [info for info in publishers if info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT]
        lossy = kind is Image and bool(best_effort) and not profile and "fastrtps" in rclpy.get_rmw_implementation_identifier()
        checks.append(Check(f"{name} QoS", True, describe(publishers[0].qos_profile) + (
            "; raw pictures over best effort get lost on the default settings of Fast DDS: use config/fastdds.xml on both sides, "
            "or compressed pictures" if lossy else ""), note=lossy))
        return checks

    def _clock_checks(self) -> list[Check]:
        clocks = self.get_publishers_info_by_topic("/clock")
        checks = []
        if len(clocks) > 1:
            checks.append(Check("clock", False, f"{len(clocks)} publishers on /clock: {endpoints(clocks)}. Time would jump; "
                                "stop all but one."))
        for name in ("policy_node", "command_node"):
            if not self._is_here(name):
                continue
            answer = self._ask(GetParameters, f"{name}/get_parameters", GetParameters.Request(names=["use_sim_time"]))
            if answer is None or not answer.values:
                continue
            simulated = bool(parameter_value_to_python(answer.values[0]))
            detail = "simulated time, from /clock" if simulated else "system time"
            if simulated and not clocks:
                detail = ("use_sim_time is true, but nobody publishes /clock: its time stands still. Play a bag with --clock, or set "
                          "it false.")
            elif clocks and not simulated:
                detail = "use_sim_time is false, but /clock is published: stamps will look stale. Set use_sim_time on both nodes."
            checks.append(Check(f"{name} clock", simulated == bool(clocks), detail))
        return checks

    def _input_checks(self) -> list[Check]:
        checks = []
        for row in INPUTS:
            topic = self.resolve_topic_name(row.name)
            publishers = self.get_publishers_info_by_topic(topic)
            problems = [why for info in publishers for why in misfits(info, row)]
            if row.name == "action_chunk" and len(publishers) > 1:
                problems.append(f"{len(publishers)} publishers ({endpoints(publishers)}): command_node holds the arm. Stop one policy")
            if publishers:
                good = f"{endpoints(publishers)}: {describe(publishers[0].qos_profile)}"
                checks.append(Check(topic, not problems, "; ".join(problems) or good))
        return checks

    def _arm_checks(self) -> list[Check]:
        """Nobody but command_node may command the arm."""
        if not self._is_here("command_node"):
            return []
        checks = []
        for topic, kinds in self.get_publisher_names_and_types_by_node("command_node", self.get_namespace()):
            if not set(kinds) & set(COMMAND_TYPES):
                continue
            publishers, readers = self.get_publishers_info_by_topic(topic), self.count_subscribers(topic)
            others = [info for info in publishers if (info.node_name, info.node_namespace) != ("command_node", self.get_namespace())]
            detail = f"{readers} reader(s)" + ("" if readers else ": nothing moves until the arm's controller listens")
            if others:
                detail = f"{endpoints(others)} also publishes: two hands on one arm. command_node stays in HOLD; stop the other."
            checks.append(Check(f"arm {topic}", not others, detail, note=not readers))
        return checks

    def _latched_checks(self) -> list[Check]:
        checks = []
        if self._is_here("command_node"):
            driver = self._latched.get("driver")
            checks.append(Check("driver", driver is not None, driver or "command_node does not publish its driver. Is it starting?"))
        level, message = self._health.get(f"{self._path('policy_node')}: instruction", (None, ""))
        latched = self._latched.get("instruction", "")
        if latched:
            checks.append(Check("instruction", True, f"latched: {latched!r}"))
        elif level == 0:
            checks.append(Check("instruction", True, f"policy_node has {message!r}; it is not latched, a restarted node would not hear it",
                                note=True))
        elif self._is_here("policy_node"):
            checks.append(Check("instruction", False, "none. Publish one, latched: ros2 topic pub --once --qos-durability transient_local "
                                f"{self.resolve_topic_name('instruction')} std_msgs/msg/String \"data: 'put the spoon on the towel'\""))
        return checks

    def _diagnostics_checks(self) -> list[Check]:
        """What the nodes themselves complain about."""
        ours = (self._path("policy_node") + ":", self._path("command_node") + ":")
        return [Check(name, level < int.from_bytes(DiagnosticStatus.ERROR, "little"), message, note=True)
                for name, (level, message) in sorted(self._health.items()) if name.startswith(ours) and level > 0]


def misfits(publisher: TopicEndpointInfo, row: Input) -> list[str]:
    """Why our nodes cannot hear this publisher; empty when one of the readers can."""
    who = endpoints([publisher])
    if publisher.topic_type != row.kind:
        return [f"{who} publishes {publisher.topic_type}, expected {row.kind}. Remap one of the two"]
    verdicts = [qos_check_compatible(publisher.qos_profile, reader) for reader in row.readers]
    if any(compatibility != QoSCompatibility.ERROR for compatibility, _ in verdicts):
        return []
    return [f"{who} cannot be heard ({verdicts[-1][1].strip('; ')}). Let it publish {describe(row.readers[-1])}"]


def endpoints(publishers: Sequence[TopicEndpointInfo]) -> str:
    """Names of the nodes behind publishers."""
    return ", ".join(f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in publishers)


def describe(qos: QoSProfile) -> str:
    """Reliability and durability in words."""
    return f"{qos.reliability.name.lower().replace('_', ' ')}, {qos.durability.name.lower().replace('_', ' ')}"
