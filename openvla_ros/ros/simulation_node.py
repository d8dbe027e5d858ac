"""A simulated WidowX at a table, behind the topics of a robot: joint trajectories in; pictures, joint states and the time out.

| topic | type | quality |
| --- | --- | --- |
| arm_controller/joint_trajectory | trajectory_msgs/JointTrajectory | reliable, depth 10; the rules of ros2_control |
| gripper_controller/joint_trajectory | the same | the same; left_finger in metres |
| image (out) | sensor_msgs/Image rgb8 | reliable, depth 1; the policy's camera, drawn while somebody listens |
| overview/image (out) | sensor_msgs/Image rgb8 | the same, larger and slower, for people |
| joint_states (out) | sensor_msgs/JointState | reliable, depth 10, 62.5 Hz; efforts in N m, of the fingers in N |
| simulation/objects (out) | visualization_msgs/MarkerArray | reliable, depth 10, 20 Hz; for evaluation and RViz, never for a policy |
| robot_description (out) | std_msgs/String | latched; RViz needs a robot_state_publisher beside it |
| /clock (out) | rosgraph_msgs/Clock | reliable, depth 1, 125 Hz; it must be the only one |
| ~/reset_scene | openvla_msgs/srv/ResetScene | the arm is elsewhere at once: choose HOLD before |

All rates are in simulated time. Physics runs on a thread of its own, in cycles of 8 ms that are never skipped: where the computer is too
slow, the clock is. What is in the world is the business of `simulation/`.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from openvla_msgs.srv import ResetScene
from rclpy.duration import Duration
from rclpy.node import Node
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from openvla_ros.contract import ByteArray
from openvla_ros.errors import ActionError, ConfigurationError, DependencyMissing, OpenvlaRosError, StateError
from openvla_ros.robot import RobotProfile
from openvla_ros.ros.convert import LATCHED, NEWEST_RELIABLE, SECOND_NS, to_ns, to_time
from openvla_ros.ros.diagnostics import ERROR, OK, WARN, Diagnostics, Health
from openvla_ros.ros.lifetime import live
from openvla_ros.ros.pace import Due, Pace
from openvla_ros.ros.parameters import Parameter, declare, read
from openvla_ros.ros.profile import read_robot, read_urdf
from openvla_ros.ros.trajectory_follower import JointRange, TrajectoryFollower, Waypoint

if TYPE_CHECKING:
    from openvla_ros.simulation.tabletop import Tabletop

AT_START = "by starting the node again"

PARAMETERS = (
    Parameter("robot", "wx250s_sim", "Robot profile with the names of joints, topics and frame: a name in config/robots or the path of a "
              ".yaml file.", locked=AT_START),
    Parameter("seed", 0, "The first scene; later ones come by ~/reset_scene. The same seed is the same scene.", low=0, high=999_999,
              locked=AT_START),
    Parameter("real_time_factor", 1.0, "Simulated seconds per second, as long as the computer is fast enough.", low=0.05, high=20.0),
    Parameter("image_rate_hz", 25.0, "Pictures of the policy's camera per simulated second.", unit="Hz", low=1.0, high=60.0,
              locked=AT_START),
    Parameter("image_width", 128, "Of the policy's camera. The default policy was trained on the default.", unit="px", low=32, high=1024,
              locked=AT_START),
    Parameter("image_height", 128, "The same.", unit="px", low=32, high=1024, locked=AT_START),
    Parameter("overview_rate_hz", 10.0, "Pictures for people per simulated second, drawn only while somebody listens.", unit="Hz",
              low=0.5, high=30.0, locked=AT_START),
    Parameter("overview_width", 384, "Of the pictures for people.", unit="px", low=32, high=1024, locked=AT_START),
    Parameter("overview_height", 288, "The same.", unit="px", low=32, high=1024, locked=AT_START),
)

CYCLE_NS = 8_000_000
"""Of clock, controllers and motors: two time steps of the physics."""

BEGIN_NS = SECOND_NS
"""Simulated time begins here: stamps of zero mean "none" everywhere in ROS."""

STATES_HZ, OBJECTS_HZ, TROUBLES_HZ = 62.5, 20.0, 12.5

YIELD_S = 2e-4
"""Least pause between two cycles [wall time], so that callbacks get their turn where the computer is too slow."""

DISCOVERY_S, LOOK_EVERY_S, YOUNG_S = 1.0, 0.5, 4.0
"""How long to look for another clock before the first cycle, how often after it, and until which age whoever finds one is the one that
came later and leaves [wall time]. Now and then discovery takes the 3 s of a repeated announcement."""

SLOW = 0.9
"""A warning below this part of the wanted real-time factor."""

CAMERA_FRAME = "camera"

UNKNOWN = "_NODE_NAME_UNKNOWN_"
"""What rclpy calls a node whose publisher was discovered before itself."""

Part = tuple[str, ...]


class SimulationNode(Node):  # type: ignore[misc]
    """ROS name `simulation_node`. Raises OpenvlaRosError for a wrong parameter or profile, and where somebody else is the clock."""

    def __init__(self) -> None:
        super().__init__("simulation_node")
        self.finished = threading.Event()
        declare(self, PARAMETERS, locked=lambda row: bool(row.locked))
        values = read(self, PARAMETERS)
        try:
            from openvla_ros.ros.scene_markers import to_markers
            from openvla_ros.simulation.camera import Camera
            from openvla_ros.simulation.tabletop import Tabletop
        except ImportError as error:
            raise DependencyMissing(f"the simulation needs MuJoCo ({error}). Install it: pip install 'openvla-ros[simulation]'.") from error
        self._profile = read_robot(str(values["robot"]))
        self._seed = int(values["seed"])
        self._tabletop = Tabletop(self._seed)
        self._to_markers = to_markers
        self._controllers = make_controllers(self._profile, self._tabletop)
        self._refuse_other_clocks()

        self._lock = threading.Lock()  # of everything below that is not a publisher
        self._now_ns = BEGIN_NS
        self._pace = Pace(float(values["real_time_factor"]))
        self._rivals: tuple[str, ...] = ()
        self._look_at_s, self._old_at_s = 0.0, monotonic() + YOUNG_S  # steady time
        self.counts: Counter[str] = Counter()
        self._refusal, self._refused_last = "", False  # of the newest refused trajectory; it was the newest of all
        self._colliding: frozenset[Part] = frozenset()
        self._at_limit: tuple[str, ...] = ()
        self._failure: Exception | None = None
        self._stop = threading.Event()

        topics = {self._profile.command_topic: "arm"}
        if self._profile.gripper is not None:
            topics[self._profile.gripper.command_topic] = "gripper"
        for topic, part in topics.items():
            self.create_subscription(JointTrajectory, topic, partial(self._on_trajectory, part), 10)
        self.create_service(ResetScene, "~/reset_scene", self._on_reset)
        self._states = self.create_publisher(JointState, "joint_states", 10)
        self._objects = self.create_publisher(MarkerArray, "simulation/objects", 10)
        cameras = {size: Camera(width=int(values[f"{size}_width"]), height=int(values[f"{size}_height"])) for size in ("image", "overview")}
        self._films = (Film(self, "image", cameras["image"], float(values["image_rate_hz"])),
                       FilmApart(self, "overview/image", cameras["overview"], float(values["overview_rate_hz"]), Tabletop(self._seed)))
        self._states_due, self._objects_due, self._troubles_due = Due(STATES_HZ), Due(OBJECTS_HZ), Due(TROUBLES_HZ)
        urdf = read_urdf(str(values["robot"]), self._profile)
        if urdf:
            self._description = self.create_publisher(String, "robot_description", LATCHED)
            self._description.publish(String(data=urdf))
        self._diagnostics = Diagnostics(self, {"simulation": self._time_health, "arm": self._arm_health, "camera": self._camera_health})
        self._clock_publisher = self.create_publisher(Clock, "/clock", NEWEST_RELIABLE)
        self._thread = threading.Thread(target=self._run, name="simulation", daemon=True)
        self._thread.start()

    def farewell(self) -> None:
        """Let time stand still. Raises what ended the simulation, if something did."""
        self._stop.set()
        self._thread.join(timeout=2.0)
        for film in self._films:
            film.close()
        self._clock_publisher.wait_for_all_acked(Duration(seconds=0.1))
        if self._failure is not None:
            raise self._failure

    # ------------------------------------------------------------------ time

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if monotonic() >= self._look_at_s:
                    self._look_around()
                self._stop.wait(LOOK_EVERY_S if self._rivals else max(YIELD_S, self._cycle()))
        except Exception as error:  # physics that does not go on must not look like an arm that rests
            self._failure = error
            self.finished.set()

    def _cycle(self) -> float:
        """8 ms of the world, and what is to be said after them. Returns how long to wait for the next [s, wall time]."""
        with self._lock:
            self._now_ns += CYCLE_NS
            now_s, stamp = self._now_ns / SECOND_NS, to_time(self._now_ns)
            self._tabletop.set_arm_target(self._controllers["arm"].advance(now_s))
            self._tabletop.set_finger_target(float(self._controllers["gripper"].advance(now_s)[0]))
            begun_s = self._tabletop.time_s
            self._tabletop.advance(CYCLE_NS / SECOND_NS)
            if self._tabletop.time_s <= begun_s:  # MuJoCo begins anew, silently, when its numbers leave the finite
                raise StateError(f"the physics broke down at {now_s:.3f} s in scene {self._seed}. Start again, and please report it.")
            self._clock_publisher.publish(Clock(clock=stamp))
            if self._states_due.is_now(now_s):
                self._publish_states(stamp)
            if self._objects_due.is_now(now_s):
                self._objects.publish(self._to_markers(self._tabletop, stamp, self._profile.base_frame))
            if self._troubles_due.is_now(now_s):
                self._look_for_troubles()
            for film in self._films:
                film.shoot(self._tabletop, self._now_ns)
            return self._pace.wait_s(now_s, monotonic())

    def _publish_states(self, stamp: Any) -> None:
        joints = self._tabletop.joints()
        message = JointState(name=list(joints.names), position=joints.positions.tolist(), velocity=joints.velocities.tolist(),
                             effort=joints.efforts.tolist())
        message.header.stamp = stamp
        self._states.publish(message)

    def _look_for_troubles(self) -> None:
        troubles = self._tabletop.troubles()
        colliding = frozenset(troubles.collisions)
        self.counts["collisions"] += len(colliding - self._colliding)
        self.counts["joint_limits"] += len(set(troubles.at_limit) - set(self._at_limit))
        self._colliding, self._at_limit = colliding, troubles.at_limit

    # ------------------------------------------------------------------ the only clock

    def _other_clocks(self) -> tuple[str, ...]:
        """Full names of the other nodes that publish /clock."""
        own = self.get_fully_qualified_name()
        infos = self.get_publishers_info_by_topic("/clock")
        names = sorted("another node" if info.node_name == UNKNOWN else f"{info.node_namespace.rstrip('/')}/{info.node_name}"
                       for info in infos)
        if hasattr(self, "_clock_publisher") and own in names:
            names.remove(own)
        return tuple(names)

    def _refuse_other_clocks(self) -> None:
        """Before there is a clock of our own. Processes on one computer mostly find each other within 0.3 s."""
        wait, until_s = threading.Event(), monotonic() + DISCOVERY_S
        while monotonic() < until_s:
            if names := self._other_clocks():
                raise second_clock(names)
            wait.wait(0.05)

    def _look_around(self) -> None:
        """Whether somebody else began to publish /clock: our time then stands still until that ends. And how fast it is to go.

        Raises ConfigurationError when it was we who came later.
        """
        self._look_at_s = monotonic() + LOOK_EVERY_S
        rivals, before = self._other_clocks(), self._rivals
        self._rivals = rivals
        if rivals and monotonic() < self._old_at_s:
            raise second_clock(rivals)
        if rivals and not before:
            self.get_logger().error(f"/clock is published by {', '.join(rivals)} too: the simulation stands still until that stops")
        factor = float(self.get_parameter("real_time_factor").value)
        with self._lock:
            if before and not rivals:
                self._pace.forget()
            if factor != self._pace.factor:
                self._pace.factor = factor

    # ------------------------------------------------------------------ what comes in

    def _on_trajectory(self, part: str, message: JointTrajectory) -> None:
        stamp_ns = to_ns(message.header.stamp)
        points = [Waypoint(to_ns(point.time_from_start) / SECOND_NS, np.array(point.positions),
                           np.array(point.velocities) if len(point.velocities) else None) for point in message.points]
        with self._lock:
            try:
                self._controllers[part].take(message.joint_names, points, stamp_ns / SECOND_NS if stamp_ns else None,
                                             self._now_ns / SECOND_NS)
                self.counts[f"{part}_trajectories"] += 1
                self._refused_last = False
            except ActionError as error:
                self.counts[f"{part}_refused"] += 1
                self._refusal, self._refused_last = f"{part}: {error}", True
                self.get_logger().warning(f"refused: {self._refusal}", throttle_duration_sec=5.0)

    def _on_reset(self, request: ResetScene.Request, response: ResetScene.Response) -> ResetScene.Response:
        with self._lock:
            try:
                self._tabletop.reset(int(request.seed))
            except OpenvlaRosError as error:
                response.success, response.reason = False, str(error)
                return response
            self._seed = int(request.seed)
            for controller, positions in zip(self._controllers.values(), start_positions(self._tabletop), strict=True):
                controller.place(positions)
            self._colliding, self._at_limit = frozenset(), ()
            for due in (self._states_due, self._objects_due, *(film.due for film in self._films)):
                due.hurry()
            self.counts["resets"] += 1
            response.success, response.colours = True, list(self._tabletop.layout.colours)
        return response

    # ------------------------------------------------------------------ what is said about it

    def _time_health(self) -> Health:
        with self._lock:
            reached, wanted = self._pace.reached(), self._pace.factor
            values: dict[str, object] = {
                "real_time_factor": f"{wanted:g}", "reached": "unknown" if reached is None else f"{reached:.2f}",
                "time_s": f"{self._now_ns / SECOND_NS:.3f}", "seed": self._seed, "blocks": " ".join(self._tabletop.layout.colours),
                "held": self._tabletop.state().held or "nothing", "resets": self.counts["resets"]}
        if self._rivals:
            return Health(ERROR, f"stands still: /clock is published by {', '.join(self._rivals)} too. Stop that.", values)
        if reached is not None and reached < SLOW * wanted:
            return Health(WARN, f"this computer is too slow: {reached:.2f} simulated seconds per second, wanted {wanted:g}", values)
        return Health(OK, "running", values)

    def _arm_health(self) -> Health:
        with self._lock:
            limited = [name for controller in self._controllers.values() for name in controller.limited]
            collisions = [f"{part} on {thing}" for part, thing in sorted(self._colliding)]
            problems = [f"at their limits: {', '.join(self._at_limit)}"] if self._at_limit else []
            problems += [f"collides: {', '.join(collisions)}"] if collisions else []
            problems += [f"asked for more than they can: {', '.join(limited)}"] if limited else []
            problems += [f"refused a trajectory: {self._refusal}"] if self._refused_last else []
            values = {"joints_at_limit": " ".join(self._at_limit), "collisions_now": ", ".join(collisions),
                      "last_refusal": self._refusal, **{f"count_{name}": count for name, count in sorted(self.counts.items())}}
        return Health(WARN if problems else OK, "; ".join(problems) or "good", values)

    def _camera_health(self) -> Health:
        with self._lock:
            values = {f"{film.topic}_{name}": value for film in self._films for name, value in film.health().items()}
        return Health(OK, "good", values)


def second_clock(names: Sequence[str]) -> ConfigurationError:
    """What to say to who starts a simulation beside another source of time."""
    return ConfigurationError(f"/clock is published by {', '.join(names)} already, and there can be only one time. Stop that, or use "
                              "another ROS_DOMAIN_ID. A node that was killed is forgotten after about 20 s.")


class Film:
    """One camera and the topic of its pictures. Called under the node's lock; draws at once, while the world waits."""

    def __init__(self, node: Node, topic: str, camera: Any, rate_hz: float) -> None:
        """camera: a simulation.camera.Camera."""
        self.topic, self._camera, self.due = topic, camera, Due(rate_hz)
        self._publisher = node.create_publisher(Image, topic, NEWEST_RELIABLE)
        self._cost_ms: deque[float] = deque(maxlen=50)
        self._sent = 0

    def shoot(self, tabletop: Tabletop, now_ns: int) -> None:
        """Publish a picture of this moment, if one is due and somebody listens."""
        if self.due.is_now(now_ns / SECOND_NS) and self._publisher.get_subscription_count():
            self._draw(tabletop, now_ns)

    def _draw(self, tabletop: Tabletop, now_ns: int) -> None:
        began = perf_counter()
        message = to_image(self._camera.picture(tabletop))
        # Policies take equal pictures for a camera that froze, and those of a real one never are: a little noise, in the byte that
        # whoever looks at a part of a picture only looks at first.
        message.data[0] ^= self._sent % 8
        self._cost_ms.append((perf_counter() - began) * 1e3)
        message.header.stamp, message.header.frame_id = to_time(now_ns), CAMERA_FRAME
        self._publisher.publish(message)
        self._sent += 1

    def health(self) -> dict[str, object]:
        """How many were sent, and what one costs."""
        return {"sent": self._sent, "cost_ms": f"{np.mean(self._cost_ms):.1f}" if self._cost_ms else "none drawn"}

    def close(self) -> None:
        """No more pictures."""


