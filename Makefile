# The commands of this repository; `make help` lists them.
#
# Everything lives inside the clone: .uv/ (the installer, where the machine has none that works),
# .venv/ (Python and all packages, exactly those of requirements.lock) and outputs/ (what you make).
# Other people's worlds need an older MuJoCo, so they have an environment of their own:
# .venv-suites/, from requirements-suites.lock. So has the ROS 2 bench: .venv-ros/, from
# requirements-ros.lock, which our own Python never imports from.

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-suites test-ros bench bench-full check format format-check \
	lint types setup setup-suites setup-ros lock clean graphics
.DELETE_ON_ERROR:

PYTHON := .venv/bin/python
SUITES_PYTHON := .venv-suites/bin/python
ROS_PYTHON := .venv-ros/bin/python
# Extra arguments: make demo ARGS="seed=1", make test ARGS="tests/envs -x"
ARGS ?=
# Test files are shared out over two processes; PARALLEL= runs them in one, in order.
PARALLEL ?= -n 2 --dist loadfile

# A `uv` on the PATH can be a shim without a program behind it, so it counts only if it runs.
UV := $(shell if uv --version >/dev/null 2>&1; then echo uv; else echo .uv/bin/uv; fi)
UV_BOOTSTRAP := $(filter .uv/bin/uv,$(UV))

# An environment whose interpreter has gone is not complete.
$(shell test -x $(PYTHON) || rm -f .venv/.complete)
$(shell test -x $(SUITES_PYTHON) || rm -f .venv-suites/.complete)
$(shell test -x $(ROS_PYTHON) || rm -f .venv-ros/.complete)

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: graphics setup ## collect, train, drive the arm, imagine, report (about 15 minutes on 2 cores)
	@$(PYTHON) -m envs.rendering
	@$(PYTHON) -m scripts.demo $(ARGS)

test: graphics setup ## run the tests
	@$(PYTHON) -m pytest -q $(PARALLEL) $(ARGS)

# Of the slow tests those that take a minute or two in all; `-m slow` runs every one.
SLOW := tests/worldmodel/test_distributed.py tests/envs/test_experts.py \
	tests/worldmodel/data/test_old_versions.py

test-slow: graphics setup ## run the slow tests that CI runs
	@$(PYTHON) -m pytest -q $(PARALLEL) -m slow $(SLOW) $(ARGS)

test-suites: graphics setup-suites ## run the tests of other people's worlds
	@$(SUITES_PYTHON) -m pytest -q $(PARALLEL) -m "suites and not slow" tests/envs tests/scripts $(ARGS)

# One process: these tests measure time. Where the machine allows it they get a network of their own.
bench: graphics setup setup-ros ## drive the simulated arm through a real ROS 2 graph (ARGS="checkpoint=DIR")
	@$(PYTHON) envs/ros/alone.py $(PYTHON) -m scripts.bench $(ARGS)

bench-full: graphics setup setup-ros ## the same, 50 resets for each of eight conditions (half an hour)
	@$(PYTHON) envs/ros/alone.py $(PYTHON) -m scripts.bench resets=50 'latency_ms=[0,100,200,400]' $(ARGS)

test-ros: graphics setup setup-ros ## run the tests against a real ROS 2 graph and rosbridge server
	@$(PYTHON) envs/ros/alone.py $(PYTHON) -m pytest -q -m "ros and not slow" tests $(ARGS)

check: format-check lint types test ## format, lint, types, tests: what must pass before a commit

format: setup ## rewrite the code in the one format
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix --exit-zero .

format-check: setup
	@$(PYTHON) -m ruff format --check .

lint: setup ## look for likely mistakes
	@$(PYTHON) -m ruff check .

types: setup ## check the types
	@$(PYTHON) -m mypy

setup: .venv/.complete ## make the environment (5 GB the first time, a second afterwards)

setup-suites: .venv-suites/.complete ## make the environment for Fetch, Meta-World, PushT and ALOHA

setup-ros: .venv-ros/.complete ## make the environment of the ROS 2 bench

