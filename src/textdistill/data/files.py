"""Finds the files of each split in what ``data.path`` names: a file, an archive, several files, or a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePath

from textdistill.data.hub_readme import Configuration, stated_configurations
from textdistill.data.split_names import SPLIT_NAMES, parse_shard, split_of_word
from textdistill.data.streams import DataFile, data_files

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
# What people keep tables in, too. Such files are named in warnings.
_OTHER_TABLES = (".xlsx", ".xls", ".ods", ".arrow", ".feather", ".pkl", ".tar", ".tgz", ".7z", ".rar", ".zst")
# Files that describe a dataset and hold no row.
_DESCRIPTIONS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json"}
# Folders of texts without a label, beside those of the classes.
_UNLABELLED = {"unsup", "unsupervised", "unlabeled", "unlabelled"}


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split: tables, or folders of texts that are named after their classes.

    Attributes:
        name: what the split is called there.
        tables: one file, or shards in order.
        class_folders: one folder for each class.

    """

    name: str
    tables: tuple[DataFile, ...] = ()
    class_folders: tuple[Path, ...] = ()

    @property
    def first(self) -> str:
        """The first file or folder, for errors."""
        return self.tables[0].name if self.tables else f"{self.class_folders[0].parent.name}/"


Splits = dict[str, SplitFiles]


