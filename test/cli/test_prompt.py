"""Keys and pipes become lines."""

from __future__ import annotations

import os

import pytest

from openvla_ros.cli.prompt import LONGEST, PipedLines, Prompt


def test_a_line_is_typed_mended_and_sent() -> None:
    prompt = Prompt()
    assert prompt.feed(b"pick up teh") == [] and prompt.text == "pick up teh"
    assert prompt.feed(b"\x7f\x7fhe red blok\x17block ") == []
    assert prompt.feed(b"\r") == ["pick up the red block"] and prompt.text == ""
    assert prompt.feed(b"nonsense\x15\n") == [""], "an empty line is a line: it stops the arm"


def test_keys_that_are_no_text_leave_none_behind() -> None:
    prompt = Prompt()
    assert prompt.feed(b"a\x1b[") == [] and prompt.feed(b"Db\x1b[3~\x1bOP\x1bx\tc\x00\n") == ["abc"]
    assert prompt.feed(b"\x1b[A!\n") == ["abc!"], "Up: the line before"
    assert prompt.feed("gr\u00fcn".encode()[:3]) == [] and prompt.feed("gr\u00fcn\n".encode()[3:]) == ["gr\u00fcn"]
    prompt.feed(b"x" * (LONGEST + 5))
    assert len(prompt.text) == LONGEST


def test_the_end_of_input_is_heard_on_an_empty_line_only() -> None:
    prompt = Prompt()
    prompt.feed(b"a\x04")
    assert not prompt.ended
    prompt.feed(b"\x7f\x04")
    assert prompt.ended


@pytest.mark.parametrize("last", [b"", b"\n"])
def test_a_pipe_gives_its_lines_and_its_end(last: bytes) -> None:
    reader, writer = os.pipe()
    try:
        pipe = PipedLines(reader)
        os.write(writer, b"pick up the red block\nres")
        pipe.wait(0.01)
        assert pipe.lines() == ["pick up the red block"] and pipe.lines() == [] and not pipe.ended
        os.write(writer, b"et 7" + last)
        os.close(writer)
        pipe.wait(0.01)
        assert pipe.lines() == ["reset 7"] and pipe.ended
        pipe.wait(0.01)
        assert pipe.lines() == []
    finally:
        os.close(reader)
