# `make help` lists what there is. Everything that starts a daemon must run as root.

.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/bash

# crictl, for the end-to-end tests.
export CRICTL := $(CURDIR)/hack/critest/bin/crictl
# Every debug build has the fault points, so that nothing is built twice; a release has none.
FEATURES := --features fault-points
# How often `make soak` goes round.
SOAK_ROUNDS ?= 10

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##  Build and run

.PHONY: deps
deps: ## Install what is missing (Debian packages, crictl, critest), or say what to install
	@hack/deps.sh

.PHONY: build
build: ## Build the daemon for debugging: target/debug/quiltd
	cargo build --locked $(FEATURES)

.PHONY: release
release: ## Build the daemon as it is shipped: target/release/quiltd
	cargo build --locked --release
	@hack/no-fault-points.sh target/release/quiltd

.PHONY: run
run: release ## Start the daemon on the default socket, root and state directories
	target/release/quiltd serve

.PHONY: demo
demo: deps build ## A pod from nothing to nothing, with a proof that nothing is left
	@QUILTD=target/debug/quiltd hack/demo.sh

##  Test

.PHONY: test
test: deps fmt clippy tidy unit e2e critest ## Everything that must pass before a change goes in

.PHONY: fmt
fmt: ## Check the format of Rust and Go sources
	cargo fmt --check
	@test -z "$$(gofmt -l hack)" || { echo "run gofmt -w on:"; gofmt -l hack; exit 1; }

.PHONY: clippy
clippy: ## Lint, warnings are errors
	cargo clippy --locked $(FEATURES) --all-targets -- -D warnings
	cd hack/images && go vet ./...

# Built once; unit, e2e and critest share it.
.PHONY: test-build
test-build: deps
	cargo test --locked $(FEATURES) --no-run

.PHONY: tidy
tidy: test-build ## Check layering, budgets and names
	cargo test --locked $(FEATURES) --test tidy

.PHONY: unit
unit: test-build ## Run the unit tests
	cargo test --locked $(FEATURES) --lib --bins
	cd hack/images && go test ./...

.PHONY: e2e
e2e: test-build ## Run the end-to-end tests against real daemons
	cargo test --locked $(FEATURES) --test e2e

.PHONY: critest
critest: test-build ## Run all of critest, and streaming once more over WebSocket; print what fails
	@QUILTD=target/debug/quiltd hack/critest.sh all
	@QUILTD=target/debug/quiltd hack/critest.sh websocket

.PHONY: test-vm
test-vm: test-build ## The tests in a virtual machine: Debian's kernel, systemd, pure cgroup v2, AppArmor; VM_ARGS: vm.sh
	@hack/deps.sh vm
	@hack/vm.sh $(VM_ARGS)

.PHONY: soak
soak: deps build ## The long forms: random walks; critest, the demo and e2e, SOAK_ROUNDS times; all of test-vm
	QUILT_SOAK=1 cargo test --locked $(FEATURES) --lib -- state::walk
	@for round in $$(seq $(SOAK_ROUNDS)); do \
		echo "round $$round of $(SOAK_ROUNDS)"; \
		QUILTD=target/debug/quiltd hack/critest.sh all || exit; \
		QUILTD=target/debug/quiltd hack/demo.sh >target/hack/demo.log 2>&1 || { cat target/hack/demo.log; exit 1; }; \
		QUILT_SOAK=1 cargo test --locked $(FEATURES) --test e2e || exit; \
	done
	@hack/deps.sh vm
	@hack/vm.sh

# Seconds for each target of `make fuzz`.
FUZZ_S ?= 60

.PHONY: fuzz
fuzz: deps ## Feed the parsers of strangers' bytes at random, FUZZ_S seconds each
	@hack/fuzz.sh $(FUZZ_S) $(FUZZ_TARGETS)

##  Measure

.PHONY: bench
bench: deps ## Measure the release build, or any CRI endpoint: ENDPOINT=unix://… IMAGE=…; prints JSON
	@hack/bench.sh $(BENCH_ARGS)

.PHONY: bench-stats
bench-stats: deps ## Measure statistics and kubelet's idle polling beside 200 running containers; prints JSON
	@hack/bench.sh --stats 200

.PHONY: bench-restart
bench-restart: deps ## Kill the release daemon beside 200 running containers, 5 times; prints JSON
	@hack/bench.sh --restart 5

##  Tidy up

.PHONY: clean
clean: ## Remove everything that was built
	cargo clean
	rm -rf hack/critest/bin
