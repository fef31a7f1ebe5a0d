# Every target sets up what it needs in .venv: `make demo` and `make test` work on a fresh clone.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
CODE   := onnxcompress models tests

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-oldest test-olive test-openvino lint types package bench clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Marks of a finished installation, inside .venv so that deleting it resets them. The demo needs no torch.
$(VENV)/.stamp-core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev,train]'
	@touch $@

demo: $(VENV)/.stamp-core ## compress the embedded GoogLeNet for digits and show the table before / after
	@mkdir -p out
	$(BIN)/python -m onnxcompress models/googlenet-digits.onnx out/googlenet-digits-small.onnx \
	    --prune 0.4 --tucker auto --data models/digits-test.npz --preprocess unit \
	    --report out/googlenet-digits-small.json --overwrite

test: $(VENV)/.stamp-dev ## the test suite without its slow and long random parts
	$(BIN)/python -m pytest -n 2 -q

test-all: $(VENV)/.stamp-dev ## the whole test suite
	$(BIN)/python -m pytest -n 2 -q -m ''

# An environment of its own: onnxruntime-openvino brings the module that onnxruntime brings.
OPENVINO := $(VENV)-openvino
$(OPENVINO)/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OPENVINO)
	$(OPENVINO)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e . pytest hypothesis
	$(OPENVINO)/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes onnxruntime
	$(OPENVINO)/bin/python -m pip --disable-pip-version-check install --quiet --force-reinstall --no-deps 'onnxruntime-openvino>=1.20'
	@touch $@

test-openvino: $(OPENVINO)/.stamp ## the tests on OpenVINO, a second execution provider, in .venv-openvino
	$(OPENVINO)/bin/python -m pytest -q tests/runtime/test_openvino.py

$(VENV)/.stamp-olive: pyproject.toml constraints.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/olive
	$(VENV)/olive/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt \
	    -e '.[olive]' hypothesis pytest
	@touch $@

test-olive: $(VENV)/.stamp-olive ## the pass for Microsoft Olive with the real one, in an environment of its own
	$(VENV)/olive/bin/python -m pytest -q tests/olive

# The oldest versions in an environment of its own, without PyTorch and the extras: what needs them is left out.
OLDEST := $(VENV)-oldest
OLDEST_PYTHON ?= $(shell python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
$(OLDEST)/.stamp: pyproject.toml constraints-oldest.txt
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-oldest.txt \
	    -e . hypothesis jsonschema ml_dtypes pytest pytest-xdist pyyaml
	@touch $@

test-oldest: $(OLDEST)/.stamp ## the suite with the oldest supported versions, on Python 3.10 where there is one
	$(OLDEST)/bin/python -m pytest -n 2 -q

lint: $(VENV)/.stamp-dev ## ruff: rules and formatting
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(VENV)/.stamp-dev ## mypy, strict
	$(BIN)/mypy

package: $(VENV)/.stamp-dev ## build wheel and sdist, check them, install the wheel in an empty environment and call it
	rm -rf dist $(VENV)/wheel
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/python -m pip --disable-pip-version-check install --quiet dist/*.whl
	cd $(VENV)/wheel && bin/onnxcompress --version && bin/onnxcompress --help >/dev/null

bench: $(VENV)/.stamp-dev ## the benchmarks, one after another
	@for benchmark in tests/benchmarks/bench_*.py; do echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; done

clean: ## what the targets made, .venv included
	rm -rf $(VENV) $(OPENVINO) $(OLDEST) build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
