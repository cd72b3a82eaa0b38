# Two commands: `make demo` runs the main job, `make test` passes the tests. Both set up all they need.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTHON ?= python3
# A process a file, in the order that tests/conftest.py gives them. Each computes on one core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --dist loadfile --no-loadscope-reorder

.PHONY: help demo test check chaos format docs setup clean

help:
	@echo "make demo    the four-stage pipeline on a personal HTCondor pool, with its table"
	@echo "make test    every test, on a real pool"
	@echo "make check   lint, types and unit tests, in two minutes"
	@echo "make chaos   SEED=1 FAULTS=200: faults on a pool of its own while pipelines run, and a table"
	@echo "make format  write the code the way check wants it"
	@echo "make docs    write docs/reference.md from the code"
	@echo "make clean   stop the personal pool, remove what make has built"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@PYTHON="$(PYTHON)" sh -c '$(need_python)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	@echo "Installing condorctl, torch and the test tools (5 GB, two minutes or more) ..."
	$(BIN)/pip install --disable-pip-version-check --progress-bar off --quiet --editable '.[robust,notify,web,postgres,dev]'
	@touch $@

# Debian keeps venv apart from Python; everything else comes from PyPI or `condorctl pool up`.
define need_python
"$$PYTHON" -c "import ensurepip, venv" 2>/dev/null && exit 0; \
if ! command -v apt-get >/dev/null; then echo "error: needs Python 3.11 or later with venv" >&2; exit 1; fi; \
if [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq python3 python3-venv; \
else echo "error: needs venv; run: sudo apt-get install -y python3 python3-venv" >&2; exit 1; fi
endef

demo: $(STAMP)
	@$(BIN)/condorctl pool up
	@$(BIN)/condorctl submit pipeline --follow
	@$(BIN)/condorctl results

# The page is looked at by a browser; without one its test is left out, and says so.
define need_chromium
command -v chromium >/dev/null && exit 0; \
if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq chromium; \
else echo "no Chromium: the browser test is left out; to have it: sudo apt-get install -y chromium" >&2; fi
endef

# condorctl is killed at its system calls by strace; without it those tests are left out, and say so.
define need_strace
command -v strace >/dev/null && exit 0; \
if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq strace; \
else echo "no strace: the crash tests are left out; to have them: sudo apt-get install -y strace" >&2; fi
endef

# Stages in containers: podman without root in Docker's place, a registry, a base image.
CONTAINERS := podman runc uidmap slirp4netns catatonit mmdebstrap docker-registry
define need_containers
command -v podman >/dev/null && command -v mmdebstrap >/dev/null && command -v docker-registry >/dev/null && exit 0; \
if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
apt-get update -qq && apt-get install -y -qq --no-install-recommends $(CONTAINERS); \
else echo "no podman, or not root: the tests of containers are left out" >&2; fi
endef

test: $(STAMP)
	@sh -c '$(need_chromium)'
	@sh -c '$(need_strace)'
	@sh -c '$(need_containers)'
	@$(MAKE) --no-print-directory lint
	$(PYTEST) -n 3 tests/pool tests/unit

# Half an hour for the 200 faults of docs/reliability.md.
SEED   ?= 1
FAULTS ?= 200

chaos: $(STAMP)
	@sh -c '$(need_strace)'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --seed $(SEED) --faults $(FAULTS) --json build/chaos-$(SEED).json

check: $(STAMP) lint
	$(PYTEST) -q -n 2 tests/unit

.PHONY: lint
lint: $(STAMP)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: $(STAMP)
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .

docs: $(STAMP)
	$(BIN)/python docs/generate.py

clean:
	-$(BIN)/condorctl pool down
	rm -rf $(VENV)
