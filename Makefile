# Every command a user or contributor of tidegate runs; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The whole suite runs in a worker for each core, a part of it in one process: a worker takes 20 seconds to begin.
PYTEST_ARGS ?=
PYTEST_WORKERS ?= $(if $(PYTEST_ARGS),,-n auto --maxprocesses 8 --dist worksteal)
BENCH_ARGS ?=
CHAOS_ARGS ?=
SEARCH_ARGS ?=
TABLE_ARGS ?=

# Stamps live inside the environment, so removing it forgets them too.
SERVING := $(VENV)/.serving-installed
EVERYTHING := $(VENV)/.everything-installed
CLIENTS := $(VENV)/oip-clients

PROTOS := $(sort $(wildcard proto/tidegate/v1/*.proto proto/tidegate/oip/*.proto))
# The directories of generated stubs: proto/tidegate/v1 → tidegate/v1.
STUB_DIRS := $(patsubst proto/%,%,$(patsubst %/,%,$(sort $(dir $(PROTOS)))))

.DEFAULT_GOAL := help
.PHONY: help venv serve test quick system-packages check chaos search-graphs vad-bundle import-table stubs stubs-check sync-client bench bench-curves bench-peers bench-stores bench-drift bench-gpu dashboards wheel clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tidegate needs Python 3.11 or later: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# The serving part alone: no torch, so `make serve` on a clean clone takes seconds to install.
$(SERVING): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	@touch $@

# torch first and by itself, so that its large wheel is settled before anything else is resolved.
$(EVERYTHING): pyproject.toml $(SERVING)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[cpu,train,redis,otel,dev,test]'
	@touch $@

# The stock clients of tests/e2e/oip want other versions of what we serve with: they have an environment of their own.
$(CLIENTS)/requirements.txt: tests/e2e/oip/requirements.txt | $(BIN)/python
	$(BIN)/python -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --requirement $<
	@cp $< $@

venv: $(EVERYTHING) $(CLIENTS)/requirements.txt ## .venv with everything: serving, training, tests, tools

serve: $(SERVING) ## serve bundles/ on 127.0.0.1:8080 (HTTP) and :8081 (gRPC)
	@exec $(BIN)/tidegate serve

# Debian packages first: one of them may be what makes the environment.
test: system-packages ## all tests; PYTEST_ARGS="-k name" narrows them
	@$(MAKE) --no-print-directory venv
	$(BIN)/python -m pytest $(PYTEST_WORKERS) $(PYTEST_ARGS)

# What is left out starts processes or other servers, waits, or takes long.
QUICK := tests/test_repository.py tests/service $(addprefix --ignore=tests/service/, \
	client cluster grpc oip sessions/stores sessions/test_migration.py transports test_cli.py test_drift.py test_limits.py test_no_torch.py \
	test_onnx_file.py test_run_time.py test_sandbox.py test_service_columns.py test_service_drift.py test_service_equality.py)

quick: $(EVERYTHING) ## tests of the service's parts, with few examples, in less than a minute: for while you write
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --hypothesis-profile=quick $(QUICK) $(PYTEST_ARGS)

system-packages: ## what tests need beside Python, where it can be installed without a password
	@.ci/system-packages

chaos: $(EVERYTHING) system-packages ## a hundred killed replicas and all other faults (half an hour, as root): CHAOS_ARGS="--seed 1"
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

search-graphs: $(EVERYTHING) ## import 10,000 random graphs and compare what is served with an oracle (an hour): SEARCH_ARGS="--graphs 500 --keep DIR"
	$(BIN)/python -m tests.search $(SEARCH_ARGS)

vad-bundle: $(EVERYTHING) ## download silero-vad and import it as bundles/vad: VAD_ARGS="--out DIR"
	$(BIN)/python tools/vad_bundle.py $(VAD_ARGS)

import-table: $(EVERYTHING) ## download the models of tools/import_table.toml, import them and write docs/import.md's table: TABLE_ARGS="--only silero"
	$(BIN)/python tools/import_table.py $(TABLE_ARGS)

check: $(EVERYTHING) stubs-check ## lint, format, types, and that generated code is up to date
	$(BIN)/python tools/sync_client.py --check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Stubs mirror the protos' path, so that the imports inside them work unpatched. $(1): the directory they are written to.
define generate
$(BIN)/python -m grpc_tools.protoc -I proto --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)
endef

stubs: $(EVERYTHING) ## regenerate service/tidegate/v1 from proto/
	$(call generate,service)

stubs-check: $(EVERYTHING)
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call generate,"$$fresh") && \
	for dir in $(STUB_DIRS); do \
		diff --recursive --exclude=__pycache__ --exclude=__init__.py --exclude=py.typed "$$fresh/$$dir" "service/$$dir" \
			|| { echo "service/$$dir is not what proto/ generates: run make stubs" >&2; exit 1; }; \
	done

sync-client: $(EVERYTHING) ## regenerate service/tidegate/client/_sync from _async
	$(BIN)/python tools/sync_client.py

bench: $(EVERYTHING) ## measure the target table: bench/RESULTS.md (20 minutes, on a quiet machine; needs g++)
	$(BIN)/python -m bench $(BENCH_ARGS)

bench-curves: $(EVERYTHING) ## measure the growth curves: bench/CURVES.md
	$(BIN)/python -m bench.curves $(BENCH_ARGS)

bench-peers: $(EVERYTHING) ## measure other servers beside ours, each installed into an environment of its own
	$(BIN)/python -m bench.peers $(BENCH_ARGS)

bench-stores: $(EVERYTHING) ## measure durable sessions on SQLite and Redis, a million of them too (15 minutes, 10 GB of disk)
	$(BIN)/python -m bench.stores $(BENCH_ARGS)

bench-drift: $(EVERYTHING) ## measure false alarms and delays of the control charts: docs/monitoring.md (needs Debian's bible-kjv)
	$(BIN)/python -m bench.drift

bench-gpu: $(EVERYTHING) ## measure states on a GPU: bench/GPU.md (needs onnxruntime-gpu and a torch that sees the GPU)
	$(BIN)/python -m bench.gpu $(BENCH_ARGS)

dashboards: $(EVERYTHING) ## regenerate deploy/grafana/dashboards (a test holds them against deploy/grafana/*.py)
	$(BIN)/python -m deploy.grafana

wheel: $(BIN)/python ## build dist/tidegate-*.whl
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove builds and caches; .venv, runs/ and .tidegate/ stay
	rm -rf dist build bench/build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find bench export models service tests -name __pycache__ -type d -prune -exec rm -rf {} +
