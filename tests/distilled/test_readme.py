"""The README of a set, whatever its metadata hold."""

from __future__ import annotations

from dataclasses import replace
from html import escape
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from textdistill.distilled.readme import CITATION, readme
from textdistill.distilled.spec import (
    DistilledDataConfig,
    LabelType,
    LearnerTrainConfig,
    ModelMetadata,
    SetMetadata,
    SetSpec,
)
from textdistill.method.attention import AttentionLabelType

SHAPES = {"inputs_embeds": (2, 8, 16), "labels": (2, 2), "lr": (3,), "attention_labels": (2, 2, 4, 1, 8)}


def a_spec(name: str = "NAME", **provenance: Any) -> SetSpec:
    """Settings and metadata of a run's set; every name in them is ``name``."""
    config = DistilledDataConfig(seq_length=8, label_type=LabelType.soft, attention_label_type=AttentionLabelType.cls)
    metadata = SetMetadata(
        task=name,
        class_names=(name, "other"),
        model=ModelMetadata(name, revision=name, embedding_size=16, num_layers=2, num_heads=4, parameters=()),
        data={"protocol": name, "fingerprint": name},
        provenance={
            "seed": 42,
            "outer_steps": 1600,
            "versions": {name: name},
            "scores": {name: {"mean": 0.87654, "std": 0.00321, "n": 5}, "loss": {"mean": 0.4, "std": None, "n": 1}},
            "splits": {"test": {"source": name, "rows": 7600}},
            **provenance,
        },
    )
    return SetSpec(config, LearnerTrainConfig(train_step=3), metadata)


def changed(spec: SetSpec, **changes: Any) -> SetSpec:
    return spec._replace(metadata=replace(spec.metadata, **changes))


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def metadata(text: str) -> Any:
    start, head, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head)


def test_readme_of_a_run() -> None:
    text = readme(a_spec(license="cc-by-4.0"), SHAPES, "owner/name")
    assert metadata(text) == {
        "license": "cc-by-4.0",
        "task_categories": ["text-classification"],
        "tags": ["dataset-distillation", "textdistill"],
        "viewer": False,
    }
    assert (
        "# NAME, distilled for NAME\n\n2 learned samples of 8 positions, soft labels, attention\nlabels cls: 3" in text
    )
    assert "- `attention_labels`: (2, 2, 4, 1, 8)" in text
    assert "textdistill finetune owner/name --output model" in text
    assert 'DistilledDataset.from_pretrained("owner/name").finetune()' in text
    assert "On 7,600 rows (NAME), protocol NAME, of learners with fresh heads.\n`textdistill verify owner/name`" in text
    assert "| NAME | 0.8765 | 0.0032 | 5 |\n| loss | 0.4000 |  | 1 |\n" in text
    assert "- seed: 42\n- outer steps: 1600\n- version of NAME: NAME\n" in text
    assert "## Licence\n\ncc-by-4\\.0\n" in text
    assert f"```bibtex\n{CITATION}```\n" in text


@pytest.mark.parametrize("license_id", [None, "", "MIT", "mit\nviewer: true", "a: b", ["mit"], 3])
def test_licence_that_is_none(license_id: Any) -> None:
    text = readme(a_spec(license=license_id), SHAPES, "PATH")
    assert metadata(text)["license"] == "unknown"
    assert "## Licence\n\nThe maker of this set names none." in text


NAMES = [
    "x\n---\nlicense: evil\n---\n# Heading",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "![a](https://evil.example/x.png)",
    "`code` ```block```",
    "a | b | c",
    "**bold** _it_ ~~no~~ $x$ # x",
    "&lt;b&gt; &amp; \\* \\",
    "https://evil.example www.evil.example someone@evil.example",
    "a\u202eb\x00c\x1b[31m\u2028# d",
    "x" * 10_000,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_and_obeyed_by_none(name: str) -> None:
    text = readme(a_spec(name), SHAPES, "PATH")
    assert text.count("---\n") == 2
    assert metadata(text) == metadata(readme(a_spec(), SHAPES, "PATH"))
    shown = " ".join("".join(c if c.isprintable() else " " for c in name[:200]).split())
    expected = rendered(readme(a_spec(), SHAPES, "PATH")).replace("NAME", escape(shown))
    assert rendered(text) == expected


@pytest.mark.parametrize(
    "provenance",
    [
        {"scores": None},
        {"scores": []},
        {"scores": {"accuracy": 0.9}},
        {"scores": {"accuracy": {"mean": "0.9", "std": None, "n": 5}}},
        {"scores": {"accuracy": {"mean": 10**400, "std": None, "n": 5}}},
        {"scores": {"accuracy": {"mean": 0.9, "std": [], "n": 5}}},
        {"scores": {"accuracy": {"mean": 0.9, "std": 0.1, "n": "5 | x"}}},
        {"splits": None},
        {"splits": {"test": {"source": "test", "rows": "many"}}},
    ],
)
def test_scores_of_another_form_are_left_out(provenance: dict[str, Any]) -> None:
    text = readme(a_spec(**provenance), SHAPES, "PATH")
    assert "## Scores\n\nThe metadata state none.\n" in text
    assert "- seed: 42" in text


def test_readme_of_metadata_that_know_nothing() -> None:
    spec = a_spec()
    model = replace(spec.metadata.model, revision=None)
    text = readme(changed(spec, data={}, provenance={"versions": "1.0"}, model=model), SHAPES, "PATH")
    assert "## Provenance\n\n- model: NAME\n\n## Licence" in text


def test_many_classes_are_not_all_named() -> None:
    text = readme(changed(a_spec(), class_names=tuple(f"c{i}" for i in range(1000))), SHAPES, "PATH")
    assert "classifier of 1000 classes (c0, c1, " in text
    assert "c19 and 980 more)." in text