# What both environments hold is the same version in both, as far as can be (MuJoCo cannot): uv
# prefers the versions that it finds in the file that it is to write. gym-pusht wants opencv-python,
# which needs a display's libraries and overwrites LeRobot's opencv-python-headless, the same module.
lock: $(UV_BOOTSTRAP) ## resolve pyproject.toml into the requirements*.lock files
	@echo "lock: resolving pyproject.toml"
	@compile() { \
		$(UV) --no-config --quiet pip compile pyproject.toml --extra dev $$3 --universal \
			--python-version 3.12 --generate-hashes --no-annotate --no-header \
			--output-file $$1 >/dev/null || return 1; \
		{ echo "# Exact versions, $$2, made from pyproject.toml by: make lock"; cat $$1; } > $$1.new; \
		mv $$1.new $$1; echo "lock: $$(grep -c == $$1) packages in $$1"; }; \
	compile requirements.lock "base and development" && \
	cp requirements.lock .both.lock && \
	awk '{ pin = match($$0, /^[a-z0-9._-]+==/) ? substr($$0, 1, RLENGTH) : "" } \
		NR == FNR { if (pin) ours[pin]; next } pin { skip = pin in ours } !skip' \
		requirements.lock requirements-suites.lock >> .both.lock && \
	mv .both.lock requirements-suites.lock && \
	compile requirements-suites.lock "base, development and suites" \
		"--extra suites --no-emit-package opencv-python" && \
	$(UV) --no-config --quiet pip compile --group ros --constraints requirements.lock --universal \
		--python-version 3.12 --generate-hashes --no-annotate --no-header \
		--output-file requirements-ros.lock >/dev/null && \
	{ echo "# Exact versions, the ROS 2 bench, made from pyproject.toml by: make lock"; \
		cat requirements-ros.lock; } > requirements-ros.lock.new && \
	mv requirements-ros.lock.new requirements-ros.lock && \
	echo "lock: $$(grep -c == requirements-ros.lock) packages in requirements-ros.lock"

clean: ## remove the environment and all caches (outputs/ is kept)
	@echo "clean: removing .venv .venv-suites .venv-ros .uv build dist and caches; outputs/ is kept"
	@rm -rf .venv .venv-suites .venv-ros .uv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------------------------------------
# What the commands above rest on.

# In a folder with a .python-version, a pyenv `python3` may refuse to run: take the first that does.
.uv/bin/uv:
	@echo "setup: no working uv on this machine, installing one into .uv/"
	@python=; for p in python3 /usr/bin/python3 python3.12 python3.13 python3.11 python3.10; do \
		if $$p -c 'import venv, ensurepip' >/dev/null 2>&1; then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then \
		echo "setup: this needs a python3 that can make virtual environments:"; \
		echo "apt-get install -y python3-venv"; exit 1; fi; \
	if ! output=$$($$python -m venv --clear .uv && .uv/bin/python -m pip install uv 2>&1); then \
		echo "$$output"; exit 1; fi

# uv's output is shown only if it fails: it comments on every Python that it looks at.
$(PYTHON) $(SUITES_PYTHON) $(ROS_PYTHON): %/bin/python: | $(UV_BOOTSTRAP)
	@echo "setup: making $* with Python $$(cat .python-version)"
	@rm -rf $*; if ! output=$$($(UV) venv --python "$$(cat .python-version)" $* 2>&1); then \
		echo "$$output"; \
		echo "setup: Python $$(cat .python-version) is neither here nor could it be fetched; install it"; \
		exit 1; fi

# Every file is checked against its hash, so any index that offers it will do.
define sync
	@echo "setup: installing what $< lists"
	@if [ -t 2 ]; then quiet=; else quiet=--quiet; fi; \
	$(UV) pip sync $$quiet --python $(@D)/bin/python --require-hashes \
		--index-strategy unsafe-best-match $<
endef

define install
	$(sync)
	@$(UV) pip install --quiet --python $(@D)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@
endef

.venv/.complete: requirements.lock pyproject.toml | $(PYTHON)
	$(install)

.venv-suites/.complete: requirements-suites.lock pyproject.toml | $(SUITES_PYTHON)
	$(install)

# Our code is not installed there: `envs/ros/graph.py` starts the node in the clone.
.venv-ros/.complete: requirements-ros.lock | $(ROS_PYTHON)
	$(sync)
	@touch $@

# A second's look before gigabytes are fetched; `python -m envs.rendering` later draws a real frame.
# A display, or a backend that was chosen by hand, is left alone. It comes before the environment is
# made, so any Python that runs will do; where there is none, the setup says so.
graphics:
	@if [ "$$(uname -s)" != Linux ] || [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ] || \
		[ "$$MUJOCO_GL" = glfw ]; then exit 0; fi; \
	python=; for p in $(PYTHON) python3 /usr/bin/python3; do \
		if $$p -c 'import ctypes' >/dev/null 2>&1; then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then exit 0; fi; \
	loads() { $$python -c 'import ctypes, sys; [ctypes.CDLL(n) for n in sys.argv[1:]]' "$$@" \
		2>/dev/null; }; \
	loads libEGL.so.1 libEGL_mesa.so.0 || loads libEGL.so.1 libEGL_nvidia.so.0 || \
	loads libOSMesa.so.8 || loads libOSMesa.so.6 || loads libOSMesa.so || { \
		echo "rendering: found neither EGL nor OSMesa to draw camera images with; install Mesa:"; \
		echo "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri"; exit 1; }
