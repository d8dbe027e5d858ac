# The commands of a checkout. Each sets up what it needs on first use; `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test test-faults fuzz docs lint clean

# An apt ROS or another environment of ROS wheels in the calling shell must not lend its libraries to ours.
unexport _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH PYTHONPATH PYTHONHOME AMENT_PREFIX_PATH CMAKE_PREFIX_PATH

# make run: what to play (nothing: a simulation), what to run, on which robot, with which text. ARGS goes as it is to openvla-ros run,
# or to pytest.
BAG ?=
CHECKPOINT ?=
ROBOT ?=
INSTRUCTION ?=
ARGS ?=
SEED ?= 0
BEGAN_MS := $(shell date +%s%3N)
export BAG CHECKPOINT ROBOT INSTRUCTION  # the shell quotes them, so blanks and apostrophes are safe

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: ## make .venv with ROS 2 Jazzy, openvla_msgs and this package; nothing to do when it is there and up to date
	@./setup.sh

# build/tiny_checkpoint (an untrained model of the true architecture) and build/synthetic_episode are made when they are named.
run: setup $(filter build/tiny_checkpoint build/synthetic_episode,$(BAG) $(CHECKPOINT)) ## a simulated arm that takes typed instructions: make run [INSTRUCTION="text"] [SEED=n] [BAG=dir] [CHECKPOINT=dir] [ROBOT=name] [ARGS="..."]
	@took=$$(($$(date +%s%3N) - $(BEGAN_MS))); echo "set-up: $$((took / 1000)).$$((took / 100 % 10)) s"
	@.venv/bin/openvla-ros run $(if $(BAG),--bag "$$BAG") $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT") \
	  $(if $(ROBOT),--robot "$$ROBOT") $(if $(INSTRUCTION),--instruction "$$INSTRUCTION") --seed $(SEED) $(ARGS)

# Both commands make beside and move into place, so an interrupted one is never taken for a whole one.
build/tiny_checkpoint: | setup
	@.venv/bin/openvla-ros make-checkpoint --size tiny --output $@

build/synthetic_episode: | setup
	@.venv/bin/openvla-ros make-episode --output $@

# Two workers: one for everything that starts ROS nodes, one for the rest (test/conftest.py). One thread each for torch and BLAS.
test: setup ## all tests, lint and types included: make test [ARGS="-k word"]
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-faults: setup ## every fault scenario, about six minutes; make test runs six of them
	@.venv/bin/python -m pytest test/faults -m faults $(ARGS)

fuzz: setup ## millions of odd numbers through the safety chains, about a minute: make fuzz [SEED=number]
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest test/fuzz -m fuzz --hypothesis-seed=$(SEED) $(ARGS)

docs: setup ## write the parameter tables of the documentation from the code
	@.venv/bin/python docs/tables.py

lint: setup ## ruff and mypy alone
	@.venv/bin/ruff check .
	@.venv/bin/mypy

clean: ## remove what make and colcon made, .venv included
	rm -rf .venv build install log .mypy_cache .pytest_cache .ruff_cache .hypothesis openvla_ros.egg-info
	find openvla_ros test launch -name __pycache__ -type d -prune -exec rm -rf {} +