class FilmApart(Film):
    """Draws a still on a thread of its own, while the world goes on: large pictures would hold up the clock. What is due meanwhile is
    left out."""

    def __init__(self, node: Node, topic: str, camera: Any, rate_hz: float, still: Tabletop) -> None:
        """still: another world, to be drawn."""
        super().__init__(node, topic, camera, rate_hz)
        self._still, self._of_ns = still, 0
        self._wanted, self._idle = threading.Semaphore(0), threading.Event()
        self._closed = False
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name=topic, daemon=True)
        self._thread.start()

    def _draw(self, tabletop: Tabletop, now_ns: int) -> None:
        if self._idle.is_set():
            self._idle.clear()
            self._still.mirror(tabletop)
            self._of_ns = now_ns
            self._wanted.release()

    def _run(self) -> None:
        while self._wanted.acquire() and not self._closed:
            super()._draw(self._still, self._of_ns)
            self._idle.set()

    def close(self) -> None:
        """No more pictures; waits for one that is being drawn."""
        self._closed = True
        self._wanted.release()
        self._thread.join(timeout=2.0)


def to_image(rgb: ByteArray) -> Image:
    """Message of uint8 [H, W, 3], red first."""
    height, width, _ = rgb.shape
    message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
    message.data = np.ascontiguousarray(rgb).tobytes()
    return message


