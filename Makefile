# People and CI call the same names. `make help` lists them.

# A first try should show the speed users will see: tar, zstd, hashing and SQLite are several times slower unoptimised.
# That build takes 4 to 7 minutes on two cores; `make run PROFILE=dev` is there in about 90 seconds.
PROFILE ?= release
# Arguments for `optio-codex serve`, as in `make run ARGS='--listen 127.0.0.1:8080'`.
ARGS ?=

# Programs that no package of the system brings (the pinned codex, mongod, cargo-deny). Never committed.
export OPTIO_TOOLS ?= $(CURDIR)/.tools
export PATH := $(PATH):$(OPTIO_TOOLS)/bin

# cargo-nextest prints the failures last and runs faster, but leaves the examples in doc comments to `cargo test --doc`.
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

.PHONY: help run test check demo setup setup-test setup-check
.DEFAULT_GOAL := help

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 20

run: setup ## build the service and start it with the embedded store; prints a login link (PROFILE=dev builds faster)
	cargo run --locked --profile $(PROFILE) --bin optio-codex -- serve $(ARGS)

test: setup-test ## run every test, with the real codex, mongod, tmux and browser
ifdef NEXTEST
	cargo nextest run --locked --workspace --no-fail-fast
	cargo test --locked --workspace --doc
else
	cargo test --locked --workspace --no-fail-fast
endif
	scripts/page test

check: setup-check ## formatting, lints, licences and the rules of who may depend on whom
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo deny --locked check bans licenses sources
	scripts/page check

demo: setup ## drive a session against a mock model: no account, no network
	cargo run --locked --example demo

setup: ## install what `make run` needs and is missing (tmux, codex)
	@scripts/setup run

setup-test: ## install what `make test` needs and is missing
	@scripts/setup test

setup-check: ## install what `make check` needs and is missing
	@scripts/setup check
