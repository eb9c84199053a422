# What a person types. Each target is thin: the work is in `skiff`, cargo and packaging/deps.sh.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

NODES ?= 1
NAME ?= skiff
SKIFF := target/release/skiff

.PHONY: help up down build test lint fmt bench deps-up deps-test

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

up: deps-up build ## Start a cluster (NODES=1, NAME=skiff), run examples/hello.yaml and show it
	@tests/images/build.sh $(SKIFF) target/images >/dev/null
	@$(SKIFF) up --name $(NAME) --nodes $(NODES) --images target/images --apply examples/hello.yaml

down: ## Take the cluster (NAME=skiff) down and leave nothing behind
	@test ! -x $(SKIFF) || $(SKIFF) down --name $(NAME) --purge

build: ## Build the release binary
	@cargo build --release --locked --package skiff-cli

test: lint ## Everything: format, clippy, deny, unit, integration, end-to-end
	@cargo nextest run --locked --workspace

lint: deps-test ## Format check, clippy, licences and bans, the house's own rules; builds everything
	@cargo fmt --all --check
	@shellcheck packaging/*.sh tests/images/*.sh bench/*.sh .ci/run
	@cargo deny --log-level error check bans licenses sources
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@# One selection of packages for everything: another one would have other features, and build all dependencies again.
	@cargo build --locked --workspace --all-targets
	@$${CARGO_TARGET_DIR:-target}/debug/xtask check

fmt: ## Format the code
	@cargo fmt --all

bench: deps-test build ## Measure against shared/TARGETS.md's figures
	@bench/run.sh
	@cargo bench -p skiff-proxy --bench services

deps-up:
	@packaging/deps.sh up

deps-test:
	@packaging/deps.sh test