def start_positions(tabletop: Tabletop) -> tuple[Any, Any]:
    """Joints of the arm [6] and finger [1] as they are now."""
    return tabletop.arm_positions_rad, tabletop.joints().positions[6:7]


def make_controllers(profile: RobotProfile, tabletop: Tabletop) -> dict[str, TrajectoryFollower]:
    """One for the arm and one for the gripper. Raises ConfigurationError for a profile of another arm, or behind another output."""
    names: Sequence[str] = tabletop.joints().names
    gripper, arm = profile.gripper, profile.arm
    if profile.output != "trajectory" or arm is None or gripper is None:
        raise ConfigurationError(f"robot profile {profile.name!r} has the output {profile.output!r}; the simulated arm listens to joint "
                                 "trajectories of arm and gripper: give the profile's output trajectory a gripper, or use wx250s_sim.")
    if arm.joints != tuple(names[:6]) or gripper.joint != names[6]:
        raise ConfigurationError(f"robot profile {profile.name!r} has the joints {', '.join((*arm.joints, gripper.joint))}; the simulated "
                                 f"arm has {', '.join(names[:7])}.")
    limits = tabletop.arm_ranges_rad
    low, high = tabletop.finger_range_m
    arm_start, finger_start = start_positions(tabletop)
    return {"arm": TrajectoryFollower(arm.joints, arm_start, JointRange(limits[:, 0], limits[:, 1], np.full(6, MAX_SPEED_RAD_S))),
            "gripper": TrajectoryFollower((gripper.joint,), finger_start, JointRange(np.array([low]), np.array([high]),
                                                                                     np.array([MAX_SPEED_M_S])))}


MAX_SPEED_RAD_S, MAX_SPEED_M_S = 3.1415927, 1.0
"""Of the joints and of the fingers, as the URDF says; a test compares. MuJoCo's import leaves them out."""


def main(arguments: list[str] | None = None) -> int:
    """Console script `simulation_node`. Exit code 0 after SIGINT and SIGTERM, 2 when a parameter is wrong or another clock is there."""
    return live(SimulationNode, arguments)


if __name__ == "__main__":
    sys.exit(main())
