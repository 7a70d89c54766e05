# Short names for `cargo xtask …`, which does the work and explains itself with --help.

CARGO ?= cargo
# Further arguments, for instance: make test ARGS='-- a_name_of_a_test'
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test bench setup plugins image build fmt lint clean

help:
	@echo 'make run      install what is missing, build, start the provider in development mode'
	@echo 'make test     install what is missing, build, check format and lints, run every test'
	@echo 'make bench    measure what the provider costs, beside references, and print a table'
	@echo
	@echo 'make setup    only install what is missing'
	@echo 'make plugins  only build the plugins'
	@echo 'make image    only build the local disk image'
	@echo 'make build    build the plugins and the provider (target/release/golem-provider)'
	@echo 'make fmt      format the sources'
	@echo 'make lint     check format and lints'
	@echo 'make clean    remove what was built (not the image, not the provider'"'"'s data)'
	@echo
	@echo 'Each of the first six takes ARGS=…, see: cargo xtask COMMAND --help'

# One clear line where there is no Rust, instead of make's own.
need-cargo = @command -v $(CARGO) >/dev/null || { \
	echo 'There is no cargo here: install Rust first (https://rustup.rs, or your distribution).' >&2; exit 1; }

run test bench setup plugins image:
	$(need-cargo)
	@$(CARGO) xtask $@ $(ARGS)

build:
	$(need-cargo)
	@$(CARGO) xtask plugins
	@$(CARGO) build --release --package golem-provider

fmt:
	@$(CARGO) fmt --all

lint:
	$(need-cargo)
	@$(CARGO) fmt --all --check
	@$(CARGO) xtask plugins
	@$(CARGO) clippy --workspace --all-targets -- -D warnings

clean:
	@$(CARGO) clean
