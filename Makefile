# `make demo`, `make test` and `make docs` need python 3.10 or newer with venv, and a package index; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test bench docs bench-gpu test-gpu clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/mixcontrast demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow and not gpu'

bench: $(VENV)/.installed
	$(BIN)/python eval/bench_mixers.py
	$(BIN)/python eval/bench_retrieval.py

docs: $(VENV)/.installed
	$(BIN)/python docs/build.py

# Where there is a GPU.
bench-gpu: $(VENV)/.installed
	$(BIN)/python eval/bench_gpu.py

test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu

clean:
	rm -rf site $(VENV) build dist *.egg-info
