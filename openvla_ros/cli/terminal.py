"""A terminal that gives keys as they are pressed, and that is always given back as it was."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from openvla_ros.errors import ConfigurationError

LEAVE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Keyboard:
    """Use it with `with`: inside, keys come at once and are not echoed; outside, the terminal is as it was, whatever happened.

    Ctrl-C, SIGTERM, SIGHUP and SIGQUIT set `leaving`, Ctrl-Z sets `pausing`; both are for the caller to act on, so that the last
    word to the arm is sent first. Main thread only.
    """

    def __init__(self) -> None:
        """Raises ConfigurationError when stdin or stdout is no terminal."""
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ConfigurationError("this needs a terminal for keys and screen, and stdin or stdout is none. "
                                     "Run it in one: ssh -t, docker run -it, no pipe.")
        self._file = sys.stdin.fileno()
        self.leaving = self.pausing = False

    def __enter__(self) -> Keyboard:
        self._before = termios.tcgetattr(self._file)
        self._handlers: dict[signal.Signals, Any] = {
            number: signal.signal(number, self._on_signal) for number in (*LEAVE, signal.SIGTSTP)}
        self._grab()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def read(self, longest_s: float) -> bytes:
        """What was typed, waiting for it at most so long; empty when nothing was. A terminal that is gone sets `leaving`."""
        try:
            ready, _, _ = select.select([self._file], [], [], longest_s)
            if not ready:
                return b""
            data = os.read(self._file, 4096)
        except OSError:
            data = b""
        if not data:  # the other end was closed
            self.leaving = True
        return data

    def pause(self) -> None:
        """Give the terminal back and stop this process, as Ctrl-Z does; returns when it is continued, with no key waiting."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)  # to this thread: it has stopped when this returns
        signal.signal(signal.SIGTSTP, self._on_signal)
        self.pausing = False
        self._grab()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTSTP:
            self.pausing = True
        else:
            self.leaving = True

    def _grab(self) -> None:
        try:
            tty.setcbreak(self._file)  # keys at once, no echo, Ctrl-C and Ctrl-Z still signals; forgets what was typed before
            attributes = termios.tcgetattr(self._file)
            attributes[0] &= ~termios.IXON  # Ctrl-S would hold the screen up, and with it the loop that ends a jog
            termios.tcsetattr(self._file, termios.TCSANOW, attributes)
        except termios.error:
            self.leaving = True

    def _give_back(self) -> None:
        with suppress(termios.error):  # a terminal that is gone needs nothing back
            termios.tcsetattr(self._file, termios.TCSAFLUSH, self._before)
