"""The application that the verbs register with, and the words that the verbs of runs share.

Imports of the verbs stand inside their functions, so that ``--help`` answers before torch is loaded.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ParamSpec

import typer

from textdistill.cli.completion import complete_setting
from textdistill.cli.errors import guarded
from textdistill.cli.process import quiet_logs
from textdistill.core.suggestions import did_you_mean, nearest

logger = logging.getLogger(__name__)
P = ParamSpec("P")

app = typer.Typer(
    name="textdistill",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
)
# --debug may stand anywhere in a line; ``main`` sets it.
debug = False

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA|KEY=VALUE",
        autocompletion=complete_setting,
        show_default=False,
        help="DATA is a file or folder, several files, a built-in task, or the id user/name of a dataset on the hub."
        " KEY=VALUE sets a key of the configuration.",
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN[,COLUMN]", help="One or two columns of texts (data.text_columns).", show_default=False
    ),
]
Label = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="The column of labels (data.label_column).", show_default=False)
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="An encoder: minilm-l6, a folder or a hub id (model.model_name).", show_default=False
    ),
]
Steps = Annotated[
    int | None, typer.Option(metavar="N", help="Outer steps of distillation (train.max_steps).", show_default=False)
]
Output = Annotated[str | None, typer.Option(metavar="DIR", help="The run folder (base.save_dir).", show_default=False)]
DistilledDir = Annotated[str, typer.Argument(metavar="DISTILLED_DIR", help="Folder or hub id of a distilled set.")]


def verb(function: Callable[P, None]) -> Callable[P, None]:
    """Registers a function as the verb of its name. Its errors take one line."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        quiet_logs()
        guarded(lambda: function(*args, **kwargs), debug=debug)

    # The lines below \b keep their breaks. A raw docstring has it as two characters.
    run.__doc__ = (function.__doc__ or "").replace(r"\b", "\b")
    # Flags of Hydra stand among the words of distill.
    hydra = function.__name__ == "distill"
    app.command(context_settings={"ignore_unknown_options": hydra})(run)
    return run


def verb_names() -> list[str]:
    """Returns the names of the verbs, in the order of ``--help``."""
    return [command.callback.__name__ for command in app.registered_commands if command.callback is not None]


@dataclass(frozen=True)
class Settings:
    """The words and options of a verb that reads data.

    Attributes:
        data: the DATA among the words.
        options: the overrides that DATA and the options stand for.
        overrides: the overrides among the words.

    """

    data: list[str]
    options: list[str]
    overrides: list[str]

    @classmethod
    def of(
        cls,
        words: list[str] | None,
        text: str | None = None,
        label: str | None = None,
        model: str | None = None,
        steps: int | None = None,
        output: str | None = None,
        many_runs: bool = False,
    ) -> Settings:
        """Reads the words and options, and logs what they stand for.

        Raises:
            FileNotFoundError: DATA is neither a path nor a task.
            ValueError: an override cannot be read, names no key, or sets the key of an option.

        """
        from textdistill.arguments import OPTION_KEYS, to_overrides
        from textdistill.config import known_keys
        from textdistill.overrides import check_overrides, shell_line

        overrides = [word for word in words or [] if _is_override(word)]
        data = [word for word in words or [] if word not in overrides]
        for word in data:
            if word in known_keys() and not os.path.exists(word):
                raise ValueError(f"the key {word} needs a value: {word}=VALUE, without blanks")
        for name, _, value in (override.partition("=") for override in overrides):
            if name in OPTION_KEYS:
                raise ValueError(f"{name} is an option, not a key; write --{name} {shell_line([value])}")
        check_overrides(overrides, known_keys())
        options = to_overrides(
            None if not data else data[0] if len(data) == 1 else data,
            text=text, label=label, model=model, steps=steps, output=output, given=overrides, many_runs=many_runs,
        )  # fmt: skip
        if options:
            logger.info("the arguments stand for: %s", shell_line(options))
        return cls(data, options, overrides)

    @property
    def all(self) -> list[str]:
        """Returns the overrides of the options, then the others."""
        return [*self.options, *self.overrides]


def _is_override(word: str) -> bool:
    """Whether a word is an override. A path that exists is DATA, whatever characters it has."""
    if os.path.exists(word) or os.path.exists(os.path.expanduser(word)):
        return False
    # A mistyped file with the sign = in its name.
    if re.fullmatch(r"[^.]*=.*\.(csv|tsv|jsonl?|parquet)", word):
        return False
    return bool(re.match(r"[+~]*[A-Za-z_][^=\s/~]*(/[^=\s/]+)*=", word) or re.fullmatch(r"~[A-Za-z_][\w.@]*", word))


def unknown_option(verb: str, name: str, options: list[str]) -> str:
    """Returns the error for an option that a verb does not have. It names the nearest options, or keys."""
    name = name.partition("=")[0]
    bare = name.lstrip("-").replace("-", "_")
    if _reads_data(verb):
        if bare in ("data", "path", "input", "file", "dataset", "task"):
            return f"{verb} has no option {name}; write DATA without an option"
        same, similar = _options_or_keys(bare)
    else:
        same, similar = [], []
    near = same or [f"--{option}" for option in nearest(bare, [option.lstrip("-") for option in options])] or similar
    return f"{verb} has no option {name}{did_you_mean(near) or f'; textdistill {verb} --help lists its options'}"


def _reads_data(verb: str) -> bool:
    return verb in ("distill", "evaluate", "verify", "baseline", "tune")


def _options_or_keys(name: str) -> tuple[list[str], list[str]]:
    """Returns what sets the keys that end as ``name`` does, and what sets the keys that resemble it."""
    from textdistill.arguments import OPTION_KEYS
    from textdistill.cli.completion import settings
    from textdistill.overrides import nearest_keys

    by_key = {key: f"--{option}" for option, key in OPTION_KEYS.items()}
    keys = nearest_keys(name, settings())
    words = {key: by_key.get(key, f"{key}=VALUE") for key in keys}
    return [word for key, word in words.items() if key.endswith(f".{name}")], list(words.values())
