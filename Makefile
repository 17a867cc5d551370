# Targets for people at work on llamita; CONTRIBUTING.md says when to use which.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
export OMP_NUM_THREADS ?= 1

.PHONY: install check fix test golden figures bench bench-gpu cria cria-score cria-read

install:  ## an environment in .venv with everything the tests need
	python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e ".[dev]"

check:  ## style, types and the shape of the package
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m pyright --pythonpath $(PYTHON)
	$(PYTHON) -m pytest -q tests/test_architecture.py tests/test_public.py

fix:  ## let ruff mend what it can
	$(PYTHON) -m ruff check --fix
	$(PYTHON) -m ruff format

test:  ## every test
	$(PYTHON) -m pytest -q -n 2

golden:  ## write the recorded help texts and answers anew
	$(PYTHON) -m tests.golden

figures:  ## modules, lines, cycles and sizes, next to their limits
	$(PYTHON) -m tests.architecture

bench:  ## time and memory of a training step, as a ratio to transformers'
	$(PYTHON) -m llamita bench train --shape 110m --against transformers

bench-gpu:  ## what a GPU reaches, into benchmarks/h100.md; needs one
	$(PYTHON) -m benchmarks.gpu

cria:  ## train the embedded model anew; resumes a run that was cut off
	$(PYTHON) -m recipes.cria.train recipes/cria.toml

cria-score:  ## measure the embedded model on unseen cases
	$(PYTHON) -m recipes.cria.score

cria-read:  ## print its answers to 60 prompts that it was not trained on, to be read
	$(PYTHON) -m recipes.cria.read
