# relayd: `make demo` shows it, `make test` proves it, `make check` is the quick part.
# Everything sets itself up: the virtual environment comes and goes with setup.cfg.

PYTHON ?= python3
BIN := .venv/bin

# The environment of a proxy or a test machine must not reach the product (http.trust_env is off).
unexport REQUESTS_CA_BUNDLE CURL_CA_BUNDLE SSL_CERT_FILE SSL_CERT_DIR

.PHONY: help setup demo run test test-floor test-boot check fmt fmt-check lint types arch unit cover bench deb deb-check repo clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup: .venv/.stamp  ## make .venv with .venv/bin/relayd

.venv/.stamp: setup.cfg pyproject.toml
	@sh tools/venv.sh $(PYTHON)
	@touch $@

demo: setup  ## send three devices' mail through a sandbox Microsoft 365, show it, stop
	@$(BIN)/python tools/demo.py

LISTEN ?= 127.0.0.1
NETWORK ?=

run: setup  ## the same, but stay up for your own devices (LISTEN=0.0.0.0 NETWORK=192.168.1.0/24)
	@$(BIN)/python tools/demo.py --stay --listen $(LISTEN) $(addprefix --network ,$(NETWORK))

check: fmt-check lint types arch unit  ## under a minute: format, lint, types, walls, unit tests

fmt: setup  ## rewrite in the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

fmt-check: setup
	$(BIN)/ruff format --check .

lint: setup
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

arch: setup
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 tests/arch

unit: setup
	$(BIN)/python -m pytest -q -n 2 -m "not slow" tests/unit tests/store tests/test_dialogs.py

test: setup  ## everything: installs the foreign clients it may, runs all tests
	@sh tools/clients.sh
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/python -m pytest --ignore=tests/boot
	@$(MAKE) --no-print-directory test-floor
	@$(MAKE) --no-print-directory test-boot

# Debian 12 is the oldest there is: its Python has faults that later ones have not. Where its
# libraries are not installed, this says so.
test-floor: setup  ## once more on Debian's own Python: unit tests, and real processes with its libraries
	@if $(BIN)/python -c 'import sys; sys.exit(sys.base_prefix != "/usr")'; \
	then echo "skipped: .venv has Debian's own Python already"; \
	elif ! /usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo "skipped: /usr/bin/python3 is no Python 3.11 or later"; \
	else sh tools/venv.sh /usr/bin/python3 .venv-floor && \
	  .venv-floor/bin/python -m pytest -q -n 2 tests/unit tests/store tests/test_dialogs.py; fi
	@if /usr/bin/python3 -c 'import argon2, dkim, gevent, msal, prometheus_client, structlog' 2>/dev/null; \
	then RELAYD_PYTHON=/usr/bin/python3 $(BIN)/python -m pytest -q tests/process/test_outage.py \
	  tests/process/test_operator_side.py tests/process/test_reload_under_load.py \
	  tests/process/test_upgrade.py; \
	else echo "skipped: relayd's libraries are not installed for /usr/bin/python3"; fi

test-boot: setup  ## the package on booted Debian 12 and 13, real systemd, in guests of systemd-nspawn (root)
	@sh tools/boot.sh

cover: setup  ## coverage of each module by its own tests
	$(BIN)/python -m coverage run -m pytest -q tests/unit tests/store tests/test_dialogs.py
	$(BIN)/python -m coverage report

bench: setup  ## measure against Postfix, aiosmtpd and a bare loop, side by side
	@sh tools/clients.sh bench
	$(BIN)/python -m bench

deb:  ## build the Debian packages into dist/ (VERSION=0.2.0~test1 names another version)
	@VERSION='$(VERSION)' REV='$(REV)' sh tools/deb.sh dist

deb-check:  ## look hard at the packages: lintian, piuparts, autopkgtest, two builds (minutes)
	@sh tools/deb_check.sh

repo: deb  ## make dist/repo, a signed apt repository (URL=, KEY=)
	@URL='$(URL)' KEY='$(KEY)' sh tools/repo.sh dist dist/repo

clean:  ## remove what was made
	rm -rf .venv .venv-floor build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
