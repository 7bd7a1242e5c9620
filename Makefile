# `make demo` and `make test` are all that a fresh machine needs; README.md has the plain commands for machines without make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= demo-out
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: setup demo test lint types unit suite docs bench-setup clean

setup: $(VENV)/train.stamp

demo: setup
	$(BIN)/anomaly demo --out $(OUT)

test: lint types docs suite

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# without exports, browsers and killed processes
unit: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m unit --numprocesses 2 --dist loadfile --quiet

suite: $(VENV)/dev.stamp .venv-serve/serve.stamp
	ANOMALY_SERVING_PYTHON=$(CURDIR)/.venv-serve/bin/python \
	ANOMALY_OLDEST_ORT_PYTHON=$(CURDIR)/.venv-oldest/bin/python \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-fail-under=85

docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet  # the variable silences an advertisement of the theme

bench-setup: $(VENV)/bench.stamp

$(VENV)/python.stamp:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/train.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	$(PIP) --editable ".[train]"
	touch $@

$(VENV)/dev.stamp: $(VENV)/train.stamp
	$(PIP) --editable ".[train,cluster,dev]"
	touch $@

$(VENV)/bench.stamp: $(VENV)/dev.stamp
	$(PIP) --editable ".[train,cluster,dev,bench]"
	touch $@

# A serving install without torch, and the oldest ONNX Runtime that reads our files where this Python still has a wheel of
# it: both small, both for tests of their own.
.venv-serve/serve.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[serve-cpu]"
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: "onnxruntime==1.14.0" "numpy<2" \
	|| .venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: "onnxruntime==1.15.0" "numpy<2" \
	|| rm -rf .venv-oldest
	touch $@

clean:
	rm -rf $(VENV) .venv-serve .venv-oldest $(OUT) site