def find_splits(paths: Sequence[Path], config_name: str | None) -> Splits:
    """Returns the files of each split by our name, and warns of files that look like data but are not used.

    Args:
        paths: a file, an archive or a folder; or several files, of which those that name no split are train.
        config_name: the configuration to read, if a folder holds several.

    Raises:
        FileNotFoundError: there is nothing at a path.
        ValueError: a file is of another kind, two files claim one split, or the configuration is not clear.

    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"data.path must be a file or a folder, but there is nothing at {path}")
    if len(paths) == 1 and paths[0].is_dir():
        return _find_in_folder(paths[0], config_name)
    if config_name is not None:
        raise ValueError(f"data.config_name must be left out, as {paths[0]} is a file, got {config_name}")
    if folders := [path for path in paths if path.is_dir()]:
        raise ValueError(f"data.path must be one folder or a list of files, got the folder {folders[0]} in a list")
    files = [file for path in paths for file in data_files(path)]
    tables = [file for file in files if file.suffix in TABLE_SUFFIXES]
    others = [file for file in files if file not in tables]
    if others and (len(paths) > 1 or not tables):
        raise ValueError(f"data.path must end in one of {', '.join(TABLE_SUFFIXES)}, got {others[0]}; convert the file")
    if not tables:
        raise ValueError(f"data.path must hold a file that ends in one of {', '.join(TABLE_SUFFIXES)}, got {paths[0]}")
    if len(paths) > 1:
        return _listed(tables)
    if len(tables) == 1:
        return {"train": SplitFiles("train", tuple(tables))}
    splits, unused = _by_name(tables, str(paths[0]))
    _warn_unused(paths[0], unused)
    return splits


def _listed(tables: Sequence[DataFile]) -> Splits:
    """The splits of several files that the user names. What names no split is train."""
    by_split: dict[str, list[DataFile]] = {}
    for file in tables:
        base = parse_shard(file.stem).base
        by_split.setdefault(SPLIT_NAMES.get(base) or split_of_word(base) or "train", []).append(file)
    for split, files in by_split.items():
        logger.info("data.path: the %s split is %s", split, ", ".join(file.name for file in files))
    return {split: SplitFiles(split, tuple(files)) for split, files in by_split.items()}


def _find_in_folder(folder: Path, config_name: str | None) -> Splits:
    stated = stated_configurations(folder)
    if stated:
        name = _choose_configuration(folder, stated, config_name)
        return _stated_splits(folder, stated[name])
    splits, unused = _folder_splits(folder)
    if not splits:
        below = {path.name: _folder_splits(path) for path in _folders(folder)}
        below = {name: found for name, found in below.items() if found[0]}
        if below:
            splits, unused = below[_choose_configuration(folder, below, config_name)]
        else:
            splits, unused = _single_table(folder, unused)
    elif config_name is not None:
        raise ValueError(f"data.config_name must be left out, as {folder} has no configurations, got {config_name}")
    _warn_unused(folder, unused)
    return splits


def _choose_configuration(folder: Path, names: Mapping[str, object], config_name: str | None) -> str:
    default = [name for name, value in names.items() if isinstance(value, Configuration) and value.default]
    candidates = [config_name] if config_name is not None else default[:1] or [*names]
    if len(candidates) > 1 or candidates[0] not in names:
        raise ValueError(
            f"data.config_name must name one of the configurations of {folder}, {', '.join(names)}, got "
            f"{config_name or 'none'}; give for example data.config_name={next(iter(names))}"
        )
    if config_name is None:
        logger.info("data.path: %s: the configuration is %s (data.config_name)", folder, candidates[0])
    return candidates[0]


def _stated_splits(folder: Path, configuration: Configuration) -> Splits:
    """The files that the README of a dataset names."""
    if configuration.folder:
        splits, unused = _folder_splits(folder / configuration.folder)
        _warn_unused(folder, unused)
        return splits
    by_split: dict[str, list[DataFile]] = {}
    for name, pattern in configuration.patterns:
        files = [file for path in sorted(folder.glob(pattern)) if path.is_file() for file in data_files(path)]
        if not files:
            raise FileNotFoundError(f"data.path: README.md of {folder} names {pattern}, but there is no such file")
        for file in files:
            base = parse_shard(file.stem).base
            by_split.setdefault(name or SPLIT_NAMES.get(base) or split_of_word(base) or "train", []).append(file)
    used = {
        SPLIT_NAMES[name]: SplitFiles(name, tuple(files)) for name, files in by_split.items() if name in SPLIT_NAMES
    }
    _warn_unused(folder, [file for name, files in by_split.items() if name not in SPLIT_NAMES for file in files])
    return used


def _folder_splits(folder: Path) -> tuple[Splits, list[DataFile]]:
    """The splits of a folder, of its folder ``data`` and of folders that are named after splits; and unused files."""
    places = [place for place in (folder, folder / "data") if place.is_dir()]
    files = [file for place in places for file in _tables(place)]
    splits, unused = _by_name([file for file in files if file.suffix in TABLE_SUFFIXES], str(folder))
    unused += [file for file in files if file.suffix not in TABLE_SUFFIXES]
    for path in (path for place in places for path in _folders(place)):
        split = SPLIT_NAMES.get(path.name.lower()) or split_of_word(path.name)
        found = _split_folder(path) if split else None
        if split and found:
            if split in splits:
                raise _two_claim(splits[split].first, found.first, folder)
            splits[split] = found
    if not splits and (class_folders := _class_folders(folder)):
        splits["train"] = SplitFiles("train", class_folders=class_folders)
    return splits, unused


def _split_folder(folder: Path) -> SplitFiles | None:
    """The contents of a folder that is named after a split."""
    tables = [file for file in _tables(folder) if file.suffix in TABLE_SUFFIXES]
    if tables:
        return SplitFiles(folder.name, _in_order(tables))
    class_folders = _class_folders(folder)
    return SplitFiles(folder.name, class_folders=class_folders) if class_folders else None


def _by_name(tables: Sequence[DataFile], origin: str) -> tuple[Splits, list[DataFile]]:
    """The splits of files by their names, and the files that are not used.

    A file that is called after a split, such as ``val.csv``, goes before one whose name contains its word.
    """
    groups = _shard_groups(tables)
    exact = {base: SPLIT_NAMES[base] for base, _ in groups if base in SPLIT_NAMES}
    if list(exact.values()).count("validation") > 1 and "test" not in exact.values():
        # Beside validation files, evaluation files are the test split.
        exact |= dict.fromkeys(exact.keys() & {"eval", "evaluation"}, "test")
    splits: Splits = {}
    for base, files in groups:
        if base in exact:
            split = exact[base]
            if split in splits:
                raise _two_claim(splits[split].first, files[0].name, origin)
            splits[split] = SplitFiles(base, files)
    words = [split_of_word(base) for base, _ in groups]
    for (base, files), word in zip(groups, words, strict=True):
        if word and word not in splits and words.count(word) == 1:
            splits[word] = SplitFiles(base, files)
    used = {file for split_files in splits.values() for file in split_files.tables}
    return splits, [file for file in tables if file not in used]


def _shard_groups(tables: Sequence[DataFile]) -> list[tuple[str, tuple[DataFile, ...]]]:
    """Files that are shards of one table, with the name that they share."""

    def key(file: DataFile) -> tuple[str, str, bool]:
        shard = parse_shard(file.stem)
        return shard.base, file.suffix, shard.number is not None

    groups: list[tuple[str, tuple[DataFile, ...]]] = []
    for (base, _, is_shard), group in groupby(sorted(tables, key=key), key):
        files = _in_order(list(group))
        # Two files of one name lie in two folders, or differ in their compression.
        groups += [(base, files)] if is_shard else [(base, (file,)) for file in files]
    return groups


def _in_order(tables: Sequence[DataFile]) -> tuple[DataFile, ...]:
    """The shards of a table in the order of their numbers.

    Raises:
        ValueError: a shard is missing.

    """
    ordered = sorted(tables, key=lambda file: (parse_shard(file.stem)[:2], file.name))
    for base, count in {parse_shard(file.stem)[::2] for file in tables}:
        shards = [file for file in tables if parse_shard(file.stem)[::2] == (base, count)]
        if count is not None and len(shards) != count:
            raise ValueError(
                f"data.path: {shards[0]} is one of {count} files, but there are {len(shards)}; fetch the others, or "
                "name the files in data.path"
            )
    return tuple(ordered)


def _single_table(folder: Path, unused: Sequence[DataFile]) -> tuple[Splits, list[DataFile]]:
    """The only table of a folder is train, whatever its name."""
    tables = [file for file in unused if file.suffix in TABLE_SUFFIXES and split_of_word(file.stem) is None]
    groups = _shard_groups(tables)
    if len(groups) != 1 or len(tables) < len(unused):
        return {}, list(unused)
    base, files = groups[0]
    logger.info("data.path: %s is the only table in %s, so it is train", files[0].name, folder)
    return {"train": SplitFiles(base or "train", files)}, []


def _tables(folder: Path) -> Iterator[DataFile]:
    """The files of a folder that look like data."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.name not in _DESCRIPTIONS:
            named = DataFile(path)
            if path.suffix.lower() == ".zip":
                yield from data_files(path)
            elif named.suffix in TABLE_SUFFIXES or path.suffix.lower() in _OTHER_TABLES:
                yield named


