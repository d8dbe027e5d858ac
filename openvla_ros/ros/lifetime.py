"""How every node of this package lives and ends: exit code 0 on SIGINT and SIGTERM, and its last word is sent first.

rclpy's own signal handler shuts the context down at once, so that a node could no longer say "stop" to the arm.
Here the main thread only waits for a signal; the executor spins in a second thread until the farewell is out.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import Executor, ExternalShutdownException, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from openvla_ros.errors import OpenvlaRosError
from openvla_ros.ros.clock_listener import hear_apart

GRACE_S = 2.0
"""How long running callbacks (a forward pass, a model being loaded) may take to end; then the process leaves all the same."""

LEAVE_WITHIN_S = 8.0
"""Longest time from the signal to the end, if a lock, a thread or the disk hangs. Shorter than the 12 s that `openvla-ros run`
waits. A call of the middleware that never comes back holds Python's interpreter lock, so that the signal is not even seen: `tether.py`."""

STDERR = 2  # the descriptor, whatever sys.stderr is bound to


class Resident(Protocol):
    """What `live` needs of a node besides being one."""

    def farewell(self) -> None:
        """Send the last words (zeros, stop) and wait briefly until they are out. Called on the main thread, once."""

    @property
    def finished(self) -> threading.Event:
        """Set by the node itself when its work is done, or when a thread of its own broke: then `broken` says by what, if it has one."""


def live(make_node: Callable[[], Node], arguments: list[str] | None = None, threads: int = 1,
         leave_within_s: float = LEAVE_WITHIN_S) -> int:
    """Make the node, spin it until SIGINT, SIGTERM or `finished`, and end in order. Returns the exit code.

    0 after a signal; 2 when the arguments, a parameter or a profile are wrong, with one line that says so; 1 when a callback
    raised.

    make_node: called after rclpy.init; must return a Resident node. threads: 1, or more for a MultiThreadedExecutor.
    leave_within_s: when leaving takes longer, the process ends at once with code 1, and its log says where each thread stood.
    Leaves with os._exit when threads are left: Python would wait for those of the executor for ever, and taking the
    interpreter down under one that is inside torch aborts the process.
    """
    leave = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leave.set())
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        node = make_node()
    except (OpenvlaRosError, ParameterException, NameValidationException, RuntimeError) as error:  # rcl raises RuntimeError
        print(f"refused to start: {error}", file=sys.stderr)
        return 2
    executor: Executor = SingleThreadedExecutor() if threads == 1 else MultiThreadedExecutor(num_threads=threads)
    clock = hear_apart(node) if threads > 1 else None
    executor.add_node(node)
    failure: list[BaseException] = []

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass
        except BaseException as error:  # a callback raised: the process must not live on deaf
            failure.append(error)
        finally:
            leave.set()

    thread = threading.Thread(target=spin, name="executor", daemon=True)
    thread.start()
    while not leave.wait(0.2) and not node.finished.is_set():  # type: ignore[attr-defined]
        pass
    faulthandler.dump_traceback_later(leave_within_s, exit=True, file=STDERR)
    broken: BaseException | None = getattr(node, "broken", None)
    if broken is not None:
        failure.append(broken)
    try:
        node.farewell()  # type: ignore[attr-defined]
    except Exception as error:
        failure.append(error)
    if failure:
        node.get_logger().fatal(f"{type(failure[0]).__name__}: {failure[0]}")
    code = 1 if failure else 0
    if clock is not None:
        clock.close()
    executor.shutdown(timeout_sec=GRACE_S)
    thread.join(timeout=GRACE_S)
    if not thread.is_alive():
        node.destroy_node()
        rclpy.try_shutdown()
    if any(left is not threading.main_thread() for left in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    faulthandler.cancel_dump_traceback_later()
    return code
