"""The documents: links lead somewhere, commands and Python run, names and tables agree with the code.

Blocks run on a tiny model, in order, each document in a folder of its own with all that documents name. A block that
cannot run has ``<!-- not run: REASON -->`` before it.
"""

from __future__ import annotations

import contextlib
import csv
import doctest
import pkgutil
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset, DatasetDict
from markdown_it import MarkdownIt
from markdown_it.token import Token
from omegaconf import OmegaConf

import textdistill
from tests.support.fixtures import SaveModel
from tests.support.models import tiny_bert_config
from tests.support.toy import write_reference_folder
from tests.support.words import toy_rows
from textdistill import config
from textdistill.cli.app import verb_names
from textdistill.cli.main import main
from textdistill.config import RunConfig, compose
from textdistill.distilled.dataset import DistilledDataset
from textdistill.method import pretrained
from textdistill.method.pretrained import locate_weights
from textdistill.runs.metrics import flatten

ROOT = Path(__file__).parents[2]
# tests/docs/test_reference.py compares the page of commands with the program.
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {ROOT / "docs/reference/commands.md"})
NAMES = [str(document.relative_to(ROOT)) for document in DOCUMENTS]
GROUPS = [group.name for group in fields(RunConfig) if group.name != "tracking"]

RUN = {"sh", "python"}
# Languages of blocks that show something; commands have no place in them.
SHOWN = {"", "text"}
COMMAND = re.compile(
    r"^\s*(\$ )?(\w+=\S* )*(textdistill|make|pip|python|torchrun|accelerate|mlflow|git)\s", re.MULTILINE
)
MARKER = re.compile(r"<!-- not run: (.+) -->\s*")

# Added to what a command asks for; bert-base-uncased and minilm-l6 are a tiny BERT where documents run.
BUDGET = ["train.max_steps=2", "train.n_eval_model=1", "evaluate.n_eval_model=2", "tracking=none"]
WITH_KEYS = {"distill", "evaluate", "baseline", "verify", "tune"}


@dataclass(frozen=True)
class Block:
    """A fenced block; ``reason`` says why it is not run, None for one that is."""

    language: str
    code: str
    line: int
    reason: str | None


