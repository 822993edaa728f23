"""The length of sentences: README and every page of the documentation.

A sentence ends at . ! or ?, and with its paragraph or list item. Headings, tables and blocks of code are left out.
A span of code counts as one word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))
README_LINES = 150
LONGEST = 25
README_MEAN, PAGE_MEAN = 17, 20


def text(token: Token) -> str:
    """What a reader sees of a paragraph, with a word in place of each span of code."""
    shown = {"text": lambda child: child.content, "code_inline": lambda _: "code", "softbreak": lambda _: " "}
    return "".join(shown[child.type](child) for child in token.children or [] if child.type in shown)


def sentences(document: Path) -> Iterator[list[str]]:
    """The words of each sentence."""
    tokens = MarkdownIt("commonmark").enable("table").parse(document.read_text(encoding="utf-8"))
    for before, token in pairwise(tokens):
        if token.type == "inline" and before.type == "paragraph_open":
            for sentence in re.split(r"[.!?](?=\s|$)", text(token)):
                if words := [word for word in sentence.split() if re.search(r"\w", word)]:
                    yield words


def mean(document: Path) -> float:
    lengths = [len(words) for words in sentences(document)]
    return sum(lengths) / len(lengths)


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_no_sentence_is_long(name: str) -> None:
    too_long = [" ".join(words) for words in sentences(ROOT / name) if len(words) > LONGEST]
    assert not too_long, f"{name}: {len(too_long)} sentences of more than {LONGEST} words, the first: {too_long[0]}"


@pytest.mark.parametrize("name", PAGES)
def test_sentences_of_a_page_are_short_on_average(name: str) -> None:
    assert mean(ROOT / name) <= PAGE_MEAN


def test_readme_is_short() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= README_LINES
    assert mean(readme) <= README_MEAN


def test_a_sentence_is_counted(tmp_path: Path) -> None:
    """Two sentences and a list item, of three, two and four words."""
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n\nOne `code span` 0.5. Two words\n\n* an item with `code`\n\n| a | table |\n| --- | --- |"
    )
    assert [len(words) for words in sentences(page)] == [3, 2, 4]
