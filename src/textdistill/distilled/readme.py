"""The README of a distilled set, which is its card on the hub."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

from textdistill.distilled.spec import SetMetadata, SetSpec, listed

# The form of a licence identifier on the hub. The hub itself checks identifiers against its list.
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
# The identifier for a set whose maker states no licence.
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


def readme(spec: SetSpec, shapes: Mapping[str, tuple[int, ...]], source: str) -> str:
    """README.md: a header for the hub, then use, scores, provenance, licence and citation.

    Metadata may come from a stranger. Every name is shown on one line and has no effect as Markdown or HTML. A part of
    the provenance is left out if it does not have the form that a run writes.

    Args:
        spec: settings and metadata of the set.
        shapes: of the tensors, by name.
        source: the argument of ``from_pretrained`` that loads the set.

    """
    config, metadata = spec.config, spec.metadata
    classes = metadata.class_names
    license_id, model = _license(metadata), plain(metadata.model.name)
    tensors = "\n".join(f"- `{name}`: {size}" for name, size in shapes.items())
    names = listed([plain(name) for name in classes])
    return f"""---
license: {license_id}
task_categories: [text-classification]
tags: [dataset-distillation, textdistill]
viewer: false
---

# {plain(metadata.task)}, distilled for {model}

{shapes["labels"][0]} learned samples of {config.positions} positions, {config.label_type} labels, attention
labels {config.attention_label_type}: {spec.inner_config.train_step} gradient step(s) on them make {model} a
classifier of {len(classes)} classes ({names}).

{tensors}

{_use(source)}

## Scores

{_scores(metadata, source)}

## Provenance

{_facts(metadata)}

## Licence

{_terms(license_id)}

## Citation

The method:

```bibtex
{CITATION}```
"""


def _use(source: str) -> str:
    """How to load the set, on the command line and in Python."""
    return f"""\
## Use

```sh
textdistill finetune {source} --output model
```

writes an ordinary Hugging Face model. In Python:

```python
from textdistill import DistilledDataset

model = DistilledDataset.from_pretrained("{source}").finetune()
```"""


def plain(text: object) -> str:
    """A name as Markdown that shows the name on one line and has no other effect."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[:200]).split())
    return re.sub(r"[\\`*_{}\[\]()#+!|~.:@$^='\"]", r"\\\g<0>", html.escape(line, quote=False))


def _license(metadata: SetMetadata) -> str:
    """The licence that the metadata state, or ``UNKNOWN``."""
    stated = metadata.provenance.get("license")
    return stated if isinstance(stated, str) and LICENSE.fullmatch(stated) else UNKNOWN


def _terms(license_id: str) -> str:
    if license_id != UNKNOWN:
        return plain(license_id)
    return (
        "The maker of this set names none. Learned samples derive from the data and the model that are named above,\n"
        "whose terms may bind them."
    )


def _scores(metadata: SetMetadata, source: str) -> str:
    """A table of the scores that a run left in the metadata."""
    provenance = metadata.provenance
    lines = ["| metric | mean | standard deviation | learners |", "| --- | --- | --- | --- |"]
    try:
        for name, score in provenance["scores"].items():
            std = "" if score["std"] is None else f"{score['std']:.4f}"
            lines.append(f"| {plain(name)} | {score['mean']:.4f} | {std} | {score['n']:d} |")
        test = provenance["splits"]["test"]
        rows = f"{test['rows']:,d} rows ({plain(test['source'])}), protocol {plain(metadata.data['protocol'])}"
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return "The metadata state none."
    about = f"On {rows}, of learners with fresh heads.\n`textdistill verify {source}` measures them again"
    return "\n".join([f"{about} (with `data.path=` where the data are not on the hub).", "", *lines])


def _facts(metadata: SetMetadata) -> str:
    """One line for each known fact about the origin of the set."""
    provenance = metadata.provenance
    facts = {
        "model": metadata.model.name,
        "revision of the model": metadata.model.revision,
        "fingerprint of the data": metadata.data.get("fingerprint"),
        "seed": provenance.get("seed"),
        "outer steps": provenance.get("outer_steps"),
    }
    versions = provenance.get("versions")
    if isinstance(versions, Mapping):
        facts |= {f"version of {plain(name)}": version for name, version in versions.items()}
    return "\n".join(f"- {name}: {plain(value)}" for name, value in facts.items() if value is not None)
