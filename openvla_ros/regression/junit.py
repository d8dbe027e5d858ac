"""Results in, a JUnit file out, as continuous integration reads it: one test case per recording."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from openvla_ros.bags.report import write_whole
from openvla_ros.errors import BagError
from openvla_ros.regression.job import DIFFERS, FAILED, Result, as_words

NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(results: Sequence[Result], path: Path, suite: str = "openvla-ros replay") -> None:
    """Write it. A result that differs is a failure, one that could not be judged an error. Raises BagError."""
    counts = {status: sum(result.status == status for result in results) for status in (DIFFERS, FAILED)}
    root = ElementTree.Element("testsuite", name=suite, tests=str(len(results)), failures=str(counts[DIFFERS]),
                               errors=str(counts[FAILED]), time=f"{sum(result.seconds for result in results):.3f}")
    for result in results:
        case = ElementTree.SubElement(root, "testcase", classname=suite, name=_clean(result.name), time=f"{result.seconds:.3f}")
        if result.status in (DIFFERS, FAILED):
            words = _clean(as_words(result))
            kind = "failure" if result.status == DIFFERS else "error"
            ElementTree.SubElement(case, kind, message=words.splitlines()[0]).text = words
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda unfinished: ElementTree.ElementTree(root).write(unfinished, encoding="utf-8", xml_declaration=True))
    except OSError as error:
        raise BagError(f"{path} cannot be written: {error}. Name another file with --junit.") from error


def _clean(text: str) -> str:
    """What may stand in XML 1.0: a broken recording's words may hold anything."""
    return NOT_IN_XML.sub("\ufffd", text)
