# The two commands: `make demo` and `make test`. Everything else serves them.

CARGO ?= cargo
# Tests that need hosts, Podman and namespaces run as root; a contributor's sudo is asked once.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)

# Simulated histories of the store, of 500 operations or more each; about 3 min on two cores. Seed 1229 fails: docs/testing.md.
STORE_FIRST_SEED ?= 1000
STORE_SEEDS ?= 200
# Changes of one object, and objects of one name made and removed, in the tests of the store's bounds.
# 10,000 of them take more than six minutes.
STORE_ROUNDS ?= 1000
# Cases of each property of histories of the store, and where they begin: other ones each time.
STORE_CASES ?= 512
STORE_CASES_SEED := $(or $(STORE_CASES_SEED),$(shell od -An -N4 -tu4 /dev/urandom | tr -d ' '))

.PHONY: demo test test-all properties acceptance bench bench-others bench-api fuzz build install-packages lint doc unit cluster clean

## Shows the main job on this machine's own Podman. ONESHOT=1: stops by itself.
demo:
	@ONESHOT="$(ONESHOT)" scripts/demo.sh

## What a contributor runs before sending a change.
test: install-packages lint doc unit cluster

## The same, and the long suites: other histories and 1,000 rounds of the store, another simulated history, and the stories with the programs that ship.
test-all: test build
	SEED=3 $(CARGO) test --locked -p reconcilers --test simulation
	STORE_ROUNDS=$(STORE_ROUNDS) $(CARGO) test --locked --release -p store --lib -- --nocapture tests::bounds
	$(MAKE) properties
	FIRST_SEED=$(STORE_FIRST_SEED) SEEDS=$(STORE_SEEDS) $(CARGO) test --locked --release -p store --lib -- --nocapture simulation::what
	PODMAN_SWARM_BIN="$(CURDIR)/target/release" TORTURE_SECONDS=120 $(MAKE) cluster

## Properties of histories of the store, with cases that nobody has seen; STORE_CASES_SEED=n takes those of a run that failed.
properties:
	@echo "PROPTEST_RNG_SEED=$(STORE_CASES_SEED) PROPTEST_CASES=$(STORE_CASES)"
	PROPTEST_RNG_SEED=$(STORE_CASES_SEED) PROPTEST_CASES=$(STORE_CASES) $(CARGO) test --locked --release -p store --lib -- \
	    replicas_that_talk_become_equal squashes_lose_no_write no_edit_disappears edits_of_different_fields_survive \
	    nothing_comes_back_and_nothing_is_lost what_an_apply_names_outlives_its_removal_elsewhere

build:
	$(CARGO) build --locked --release

## Installs from Debian what is missing to run and to test.
install-packages:
	scripts/install-packages.sh

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

## Property tests take the same cases each time; PROPTEST_RNG_SEED=n takes others.
unit:
	PROPTEST_RNG_SEED="$${PROPTEST_RNG_SEED:-1}" $(CARGO) test --locked --workspace --lib --bins --test simulation

## Real hosts: network namespaces with a Podman engine and an agent each.
cluster:
	$(CARGO) test --locked --test it --no-run
	$(SUDO) env PATH="$$PATH" PODMAN_SWARM_BIN="$$PODMAN_SWARM_BIN" TORTURE_SECONDS="$$TORTURE_SECONDS" KUBECTL_VERSIONS="$$KUBECTL_VERSIONS" CARGO_HOME="$${CARGO_HOME:-$$HOME/.cargo}" $(CARGO) test --locked --test it -- --test-threads=1 --nocapture

## Checks the programs in target/release from outside, line by line of what was asked for. ONLY='5.*,dns': some of it.
acceptance: build
	$(SUDO) env PATH="$$PATH" tests/acceptance/accept.py $(if $(ONLY),--only '$(ONLY)')

## Figures for docs/benchmarks.md, each beside its peer. BENCH=write,read: only these sections of the store's.
bench:
	scripts/install-packages.sh --with-benches
	$(CARGO) bench --locked --bench store --no-run
	$(SUDO) env PATH="$$PATH" BENCH="$$BENCH" CARGO_HOME="$${CARGO_HOME:-$$HOME/.cargo}" $(CARGO) bench --locked --bench store
	[ -z "$$BENCH" ] || exit 0; $(MAKE) bench-others

bench-others:
	$(CARGO) bench --locked --bench cluster --no-run
	$(SUDO) env PATH="$$PATH" CARGO_HOME="$${CARGO_HOME:-$$HOME/.cargo}" $(CARGO) bench --locked --bench cluster
	$(CARGO) bench --locked -p store --bench watchers
	$(MAKE) bench-api

## Latency and throughput of the API. BENCH=get,list: some of it. Of another server: API_URL=https://host:6443 API_TOKEN=...,
## and API_CA=file or API_INSECURE=1 where the system does not know its CA.
bench-api:
	scripts/install-packages.sh --with-benches
	$(CARGO) bench --locked --bench api --no-run
	$(SUDO) env PATH="$$PATH" BENCH="$$BENCH" CARGO_HOME="$${CARGO_HOME:-$$HOME/.cargo}" $(CARGO) bench --locked --bench api

## Each fuzz target for FUZZ_SECONDS, beginning with its corpus; a crash stops it and is kept in fuzz/artifacts. Needs a
## nightly compiler and `cargo install cargo-fuzz`. The stack is that of the agent's threads.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS = changes frames datagrams records manifests
fuzz:
	set -e; ulimit -s 2048; for target in $(FUZZ_TARGETS); do mkdir -p fuzz/found/$$target fuzz/regressions/$$target; \
	    $(CARGO) +nightly fuzz run -s none $$target fuzz/found/$$target fuzz/corpus/$$target fuzz/regressions/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -entropic=0 -rss_limit_mb=2048 -timeout=10; done

clean:
	$(CARGO) clean
