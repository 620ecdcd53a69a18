# The front door. `make help` lists what there is; each target is at most three lines.
.DEFAULT_GOAL := help
.PHONY: help setup system demo test check unit pythons pythons-part stress stores kills live failover bench bench-quick bench-overlay bench-management mutants schedules soak wheels docs proto lock format clean

export UV_PYTHON_DOWNLOADS := never
# Some machines switch bytecode off, and every process of ours would then compile what it imports: seconds a start.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
BIN := .venv/bin
NATIVE := netbird_http netbird_overlay

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.ready ## Make the virtual environment, with every package of this repository in it

.venv/.ready: requirements.lock pyproject.toml $(wildcard */pyproject.toml plugins/*/pyproject.toml) tools/setup.sh
	@PYTHON="$(PYTHON)" bash tools/setup.sh && touch $@

engine: setup ## Build the native libraries where their sources changed
	@for folder in $(NATIVE); do bash tools/build_native.sh $$folder || exit 1; done

system: ## Install the Debian packages that live tests and benchmarks use (as root)
	@bash tools/system.sh

demo: engine ## Play the story on real processes; ARGS=--once ends after it
	@$(BIN)/python -m examples.demo $(ARGS)

test: engine system unit pythons-part stores live mutants ## Everything that continuous integration runs after `make check`

check: setup ## Formatting, lint, types, import rules, prose, and that each mutant finds its guard
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/python tools/prose.py
	@PYTHONPATH=netbird_http:netbird_overlay $(BIN)/lint-imports && $(BIN)/python -m tests.mutants --check
	@! git grep -q --cached '^source = ' -- '*Cargo.lock' || { echo "Cargo.lock names a registry: build_backend.py says how to call cargo" >&2; exit 1; }

unit: engine ## Tests that need nothing but loopback
	@for folder in $(NATIVE); do bash tools/build_native.sh $$folder test || exit 1; done
	@$(BIN)/python -m pytest -n 2 -m "not live" $(ARGS)

pythons: engine ## The unit tests on each other supported Python that is found (3.11, 3.12, 3.13); ARGS are pytest's
	@bash tools/pythons.sh $(ARGS)

pythons-part: engine # Of these, what differs between Pythons: sockets, processes, values
	@bash tools/pythons.sh tests/netbird_host tests/netbird_proxy tests/netbird_management/cli tests/netbird_management/compute

stress: engine ## The unit tests in random order beside other work, five times; ROUNDS=1, ARGS are pytest's
	@bash tools/stress.sh $(ARGS)

stores: engine system ## What of management's tests has a store, once more, on PostgreSQL
	@NETBIRD_TEST_STORES=postgresql $(BIN)/python -m pytest -n 2 tests/netbird_management $(ARGS)

kills: engine system ## Kill every kind of write before each of its statements, on both stores; `unit` and `stores` kill a sample
	@NETBIRD_TEST_KILLS=every NETBIRD_TEST_STORES=sqlite,postgresql \
		$(BIN)/python -m pytest -n 2 tests/netbird_management/store/test_kills.py $(ARGS)

live: engine system ## The story and its relatives, on real processes and namespaces
	@$(BIN)/python -m pytest -m live $(ARGS)

failover: engine system ## Of these, two proxies under a stock WireGuard client, killed in turn
	@$(BIN)/python -m pytest -m live tests/e2e/test_two_proxies.py $(ARGS)

mutants: engine ## Remove each guard that a promise stands on, and see its tests fail
	@$(BIN)/python -m tests.mutants $(ARGS)

bench: engine system ## Compare with other servers by HTTP, in one run of at most 15 minutes; writes docs/performance.md
	@$(BIN)/python -m bench.tools && $(BIN)/python -m bench $(ARGS)

bench-quick: engine system ## Of these, the plainest rows, in two minutes; writes nothing
	@$(BIN)/python -m bench.tools && $(BIN)/python -m bench quick $(ARGS)

bench-overlay: engine system ## The same through the tunnel, then the relay and the signal server (as root)
	@$(BIN)/python -m bench.tools && $(BIN)/python -m bench overlay $(ARGS)
	@$(BIN)/python -m bench.relay && $(BIN)/python -m bench.signals

bench-management: engine system ## How long changes take, what management costs, and 10,000 services at a proxy
	@$(BIN)/python -m bench.changes && $(BIN)/python -m bench.management && $(BIN)/python -m bench.force

schedules: engine ## Play 500 seeded schedules of changes and faults; ARGS=--count 50, --first 1000
	@$(BIN)/python -m tests.schedules $(ARGS)

soak: engine ## Mixed load and a change every second for 20 minutes; ARGS=--seconds 60
	@$(BIN)/python -m tests.schedules.soak $(ARGS)

differential: engine system ## The same raw requests through nginx and through us; ARGS=--all shows every difference
	@$(BIN)/python -m tests.live.differential $(ARGS)

slowhttptest: engine system ## Slow clients against us, in four modes, beside other clients' rate
	@$(BIN)/python -m tests.live.slow $(ARGS)

autobahn: engine ## Autobahn's fuzzing client through the proxy, against an echo server
	@$(BIN)/python -m tests.live.autobahn $(ARGS)

wheels: setup ## Build a wheel and a source distribution of every package into dist/; ARGS=FOLDER instead
	@bash tools/wheels.sh $(ARGS)

docs: setup ## Write the generated parts of the pages
	@$(BIN)/python docs/generate.py && $(BIN)/python docs/openapi.py

proto: setup ## Generate the wire's code from its sources
	@bash proto/generate.sh

lock: setup ## Pin every package anew
	@bash tools/lock.sh

format: setup ## Format and fix what can be fixed
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean: ## Remove what was built
	@rm -rf .venv .venv-3.* $(addsuffix /target,$(NATIVE)) dist .mypy_cache .ruff_cache
