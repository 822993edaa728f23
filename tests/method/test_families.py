"""Every family of transformers' sequence classifiers: it works as an ordinary model does, or is refused in one line.

docs/models.md lists what this finds. After a change, write its tables anew:

    TEXTDISTILL_WRITE_MODELS=1 python -m pytest tests/method/test_families.py -k page
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from tests.support.fixtures import SaveModel
from tests.support.models import tiny_config
from tests.support.words import CLASS_NAMES, VOCABULARY
from textdistill.method.families import refusal
from textdistill.method.learner import Learner, ModelConfig

FAMILIES = sorted(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
WRITE = "TEXTDISTILL_WRITE_MODELS"
# A table of the page, with its head.
TABLE = r"(?<=^\| {} \|\n\| --- \| --- \|\n)(?:\|.*\n)*"


def try_family(family: str, save_model: SaveModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Learner | str:
    """Returns a learner, or the reason for which the family is refused."""
    config = AutoConfig.for_model(family)
    if refusal(config):
        # No weights: the refusal comes before they are read.
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    else:
        save_model(tiny_config(family), folder)
    try:
        return Learner(ModelConfig(model_name=str(folder)), CLASS_NAMES)
    except ValueError as error:
        (reason,) = re.findall(
            rf"model\.model_name={re.escape(str(folder))} is of family \S+, which cannot be a learner: (.+);"
            r" use a model of a family in docs/models\.md",
            str(error),
        )
        return str(reason)


def describe(learner: Learner | str) -> str:
    """Returns what the page says of a family: how it works, or why it does not."""
    if isinstance(learner, str):
        return learner
    return f"{'decoder' if learner.reads_last else 'encoder'}, {'fused' if learner.has_kernel else 'plain'} attention"


def rows(page: str) -> dict[str, str]:
    """Returns what the page says, by family."""
    tables = re.findall(r"^\| (.+) \| ((?:`[\w-]+`(?:, )?)+) \|$", page, re.MULTILINE)
    return {family: text for text, families in tables for family in re.findall(r"`([\w-]+)`", families)}


def test_page_lists_every_family(save_model: SaveModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    if WRITE in os.environ:
        supported, refused = defaultdict(list), defaultdict(list)
        for family in FAMILIES:
            learner = try_family(family, save_model, tokenizer, tmp_path / family)
            (refused if isinstance(learner, str) else supported)[describe(learner)].append(f"`{family}`")
        page = PAGE.read_text(encoding="utf-8")
        page = re.sub(r"transformers [\d.]+\d", f"transformers {transformers.__version__}", page)
        for head, groups in (("kind | families", supported), ("reason | families", refused)):
            table = "".join(f"| {text} | {', '.join(families)} |\n" for text, families in sorted(groups.items()))
            page = re.sub(TABLE.format(re.escape(head)), table, page, flags=re.MULTILINE)
        PAGE.write_text(page, encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}" not in page:
        pytest.skip("the page lists the families of another version of transformers")
    assert sorted(rows(page)) == FAMILIES, f"set {WRITE}=1 and run this test to write the tables anew"


def batches(learner: Learner) -> dict[str, dict[str, Tensor]]:
    """Texts of 9, 6 and 3 tokens: together with padding, and the longest and the shortest alone without a mask."""
    ids = torch.randint(5, len(VOCABULARY), (3, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([[9], [6], [3]])).long()
    return {
        "padded": {"input_ids": torch.where(mask > 0, ids, learner.tokenizer.pad_token_id), "attention_mask": mask},
        "longest": {"input_ids": ids[:1]},
        "shortest": {"input_ids": ids[2:, :3]},
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_refused_or_agrees_with_its_exported_model(
    family: str, save_model: SaveModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    learner = try_family(family, save_model, tokenizer, tmp_path / "model")
    page = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}" in page:
        assert describe(learner) == rows(page)[family], f"set {WRITE}=1 and run this file to write the tables anew"
    if isinstance(learner, str):
        return
    params = learner.fresh_params(0)
    assert all(name.startswith(f"{learner.model.base_model_prefix}.") for name in params.keys() - learner.head)
    learner.to_model(params).save_pretrained(tmp_path / "exported")
    learner.tokenizer.save_pretrained(tmp_path / "exported")
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    expected = {}
    for name, inputs in batches(learner).items():
        expected[name] = exported(**inputs).logits
        embedded = {"inputs_embeds": learner.embed(inputs["input_ids"])}
        if "attention_mask" in inputs:
            embedded["attention_mask"] = inputs["attention_mask"]
        for ours in (inputs, embedded):
            torch.testing.assert_close(learner(params, ours).logits, expected[name], rtol=0, atol=1e-5)
    alone = torch.cat([expected["longest"], expected["shortest"]])
    torch.testing.assert_close(expected["padded"][[0, 2]], alone, rtol=0, atol=1e-5)
    assert expected["longest"].std() > 0.01
