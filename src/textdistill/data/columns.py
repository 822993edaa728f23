"""Chooses the columns of texts and labels that the configuration leaves open: by name first, then by content."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from textdistill.data.cells import is_string
from textdistill.data.source import Columns, RawSplit

logger = logging.getLogger(__name__)

# Names that win, in this order. Case does not count, and white space and "-" count as "_".
TEXT_NAMES = (
    "text", "texts", "sentence", "review_text", "review", "reviews", "content", "body", "message", "comment_text",
    "comment", "tweet_text", "tweet", "utterance", "document", "article", "description", "question", "query",
    "headline", "summary", "title",
)  # fmt: skip
PAIR_NAMES = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"),
    ("sentence_a", "sentence_b"), ("text_a", "text_b"), ("question", "sentence"), ("question", "passage"),
    ("query", "passage"), ("query", "document"),
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "target", "sentiment", "stars", "star_rating", "rating", "intent", "topic",
    "emotion", "polarity", "class_index", "class_label", "gold_label", "label_text", "genre", "tag", "y", "score",
)  # fmt: skip
# A column such as airline_sentiment is found by its last word.
TEXT_WORDS = {"text", "sentence", "review", "content", "body", "message", "comment", "tweet", "description"}
LABEL_WORDS = {"label", "class", "category", "sentiment", "stars", "rating", "intent", "topic", "emotion"}

MAX_CLASSES = 200  # a column of more values is not taken for labels, unless its name says so
_MAX_VALUES = 1000  # the distinct values of a column that are looked at
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_FRACTION = re.compile(r"[-+]?\d*\.\d*[1-9]\d*")
_DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([ T].*)?")
_ID = re.compile(r"[a-z]{0,5}[-_#]?\d+|[0-9a-f-]{8,}|https?://\S+|\S+@\S+\.\S+", re.IGNORECASE)


def find_columns(
    train: RawSplit, text_columns: Sequence[str] | None, label_column: str | None, built_in: Columns | None
) -> Columns:
    """Returns the columns of a task. What is None is that of the built-in task, or is chosen.

    Args:
        train: the train split of the source.
        text_columns: one or two columns; None to choose them.
        label_column: None to choose it.
        built_in: the columns of the built-in task; None for another task.

    Raises:
        ValueError: a column is not clear. The message shows the columns.

    """
    if built_in is not None:
        default = Columns(tuple(text_columns or built_in.texts), label_column or built_in.label)
        if all(name in train.column_names for name in default.names):
            return default
        logger.warning(
            "the columns of the task, %s, are not in the source, so others are chosen", ", ".join(built_in.names)
        )
    if text_columns is not None and label_column is not None:
        return Columns(tuple(text_columns), label_column)
    contents = _read_contents(train)
    label = label_column or _choose_label(train, [c for c in contents if c.name not in (text_columns or ())])
    texts = text_columns or _choose_texts([c for c in contents if c.name not in (label, "labels")])
    if label is None or not texts:
        missing = "data.label_column (--label)" if label is None else "data.text_columns (--text)"
        raise ValueError(
            f"{missing} must name a column of {train.origin}, because no choice is clear; "
            f"the columns are {_list(contents)}"
        )
    logger.info(
        "columns: texts from %s, labels from %s; --text and --label (data.text_columns, data.label_column) name others",
        " and ".join(map(repr, texts)), repr(label),
    )  # fmt: skip
    return Columns(tuple(texts), label)


def find_texts(split: RawSplit) -> list[str]:
    """Returns the one or two columns of texts of a split that has no labels.

    Raises:
        ValueError: the columns are not clear. The message shows them.

    """
    contents = _read_contents(split)
    texts = split.column_names if len(split.column_names) == 1 else _choose_texts(contents)
    if not texts:
        raise ValueError(f"no choice is clear; the columns are {_list(contents)}")
    return list(texts)


@dataclass
class _Content:
    """What is known of a column: whether it holds strings, and its first distinct values as texts."""

    name: str
    strings: bool = False
    scalars: bool = True
    missing: int = 0
    rows: int = 0
    values: dict[str, None] = field(default_factory=dict)

    def add(self, column: pa.ChunkedArray) -> None:
        """Reads the next chunk."""
        self.rows += len(column)
        self.missing += column.null_count
        self.scalars = self.scalars and not pa.types.is_nested(column.type) and not pa.types.is_binary(column.type)
        self.strings = self.strings or is_string(column.type)
        if self.scalars and len(self.values) <= _MAX_VALUES:
            texts = (str(value).strip() for value in pc.unique(column).to_pylist() if value is not None)
            self.values |= dict.fromkeys(filter(None, texts))

    @property
    def key(self) -> str:
        """The name as the lists of names write it."""
        return re.sub(r"[\s-]+", "_", self.name.strip().lower())

    @property
    def may_be_text(self) -> bool:
        """Whether the values are strings that differ and are no numbers, dates or ids."""
        if not self.strings or not self.scalars or len(self.values) < 2:
            return False
        return not any(all(map(pattern.fullmatch, self.values)) for pattern in (_NUMBER, _DATE, _ID))

    @property
    def is_prose(self) -> bool:
        """Whether most values have several words, or letters of a script that may do without blanks."""
        several = sum(" " in value or not value.isascii() for value in self.values)
        return self.may_be_text and several > len(self.values) / 2

    @property
    def may_be_label(self) -> bool:
        """Whether the values are few, and no dates or fractions."""
        if not self.scalars or not 2 <= len(self.values) <= min(MAX_CLASSES, self.rows // 2):
            return False
        return not all(map(_DATE.match, self.values)) and not any(map(_FRACTION.fullmatch, self.values))


def _read_contents(train: RawSplit) -> list[_Content]:
    """Reads all columns of a split once."""
    contents = [_Content(name) for name in train.column_names]
    try:
        for table in train.scan(train.column_names):
            for content in contents:
                content.add(table[content.name])
    except ValueError:
        # A column of JSON may hold values of several types, which is an error only for those who read it.
        contents = [_read_content(train, name) for name in train.column_names]
    return contents


def _read_content(train: RawSplit, name: str) -> _Content:
    content = _Content(name)
    try:
        for table in train.scan([name]):
            content.add(table[name])
    except ValueError:
        return _Content(name, scalars=False)
    return content


def _choose_label(train: RawSplit, contents: Sequence[_Content]) -> str | None:
    likely = [content for content in contents if content.may_be_label]
    named = _by_name(likely, LABEL_NAMES) or _by_last_word(likely, LABEL_WORDS)
    # A column called label is meant, whatever it holds: errors about its labels say what is wrong with them.
    plain = _by_name(contents, ("label", "labels"))
    stated = [content.name for content in contents if content.name in train.class_names]
    complete = [content.name for content in likely if not content.missing and not content.is_prose]
    return plain or named or _only(stated) or _only(complete)


def _choose_texts(contents: Sequence[_Content]) -> list[str]:
    likely = [content for content in contents if content.may_be_text]
    names_by_key = {content.key: content.name for content in likely}
    for first, second in PAIR_NAMES:
        if first in names_by_key and second in names_by_key:
            return [names_by_key[first], names_by_key[second]]
    prose = [content for content in likely if content.is_prose]
    named = _by_name(prose, TEXT_NAMES) or _by_last_word(prose, TEXT_WORDS)
    if named is None and not prose:
        named = _by_name(likely, TEXT_NAMES)
    if named is not None:
        return [named]
    by_content = [content.name for content in prose if not content.may_be_label]
    if not by_content:
        # A column called text is meant, whatever it holds, as one called label is.
        plain = _by_name(contents, ("text", "texts"))
        return [plain] if plain else []
    return by_content if len(by_content) <= 2 else []


def _by_name(contents: Sequence[_Content], keys: Sequence[str]) -> str | None:
    names_by_key = {content.key: content.name for content in contents}
    return next((names_by_key[key] for key in keys if key in names_by_key), None)


def _by_last_word(contents: Sequence[_Content], words: set[str]) -> str | None:
    return _only([content.name for content in contents if content.key.rpartition("_")[2] in words])


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _list(contents: Sequence[_Content]) -> str:
    """The columns with three values each, cut after twelve columns."""
    shown = [f"{c.name!r} ({', '.join(_shorten(value) for value in [*c.values][:3])})" for c in contents[:12]]
    more = [f"and {len(contents) - 12} more columns"] if len(contents) > 12 else []
    return "; ".join([*shown, *more])


def _shorten(value: str) -> str:
    value = " ".join(value.split())
    return value if len(value) <= 30 else f"{value[:29]}…"
