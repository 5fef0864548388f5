# Everything that a fresh machine needs is Python 3.11 and make.
# A line `target: ## text` is what `make help` shows.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Photographs for the tests, where a folder of them lies beside the checkout.
ifneq ($(wildcard ../shared/data/dogs),)
export DOGBREED_DATA_DIR ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install tune ui check test test-all bench lock

help: ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

install: $(STAMP) ## make .venv with the pinned packages, once per requirements.txt

# --no-deps: the pins are whole, nothing is resolved again; --no-build-isolation: setuptools is one of them.
$(STAMP): requirements.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and f"Python 3.11 is needed (smdebug needs distutils), $(PYTHON) is {v[0]}.{v[1]}; make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-deps -r requirements.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

tune: install ## the quickstart: search a ResNet50 on drawn dogs, minutes on two cores
	PATH="$(abspath $(BIN)):$$PATH" mlflow run . -e tune --env-manager local --experiment-name quickstart -P config=experiments/quickstart.yaml

ui: install ## the MLflow UI on this project's store
	$(BIN)/dogbreed ui

check: install ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Two at once; tests of one file share its fixtures.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0

test: install ## every test but slow, gpu and aws
	$(PYTEST) -m "not slow and not gpu and not aws"

test-all: install ## every test but aws; gpu tests skip where there is none
	$(PYTEST) -m "not aws"

bench: install ## the README's figures, side by side with what a user would write
	$(BIN)/python -m benchmarks

# uv keeps the pins already in the file; `make lock ARGS=--upgrade` renews them. The marker that every line would carry
# (the environments of pyproject.toml) is taken off, so that pip and conda read plain pins.
lock: install ## remake requirements.txt and conda.yaml, for Linux and macOS
	$(BIN)/uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --quiet \
		--no-emit-index-url --no-emit-find-links --no-annotate --no-header $(ARGS) -o requirements.txt
	sed -i.bak -e "s/ ; python_full_version < '3.12' and sys_platform != 'win32'$$//" \
		-e "s/python_full_version < '3.12' and //g" requirements.txt && rm requirements.txt.bak
	sed -i.bak "s/^# requirements.txt sha256: .*/# requirements.txt sha256: $$($(PYTHON) -c 'import hashlib; print(hashlib.sha256(open("requirements.txt", "rb").read()).hexdigest())')/" conda.yaml && rm conda.yaml.bak
