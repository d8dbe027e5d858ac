"""Domains are chosen so that two runs never meet, not even when both start in the same moment."""

from __future__ import annotations

import socket
import subprocess
import sys

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


def test_a_domain_in_use_is_not_taken() -> None:
    first = free_domain()
    for port in (7400 + 250 * first, 7410 + 250 * first):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebody:
            somebody.bind(("", port))
            assert not domain_room.is_silent(first)
    assert domain_room.is_silent(first)


def test_processes_that_start_together_choose_different_ones(clean_environment: dict[str, str]) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", CHOOSE], env=clean_environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  text=True) for _ in range(4)]
    chosen = [int(process.stdout.readline()) for process in processes if process.stdout]
    assert len(set(chosen)) == 4 and all(claim_domain(domain) is None for domain in chosen)
    for process in processes:
        process.communicate("")
    freed = [claim_domain(domain) for domain in chosen]  # one that ended holds nothing
    assert None not in freed
    for claim in freed:
        if claim is not None:
            claim.close()


def test_a_process_chooses_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [free_domain() for _ in range(3 * CLAIMS)]
    assert all(len(set(chosen[place:place + CLAIMS])) == CLAIMS for place in range(2 * CLAIMS))
    assert set(chosen) <= set(DOMAINS)
    monkeypatch.setattr(domain_room, "is_silent", lambda domain: False)
    with pytest.raises(ConfigurationError, match="every ROS domain from 1 to 100"):
        free_domain()