def tokens(document: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(document.read_text(encoding="utf-8"))


def inline(document: Path, kind: str) -> list[Token]:
    return [child for token in tokens(document) for child in token.children or [] if child.type == kind]


def blocks(document: Path) -> list[Block]:
    found, before = [], None
    for token in tokens(document):
        if token.type == "fence":
            marker = before and before.type == "html_block" and MARKER.fullmatch(before.content)
            assert token.map is not None
            found.append(Block(token.info, token.content, token.map[0] + 1, marker[1] if marker else None))
        before = token
    return found


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub names them."""
    found: list[str] = []
    for heading, content in zip(tokens(document), tokens(document)[1:], strict=False):
        if heading.type == "heading_open":
            text = "".join(child.content for child in content.children or [])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


# --- What is written


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    document = ROOT / name
    targets = [str(link.attrs["href"]) for link in inline(document, "link_open")]
    targets += [str(image.attrs["src"]) for image in inline(document, "image")]
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(file), f"{name}: {target} is none of {sorted(anchors(file))}"


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/])(?:docs|tests|examples|benchmarks|src/textdistill)/[\w/]+\.[a-z]+\b", text):
        assert (ROOT / path).exists(), f"{name}: {path}"


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_verbs_that_are_named_exist(name: str) -> None:
    keys = {key for key, _ in flatten(OmegaConf.to_container(OmegaConf.structured(RunConfig)))}
    spans = [code.content for code in inline(ROOT / name, "code_inline")]
    spans += [block.code for block in blocks(ROOT / name) if block.language == "sh"]
    for span in spans:
        for word in span.split():
            if match := re.fullmatch(rf"'?((?:{'|'.join(GROUPS)})\.[a-z_]\w*)(=.*)?", word):
                file = re.fullmatch(r"\w+\.(csv|parquet|py|json|jsonl|ids|offsets|onnx|db)", match[1])
                assert match[1] in keys or file, f"{name}: {word}"
        for verb in re.findall(r"\btextdistill ([a-z]\S*)", span):
            assert verb in verb_names(), f"{name}: textdistill {verb}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_run_or_say_why_not(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    found = blocks(ROOT / name)
    assert len(re.findall(r"^<!-- not run", text, re.MULTILINE)) == sum(block.reason is not None for block in found)
    for block in found:
        assert block.language in RUN | SHOWN, f"{name}:{block.line}: {block.language}"
        if block.language in SHOWN:
            assert not COMMAND.search(block.code), f"{name}:{block.line}: sh or python, so that it is run"
    for token in tokens(ROOT / name):
        assert token.type != "code_block" or not COMMAND.search(token.content), f"{name}: {token.content}"


@pytest.mark.parametrize("shell", [shell for shell in ("sh", "bash", "zsh") if shutil.which(shell)])
def test_every_shell_reads_the_commands(shell: str) -> None:
    for name in NAMES:
        for block in blocks(ROOT / name):
            if block.language == "sh":
                done = subprocess.run([shell, "-n"], input=block.code, capture_output=True, text=True, check=False)
                assert (done.returncode, done.stderr) == (0, ""), f"{name}:{block.line}"


def test_tree_of_packages_names_every_package() -> None:
    (tree,) = (block.code for block in blocks(ROOT / "CONTRIBUTING.md") if block.code.startswith("src/textdistill/"))
    named = re.findall(r"^  (\w+)/", tree, re.MULTILINE)
    package = ROOT / "src" / "textdistill"
    assert sorted(named) == sorted(folder.parent.name for folder in package.glob("*/__init__.py"))


def rows(name: str, columns: int) -> dict[str, list[str]]:
    """Rows of the tables with this many columns, by the key in the first one."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in cells if len(row) == columns and row[0].strip("`").count(".") <= 1}


def test_table_of_keys_agrees_with_the_configuration() -> None:
    """Every key is in one of two tables; defaults are those that ``compose`` gives, there and here."""
    name = "docs/migrating.md"
    theirs = {key: row for key, row in rows(name, 4).items() if key.partition(".")[0] in GROUPS}
    ours = {key: row for key, row in rows(name, 3).items() if key.partition(".")[0] in [*GROUPS, "tracking"]}
    here, there = (
        dict(flatten(OmegaConf.to_container(OmegaConf.structured(compose(*given)), enum_to_str=True)))
        for given in ([], ["experiment=reference"])
    )
    assert theirs.keys() | ours.keys() == here.keys()
    assert not theirs.keys() & ours.keys()

    def stated(cell: str) -> Any:
        return yaml.safe_load(cell.strip("`"))

    for key, (their_default, our_default, _) in theirs.items():
        if our_default != "the same":
            assert stated(our_default) == here[key], key
            assert "$" in their_default or stated(their_default) == there[key], key
    for key, (default, _) in ours.items():
        assert stated(default) == here[key], key


def test_citation_and_changelog_name_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text()


# --- What runs


@pytest.fixture(scope="module")
def template(save_model: SaveModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, encoders, a finished run and distilled sets under the names that documents use."""
    folder = tmp_path_factory.mktemp("documents")
    for name, layers in (("bert-base-uncased", 2), ("my-encoder", 1)):
        encoder = tiny_bert_config()
        encoder.num_hidden_layers, encoder.max_position_embeddings = layers, 512
        save_model(encoder, folder / name)
    names = {"a": "positive", "b": "negative"}
    drawn = {
        split: [(text, text, names[label]) for text, label in toy_rows(per_class, seed) if label in names]
        for split, per_class, seed in (("train", 80, 0), ("validation", 20, 1))
    }
    header = ("text", "sentence", "label")
    files = {f"PATH/{split}.csv": drawn[split] for split in drawn}
    files |= {"data/vader_movie/train.csv": drawn["train"], "reviews.csv": drawn["train"]}
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("w", newline="") as opened:
            csv.writer(opened).writerows([header, *content])
    # As a download leaves it.
    columns = {split: dict(zip(header, zip(*drawn[split], strict=True), strict=True)) for split in drawn}
    saved = DatasetDict({split: Dataset.from_dict(columns[split]) for split in drawn})
    saved.save_to_disk(folder / "data" / "sst2" / "datasets")
    own = ["data.task_name=reviews", "data.path=PATH", "data.text_columns=[text]", "data.label_column=label"]
    with contextlib.chdir(folder):
        locate_weights.cache_clear()
        textdistill.distill(
            compose(
                *own,
                "model.model_name=bert-base-uncased",
                "distilled_data.attention_label_type=cls",
                "base.save_dir=RUN_DIR",
                *BUDGET,
            )
        )
    for name in ("DISTILLED_DIR", "examples/distilled/ag_news-minilm-l6"):
        shutil.copytree(folder / "RUN_DIR" / "distilled", folder / name)
    (folder / "best-ckpt").mkdir()
    write_reference_folder(folder / "best-ckpt", DistilledDataset.from_pretrained(folder / "DISTILLED_DIR"))
    return folder


@pytest.fixture
def workplace(template: Path, tmp_path: Path, process_state: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the template, as the working folder."""
    folder = shutil.copytree(template, tmp_path / "workplace")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(pretrained, "MINILM_PACKAGE", "not_installed")
    monkeypatch.setattr(pretrained, "MINILM_HUB_ID", "bert-base-uncased")
    # By name of the model: another folder's bert-base-uncased is another one.
    locate_weights.cache_clear()
    yield folder
    locate_weights.cache_clear()


def recorded(before: str, script: str) -> list[list[str]]:
    """Arguments of every ``textdistill`` of a script, as all shells pass them; any other command is an error."""
    first, *others = (passed(shell, before, script) for shell in ("bash", "zsh") if shutil.which(shell))
    assert all(other == first for other in others)
    return first


def passed(shell: str, before: str, script: str) -> list[list[str]]:
    record = 'PATH=; textdistill() { printf \'%s\\0\' "$#" "$@" >&3; }; exec 3>/dev/null\n'
    done = subprocess.run(
        [shell, "-euo", "pipefail", "-c", f"{record}{before}\nexec 3>&1 >/dev/null\n{script}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}: mark the block with <!-- not run: REASON -->\n{script}"
    words, found = iter(done.stdout.split("\0")[:-1]), []
    for count in words:
        found.append([next(words) for _ in range(int(count))])
    return found


def in_budget(arguments: list[str]) -> list[str]:
    """A command line that takes two outer steps, if it takes any."""
    if arguments[0] not in WITH_KEYS:
        return arguments
    if "--steps" not in arguments:
        return [*arguments, *BUDGET]
    steps, *rest = BUDGET
    at = arguments.index("--steps") + 1
    return [*arguments[:at], steps.partition("=")[2], *arguments[at + 1 :], *rest]


def with_budget(*overrides: str) -> RunConfig:
    return compose(*overrides, *BUDGET)


# docs/distilled_sets.md runs in tests/docs/test_distilled_sets.py, which also compares what its loops arrive at.
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in NAMES
        if name != "docs/distilled_sets.md" and any(b.language in RUN and b.reason is None for b in blocks(ROOT / name))
    ],
)
def test_blocks_run(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, namespace = "", {"__name__": "__main__"}
    for block in blocks(ROOT / name):
        if block.language not in RUN or block.reason is not None:
            continue
        if block.language == "python":
            with monkeypatch.context() as patch:
                patch.setattr(config, "compose", with_budget)
                exec(compile("\n" * block.line + block.code, name, "exec"), namespace)
            continue
        for arguments in recorded(before, block.code):
            main(in_budget(arguments))
        before += block.code


def examples() -> dict[str, doctest.DocTest]:
    """Docstrings with examples, by the name of what they document."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = pkgutil.walk_packages(textdistill.__path__, "textdistill.")
    names = [module.name for module in modules if module.name != "textdistill.__main__"]
    tests = ((name, test) for name in names for test in finder.find(import_module(name)))
    return {test.name.removeprefix(f"{name}."): test for name, test in tests if test.examples}


EXAMPLES = examples()


def test_what_users_call_has_an_example() -> None:
    documented = {name.partition(".")[0] for name in EXAMPLES}
    assert {"compose", "distill", "evaluate", "baseline", "finetune", "show", "DistilledDataset"} <= documented


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_of_a_docstring(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "compose", with_budget)
    report: list[str] = []
    failed, attempted = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(EXAMPLES[name], out=report.append)
    assert attempted
    assert not failed, "".join(report)
