"""Parts of a running system as processes: start, watch, name the dead, stop in order, leave no orphan. No ROS in here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

BOOTSTRAP_GUARD = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"

STOP_GRACE_S = 12.0
"""From SIGTERM to SIGKILL. A node leaves by itself within `lifetime.LEAVE_WITHIN_S`."""


@dataclass(frozen=True)
class Part:
    """What to start: a name for people, `module:function` of its entry point, its command line."""

    name: str
    entry: str
    arguments: tuple[str, ...] = ()


def child_environment(base: Mapping[str, str], prefix: str = sys.prefix) -> dict[str, str]:
    """`base` without what the start-up hook of the ROS wheels put in, so that a child's own start sets it anew.

    The hook's guard variable is inherited; a child that sees it does not set its library path. An LD_LIBRARY_PATH that
    the user or a sourced ROS set stays; only entries under `prefix` go, and only when the hook was there.
    """
    environment = dict(base)
    if environment.pop(BOOTSTRAP_GUARD, None) is None:
        return environment
    kept = [entry for entry in environment.pop("LD_LIBRARY_PATH", "").split(os.pathsep)
            if entry and not Path(entry).is_relative_to(prefix)]
    if kept:
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
    return environment


class Process:
    """A started part. Output of both kinds goes to its log file.

    It has a session of its own, so that Ctrl-C in the terminal reaches only us and the order of stopping is ours.
    """

    def __init__(self, part: Part, log_folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """Raises OSError when the log cannot be opened or the process not be started."""
        self.part, self.log = part, log_folder / f"{part.name}.log"
        surroundings = child_environment(os.environ if environment is None else environment)
        surroundings.update({"PYTHONUNBUFFERED": "1", "RCUTILS_COLORIZED_OUTPUT": "0"})
        command = [sys.executable, "-m", "openvla_ros.ros.tether", str(os.getpid()), part.entry, *part.arguments]
        with self.log.open("wb") as sink:
            self._popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                                           env=surroundings, start_new_session=True)

    @property
    def name(self) -> str:
        """The part's name."""
        return self.part.name

    @property
    def pid(self) -> int:
        """Process id, and the id of its process group."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: died by that signal."""
        return self._popen.poll()

    def tail(self, lines: int = 15) -> list[str]:
        """The newest lines of its log."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 200 * lines))
            return log.read().decode(errors="replace").splitlines()[-lines:]

    def obituary(self) -> str:
        """How it ended, in words, with where to read more."""
        code = self.exit_code
        if code is None:
            return f"{self.name} is running."
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (out of memory? see dmesg)"
        return f"{self.name} {how}; its log is {self.log}."

    def ask_to_stop(self) -> None:
        """Send SIGTERM. Does nothing when it has ended."""
        if self.exit_code is None:
            self._popen.terminate()

    def stop(self, grace_s: float = STOP_GRACE_S) -> bool:
        """Ask to stop, wait, and kill the group after grace_s. True when no kill was needed."""
        self.ask_to_stop()
        try:
            self._popen.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def kill(self) -> None:
        """SIGKILL for its whole group, and collect it. Does nothing when it has ended: its number may be another's by now."""
        if self.exit_code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()