def _class_folders(folder: Path) -> tuple[Path, ...]:
    """The folders of a folder, that hold texts: ``.txt``, or files without a suffix."""
    folders = [path for path in _folders(folder) if next(text_files(path), None) and not next(_tables(path), None)]
    if skipped := [path.name for path in folders if path.name.lower() in _UNLABELLED]:
        logger.warning("data.path: %s: the texts in %s have no label and are not used", folder, ", ".join(skipped))
    classes = tuple(path for path in folders if path.name not in skipped)
    return classes if len(classes) > 1 else ()


def text_files(folder: Path) -> Iterator[DataFile]:
    """Yields the texts of a folder, in no order: files that end in ``.txt`` or have no suffix."""
    for path in folder.iterdir():
        if path.suffix.lower() in (".txt", "") and not path.name.startswith(".") and path.is_file():
            yield DataFile(path)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _two_claim(first: str, second: str, origin: PurePath | str) -> ValueError:
    return ValueError(
        f"data.path must hold one file a split, got {first} and {second} in {origin}; remove one, or name the files "
        "in data.path"
    )


def _warn_unused(path: Path, unused: Sequence[DataFile]) -> None:
    if unused:
        names = ", ".join(file.name for file in unused[:5]) + (f" and {len(unused) - 5:,} more" if unused[5:] else "")
        logger.warning(
            "data.path: %s: not used: %s; used are files such as train.csv, validation.csv and test.csv",
            path,
            names,
        )
