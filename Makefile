# What a person types. Each target is thin: the work is in `skiff`, cargo and packaging/deps.sh.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

NODES ?= 1
NAME ?= skiff
# The profile of the package's binaries; dev is what the tests have built anyhow.
PROFILE ?= release
DESTDIR ?=
TARGET := $${CARGO_TARGET_DIR:-target}
# The tests' own selection: another one would have other features, and build all dependencies again.
PACKAGES := $(if $(filter dev,$(PROFILE)),--workspace --all-targets)
BUILT := $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
SKIFF := target/release/skiff

.PHONY: help up down build test lint fmt bench deps-up deps-test install deb deb-package vm-test vm-test-short vm-image vagrant-test peer-test

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

up: deps-up build ## Start a cluster (NODES=1, NAME=skiff), run examples/hello.yaml and show it
	@tests/images/build.sh $(SKIFF) target/images >/dev/null
	@$(SKIFF) up --name $(NAME) --nodes $(NODES) --images target/images --apply examples/hello.yaml

down: ## Take the cluster (NAME=skiff) down and leave nothing behind
	@test ! -x $(SKIFF) || $(SKIFF) down --name $(NAME) --purge

build: ## Build the release binaries: skiff, and skiff-cni beside it
	@cargo build --release --locked

test: lint ## Everything: format, clippy, deny, unit, integration, end-to-end
	@cargo nextest run --locked --workspace

lint: deps-test ## Format check, clippy, licences and bans, the house's own rules; builds everything
	@cargo fmt --all --check
	@shellcheck packaging/*.sh packaging/debian/p* vagrant/*.sh vagrant/box/*.sh tests/images/*.sh tests/peers/*.sh tests/vm/src/steps/vlan/*.sh bench/*.sh .ci/run
	@cargo deny --log-level error check bans licenses sources
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@# One selection of packages for everything: another one would have other features, and build all dependencies again.
	@cargo build --locked --workspace --all-targets
	@$${CARGO_TARGET_DIR:-target}/debug/xtask check

fmt: ## Format the code
	@cargo fmt --all

bench: deps-test build ## Measure against shared/TARGETS.md's figures
	@bench/run.sh
	@bench/killed.sh
	@tests/peers/kubelet.sh bench $(SKIFF)
	@cargo bench -p skiff-proxy --bench services

peer-test: deps-test build ## Run the kubelet on upstream's control plane, built from Debian's sources (8 minutes, once)
	@tests/peers/kubelet.sh test $(SKIFF)

install: ## Install the binaries, units, man pages and completions below DESTDIR= (PROFILE=release)
	@# Nothing of this goes on to the makefiles of C libraries: jemalloc's would install there, too.
	@env -u MAKEFLAGS -u DESTDIR cargo build --profile $(PROFILE) --locked $(PACKAGES)
	@packaging/install.sh $(BUILT) "$(DESTDIR)"

deb: deb-package ## Build the Debian package, target/debian/skiff_*.deb, and ask lintian (PROFILE=release)
	@lintian --fail-on error,warning target/debian/skiff_*.deb

deb-package:
	@packaging/deps.sh deb
	@rm -rf target/package target/debian
	@$(MAKE) --no-print-directory install DESTDIR=target/package/root
	@cargo deb --quiet --no-build --no-strip --compress-system $(if $(filter dev,$(PROFILE)),--fast --compress-type gz) --package skiff-cli --output target/debian/

vm-test: ## Test in virtual machines: one master, two workers, their failures (PROFILE=release, SUITE=bookworm)
	@packaging/vm-test.sh full $(PROFILE)

vm-test-short: ## The same with one worker, without failures: what CI runs
	@packaging/vm-test.sh short dev

vagrant-test: ## Run `vagrant up` for real: libvirt with emulated machines, in a network of their own
	@vagrant/test.sh

deps-up:
	@packaging/deps.sh up

deps-test:
	@packaging/deps.sh test
