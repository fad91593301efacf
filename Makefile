# `make demo`, `make quick` and `make test` come first; `make help` lists the others.

PYTHON ?= python3
FILE ?=
ARGS ?=
PLATFORMS ?= linux/amd64,linux/arm64

# The development environment, made anew when pyproject.toml changes.
VENV := .venv
STAMP := $(VENV)/.complete
BIN := $(VENV)/bin
DEMO := build/demo

# Wheels of every platform that there are, for every Python from the oldest one on.
LOCK := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' --output-file

.DEFAULT_GOAL := help
.PHONY: help demo quick test bench faults fuzz check fmt proto images lock grafana clean

help:  ## what there is to make
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: export DEMO_FILE = $(FILE)
demo:  ## move a 1 GiB file over loopback and compare (your own: make demo FILE=path)
	@$(PYTHON) -m venv --clear $(DEMO)
	@$(DEMO)/bin/python -m pip install --quiet --disable-pip-version-check .
	@$(DEMO)/bin/python tests/support/demo.py $${DEMO_FILE:+-- "$$DEMO_FILE"}

quick: $(STAMP)  ## the tests that need no services, in under a minute, without the checks (some: make quick ARGS="-k ledger")
	$(BIN)/pytest -n auto --dist worksteal tests/unit tests/property $(ARGS)

test: check  ## the checks, then every test, some minutes (some: make test ARGS="-k schedule")
	$(BIN)/pytest -n 4 --dist worksteal $(ARGS)

bench: $(STAMP)  ## the pair beside its peers, some hours (beside cp, half a minute: make bench ARGS=quick)
	$(BIN)/python -m tests.bench.run $(ARGS)

faults: $(STAMP)  ## the whole campaign of faults, some 20 minutes (CI runs a part of it)
	$(BIN)/python -m tests.faults.campaign --cases 400 --jobs 4 $(ARGS)

fuzz: $(STAMP)  ## millions of mutated frames against both ends (CI runs a part of it)
	$(BIN)/python -m tests.fuzz.run --cases 5000000 $(ARGS)

check: $(STAMP)  ## format, lint, types, and who may import whom
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fmt: $(STAMP)  ## format the code and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

proto: $(STAMP)  ## generate wire_pb2.py and wire_pb2.pyi from wire.proto
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto --pyi_out=proto filestreamer/v1/wire.proto

images:  ## the images `sender` and `receiver`; with REGISTRY=HOST/PATH for amd64 and arm64, pushed and named by digest
ifdef REGISTRY
	$(PYTHON) deploy/push_images.py $(REGISTRY) $(PLATFORMS) $(ARGS)
else
	DOCKER_BUILDKIT=1 docker build --quiet $(ARGS) --file deploy/Dockerfile --target receiver --tag receiver .
	DOCKER_BUILDKIT=1 docker build --quiet $(ARGS) --file deploy/Dockerfile --target sender --tag sender .
endif

lock: $(STAMP)  ## pin what the images install, by hash: deploy/requirements*.txt
	$(BIN)/python -m pip install --quiet uv
	$(LOCK) deploy/requirements.txt pyproject.toml
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])' \
		| $(LOCK) deploy/requirements-build.txt -

grafana:  ## generate the dashboard from deploy/grafana/dashboard.py
	$(PYTHON) deploy/grafana/dashboard.py > deploy/grafana/dashboards/filestreamer.json

clean:  ## remove environments, builds and caches
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find proto sender receiver tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'  # the first to know dependency groups
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@
