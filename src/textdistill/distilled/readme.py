"""What a set says of itself: its README.md, and a card without the places of the machine that it was made on."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

# Keys whose values are folders or files: path, datasets_path, save_dir, data_dir_root, ...
PATH_KEY = re.compile(r"(.*_)?(path|dir|root)")
# As the hub spells its identifiers, of which it keeps the list; the README says UNKNOWN where the maker says nothing.
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
UNKNOWN = "unknown"

CITATION = """\
@inproceedings{maekawa-etal-2023-dataset,
  title = {Dataset Distillation with Attention Labels for Fine-tuning {BERT}},
  author = {Maekawa, Aru and Kobayashi, Naoki and Funakoshi, Kotaro and Okumura, Manabu},
  booktitle = {Proceedings of the 61st Annual Meeting of the Association for Computational Linguistics (Volume 2: Short Papers)},
  year = {2023},
  pages = {119--127},
  doi = {10.18653/v1/2023.acl-short.12},
}
"""  # noqa: E501


def drop_local_paths(value: Any) -> Any:
    """A value of a card, all the way down, without folders and files of this machine.

    Keys that name a place are left out. A string that is a path, absolute or from ``.`` or ``~``, becomes its last
    part: the name of a model or a task may be one.
    """
    if isinstance(value, Mapping):
        return {key: drop_local_paths(item) for key, item in value.items() if not PATH_KEY.fullmatch(key)}
    if isinstance(value, list | tuple):
        return type(value)(drop_local_paths(item) for item in value)
    if isinstance(value, str) and (PurePath(value).is_absolute() or value.startswith((".", "~"))):
        return PurePath(value).name
    return value


def readme(card: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], source: str) -> str:
    """README.md: metadata that the hub reads, use, scores, provenance, licence, citation.

    A card comes from strangers: whatever it says is shown, on one line, and does nothing else. Its provenance may hold
    anything; what is not of the form that a run writes is left out.

    Args:
        card: what ``config.json`` says.
        shapes: of the tensors, by name.
        source: what ``from_pretrained`` takes to load the set.

    """
    shape, provenance, classes = card["distilled_data"], card["provenance"], card["class_names"]
    license_id, model = _license(provenance), plain(card["model"]["name"])
    tensors = "\n".join(f"- `{name}`: {tuple(size)}" for name, size in shapes.items())
    names = ", ".join(map(plain, classes[:20])) + (", ..." if len(classes) > 20 else "")
    return f"""---
license: {license_id}
task_categories: [text-classification]
tags: [dataset-distillation, textdistill]
viewer: false
---

# {plain(card["task"])}, distilled for {model}

{shapes["labels"][0]} learned samples of {shape["seq_length"]} positions, {shape["label_type"]} labels, attention
labels {shape["attention_label_type"]}: {card["learner_train"]["train_step"]} gradient step(s) on them make {model} a
classifier of {len(classes)} classes ({names}).

{tensors}

## Use

```sh
textdistill finetune {source} --output model
```

writes an ordinary Hugging Face model. In Python:

```python
from textdistill import DistilledDataset

model = DistilledDataset.from_pretrained("{source}").finetune()
```

## Scores

{_scores(card, source)}

## Provenance

{_facts(card)}

## Licence

{_terms(license_id)}

## Citation

The method:

```bibtex
{CITATION}```
"""


def plain(text: object) -> str:
    """A name as Markdown that shows it, on one line, and does nothing else."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[:200]).split())
    return re.sub(r"[\\`*_{}\[\]()#+!|~.:@$^='\"]", r"\\\g<0>", html.escape(line, quote=False))


def _license(provenance: Mapping[str, Any]) -> str:
    stated = provenance.get("license")
    return stated if isinstance(stated, str) and LICENSE.fullmatch(stated) else UNKNOWN


def _terms(license_id: str) -> str:
    if license_id != UNKNOWN:
        return plain(license_id)
    return (
        "The maker of this set names none. Learned samples derive from the data and the model that are named above,\n"
        "whose terms may bind them."
    )


def _scores(card: Mapping[str, Any], source: str) -> str:
    """A table of the scores that a run left in the card."""
    provenance = card["provenance"]
    lines = ["| metric | mean | standard deviation | learners |", "| --- | --- | --- | --- |"]
    try:
        for name, score in provenance["scores"].items():
            std = "" if score["std"] is None else f"{score['std']:.4f}"
            lines.append(f"| {plain(name)} | {score['mean']:.4f} | {std} | {score['n']:d} |")
        test = provenance["splits"]["test"]
        where = f"{test['rows']:,d} rows ({plain(test['source'])}), protocol {plain(card['data']['protocol'])}"
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return "The card states none."
    about = f"On {where}, of learners with fresh heads.\n`textdistill verify {source}` measures them again"
    return "\n".join([f"{about} (with `data.path=` where the data are not on the hub).", "", *lines])


def _facts(card: Mapping[str, Any]) -> str:
    """One line for each thing that the card knows of how the set came about."""
    provenance, model = card["provenance"], card["model"]
    facts = {
        "model": model["name"],
        "revision of the model": model["revision"],
        "fingerprint of the data": card["data"].get("fingerprint"),
        "seed": provenance.get("seed"),
        "outer steps": provenance.get("outer_steps"),
    }
    versions = provenance.get("versions")
    if isinstance(versions, Mapping):
        facts |= {f"version of {plain(name)}": version for name, version in versions.items()}
    return "\n".join(f"- {name}: {plain(value)}" for name, value in facts.items() if value is not None)
