# `make help` lists what can be made. .ci/ holds the longer recipes.

.DEFAULT_GOAL := help
.PHONY: help setup build demo test fuzz bench bench-quick bench-sweep bench-applications vmtest nix-check repro clean

# Debian's cargo, which setup installs, is for the eBPF programs alone: see build.rs.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: ## install what the others need (Debian 12, as root)
	@.ci/setup

build: ## build the release binary, target/release/oncache
	@.ci/release

demo: setup ## show two hosts with and without the caches (as root, two minutes once built)
	cargo build --release --locked --workspace --bins
	@cargo run --quiet --release --locked -p oncache-testbed --bin demo

test: setup ## run every check and test (as root)
	@.ci/test

fuzz: setup ## a million packets by both paths, and past the programs (as root)
	ONCACHE_DIFFERENTIAL_PACKETS=1000000 cargo test --locked --test differential -- --nocapture
	ONCACHE_FUZZ_INPUTS=1000000 cargo test --locked --test program_fuzz -- --nocapture

# The benchmark's own workspace shares the directory of what is built.
BENCH := CARGO_TARGET_DIR=$(or $(CARGO_TARGET_DIR),$(CURDIR)/target) \
	cargo run --quiet --release --locked --manifest-path benches/Cargo.toml --

bench: setup ## measure against overlay, host and floor; writes docs/benchmarks.md (as root, 25 minutes)
	cargo build --release --locked
	@$(BENCH) --document --json docs/benchmarks.json

bench-quick: setup ## the same, short: hit ratios and sanity, not times (as root, a minute once built)
	cargo build --release --locked
	@$(BENCH) --quick

bench-sweep: setup ## the same with ever more flows, peers and containers (as root, six minutes)
	cargo build --release --locked
	@$(BENCH) --sweep flows,peers,containers --document --json docs/benchmarks-sweeps.json

bench-applications: setup ## memcached, PostgreSQL and nginx, which it installs (as root, eight minutes)
	@.ci/setup-applications
	cargo build --release --locked
	@$(BENCH) --applications --document --json docs/benchmarks-applications.json

vmtest: setup ## run the scenarios on virtual machines (as root; SCENARIO=... for some of them)
	@.ci/vmtest $(SCENARIO)

nix-check: ## check the Nix expressions without a Nix cache (NIXPKGS_LIB: nixpkgs' lib)
	@.ci/nix-check

repro: setup ## build twice under different conditions and compare the hashes (some minutes)
	@.ci/repro

clean: ## remove all that was built
	cargo clean
	rm -rf bpf/target benches/target benches/floor/target
