# `make help` lists what can be made. .ci/ holds the longer recipes.

.DEFAULT_GOAL := help
.PHONY: help setup setup-test build demo test test-all fuzz bench bench-quick bench-sweep bench-applications vmtest nix-check repro clean

CARGO := .ci/cargo

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

setup: ## install what all the others need (Debian 12, as root); each installs its own by itself
	@.ci/setup all

setup-test: ## try the set-up in four fresh Debian 12 (as root, 15 minutes)
	@.ci/setup-test

build: ## build the release binary, target/release/oncache
	@.ci/setup build
	@.ci/release

demo: ## show two hosts with and without the caches (as root, two minutes once built)
	@.ci/setup demo
	$(CARGO) build --release --locked --workspace --bins
	@$(CARGO) run --quiet --release --locked -p oncache-testbed --bin demo

test: ## run every check and test that is run for each change (as root)
	@.ci/setup test
	@.ci/test

test-all: ## the same, and what takes longer (as root)
	@.ci/setup test
	@.ci/test all

fuzz: ## a million packets by both paths, and past the programs (as root)
	@.ci/setup bench
	ONCACHE_DIFFERENTIAL_PACKETS=1000000 $(CARGO) test --locked --test data_path differential:: -- --nocapture
	ONCACHE_FUZZ_INPUTS=1000000 $(CARGO) test --locked --test data_path program_fuzz:: -- --nocapture

# The benchmark's own workspace shares the directory of what is built.
BENCH := CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),$(CURDIR)/target) \
	$(CARGO) run --quiet --release --locked --manifest-path benches/Cargo.toml --

bench: ## measure against overlay, host and floor; writes docs/benchmarks.md (as root, 25 minutes)
	@.ci/setup bench
	$(CARGO) build --release --locked
	@$(BENCH) --document --json docs/benchmarks.json

bench-quick: ## the same, short: hit ratios and sanity, not times (as root, a minute once built)
	@.ci/setup bench
	$(CARGO) build --release --locked
	@$(BENCH) --quick

bench-sweep: ## the same with ever more flows, peers, containers and flows in turn (as root, eight minutes)
	@.ci/setup bench
	$(CARGO) build --release --locked
	@$(BENCH) --sweep flows,peers,containers,crowd --document --json docs/benchmarks-sweeps.json

bench-applications: ## memcached, PostgreSQL and nginx, which it installs (as root, eight minutes)
	@.ci/setup bench
	@.ci/setup-applications
	$(CARGO) build --release --locked
	@$(BENCH) --applications --document --json docs/benchmarks-applications.json

vmtest: ## run the scenarios on virtual machines (as root; SCENARIO=... for some of them)
	@.ci/setup vmtest
	@.ci/vmtest $(SCENARIO)

nix-check: ## check the Nix expressions without a Nix cache (NIXPKGS_LIB: nixpkgs' lib)
	@.ci/nix-check

repro: ## build twice under different conditions and compare the hashes (some minutes)
	@.ci/setup build
	@.ci/repro

clean: ## remove all that was built
	cargo clean
	rm -rf bpf/target benches/target benches/floor/target
