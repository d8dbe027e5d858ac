"""One line of text at a time, out of the bytes that a terminal or a pipe gives."""

from __future__ import annotations

import codecs
import os
import re
import select
import sys
from collections.abc import Callable
from time import monotonic, sleep

from openvla_ros.cli.terminal import Keyboard

LONGEST = 256
"""Characters of an instruction; what is typed beyond them is not taken."""

ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.|[^\[O])")
"""What an arrow or function key sends, or a letter with Alt."""

ERASE, ERASE_WORD, ERASE_ALL, END_OF_INPUT, UP = "\x7f\b", "\x17", "\x15", "\x04", "\x1b[A"


class Prompt:
    """A line being edited: printable characters, backspace, Ctrl-W, Ctrl-U; Up brings the line before back; Enter ends it."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        """Ctrl-D was pressed on an empty line."""
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._half = ""  # an escape sequence whose end has not come yet
        self._before = ""

    def feed(self, data: bytes) -> list[str]:
        """Take keys; returns the lines that were ended by them, without their ends."""
        lines: list[str] = []
        rest = self._half + self._decode(data)
        self._half = ""
        while rest:
            if rest[0] == "\x1b":
                whole = ESCAPE.match(rest)
                if whole is None:
                    self._half = rest
                    break
                if whole.group() == UP:
                    self.text = self._before
                rest = rest[whole.end():]
                continue
            key, rest = rest[0], rest[1:]
            if key in "\r\n":
                lines.append(self.text.strip())
                self._before, self.text = self.text or self._before, ""
            else:
                self._edit(key)
        return lines

    def _edit(self, key: str) -> None:
        if key in ERASE:
            self.text = self.text[:-1]
        elif key == ERASE_WORD:
            self.text = re.sub(r"\S+\s*$", "", self.text)
        elif key == ERASE_ALL:
            self.text = ""
        elif key == END_OF_INPUT:
            self.ended = self.ended or not self.text
        elif key.isprintable() and len(self.text) < LONGEST:
            self.text += key


class Silence:
    """Nobody says anything."""

    ended = False
    leaving = False

    def wait(self, longest_s: float) -> None:
        """Let time pass."""
        sleep(longest_s)

    def lines(self) -> list[str]:
        """None."""
        return []


class TypedLines:
    """Lines that a person types, edited here, as the terminal gives each key at once."""

    def __init__(self, keyboard: Keyboard, on_edit: Callable[[str], None]) -> None:
        """keyboard: entered. on_edit: called with the text of the unfinished line when it changed."""
        self._keyboard, self._on_edit = keyboard, on_edit
        self._prompt = Prompt()
        self._lines: list[str] = []
        self.ended = False
        """Never: who sits at the terminal ends the run."""

    @property
    def leaving(self) -> bool:
        """Ctrl-C, Ctrl-D on an empty line, or the terminal is gone."""
        return self._keyboard.leaving or self._prompt.ended

    def wait(self, longest_s: float) -> None:
        """Let time pass, and take what is typed meanwhile."""
        until = monotonic() + longest_s
        while (left_s := until - monotonic()) > 0 and not self.leaving:
            data = self._keyboard.read(left_s)
            if self._keyboard.pausing:
                self._keyboard.pause()
            if data:
                self._lines += self._prompt.feed(data)
                self._on_edit(self._prompt.text)

    def lines(self) -> list[str]:
        """What was ended by Enter since the last call."""
        lines, self._lines = self._lines, []
        return lines


class PipedLines:
    """Lines from a pipe, a file, or a terminal that edits them itself."""

    leaving = False

    def __init__(self, file: int) -> None:
        self._file = file
        self._rest = b""
        self._lines: list[str] = []
        self.ended = False
        """There will be no more lines."""

    def wait(self, longest_s: float) -> None:
        """Let time pass, and take what comes meanwhile."""
        until = monotonic() + longest_s
        while (left_s := until - monotonic()) > 0:
            if self.ended or in_the_background(self._file):
                sleep(left_s)
            elif select.select([self._file], [], [], left_s)[0]:
                self._take()

    def _take(self) -> None:
        try:
            data = os.read(self._file, 4096)
        except OSError:
            data = b""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if not data:
            self.ended, whole, self._rest = True, [self._rest] if self._rest else [], b""
        self._lines += [line.decode(errors="replace").strip() for line in whole]

    def lines(self) -> list[str]:
        """What came since the last call."""
        lines, self._lines = self._lines, []
        return lines


def in_the_background(file: int) -> bool:
    """Whether this process would be stopped for reading from its terminal (`openvla-ros run &`)."""
    try:
        return os.isatty(file) and os.tcgetpgrp(file) != os.getpgrp()
    except OSError:
        return False


def standard_input() -> PipedLines | Silence:
    """The lines of stdin; nothing where there is none."""
    try:
        return PipedLines(sys.stdin.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or replaced by something that is no file
        return Silence()
