"""Domains are chosen so that two runs never meet, not even when both start in the same moment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from openvla_ros.errors import ConfigurationError
from openvla_ros.ros import domain as domain_room
from openvla_ros.ros.domain import CLAIMS, DOMAINS, claim_domain, free_domain

CHOOSE = """
import os, sys
os.getpid = lambda: 7  # everybody begins to look at the same place
from openvla_ros.ros.domain import free_domain
print(free_domain(), flush=True)
sys.stdin.read()
"""


def test_a_domain_in_use_is_not_taken(hold_domain: Callable[[], AbstractContextManager[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_domain() as busy:
        pass
    monkeypatch.setattr(os, "getpid", lambda: DOMAINS.index(busy))  # the search begins there
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    for port in (7400 + 250 * busy, 7410 + 250 * busy):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
            somebody.bind(("", port))
            assert free_domain() != busy
    assert free_domain() == busy


def test_the_domain_of_the_shell_is_not_taken(hold_domain: Callable[[], AbstractContextManager[int]],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_domain() as silent:
        pass
    monkeypatch.setattr(os, "getpid", lambda: DOMAINS.index(silent))  # the search begins there
    monkeypatch.setenv("ROS_DOMAIN_ID", str(silent))
    assert free_domain() != silent


def test_processes_that_start_together_choose_different_ones(clean_environment: dict[str, str]) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", CHOOSE], env=clean_environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  text=True) for _ in range(4)]
    try:
        chosen = [int(process.stdout.readline()) for process in processes if process.stdout]
        assert len(set(chosen)) == 4 and all(claim_domain(domain) is None for domain in chosen)
    finally:
        for process in processes:
            process.communicate("")
    for domain in chosen:  # one that ended holds nothing
        claim = claim_domain(domain)
        assert claim is not None
        claim.close()


def test_where_nothing_can_be_locked_ports_decide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
    silent = {17, 42}
    monkeypatch.setattr(domain_room, "is_silent", silent.__contains__)
    assert free_domain() in silent


def test_a_process_chooses_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [free_domain() for _ in range(3 * CLAIMS)]
    assert all(len(set(chosen[place:place + CLAIMS])) == CLAIMS for place in range(2 * CLAIMS))
    assert set(chosen) <= set(DOMAINS)
    monkeypatch.setattr(domain_room, "is_silent", lambda domain: False)
    with pytest.raises(ConfigurationError, match="every ROS domain from 1 to 100"):
        free_domain()
