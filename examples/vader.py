"""Make the tasks ``vader_movie`` and ``vader_genre`` from the data that VADER was published with.

    python examples/vader.py --output data
    textdistill distill data.task_name=vader_movie data.path=data/vader_movie

The data are sentences of four sources with the mean sentiment rating of 20 or more people, from -4 to 4.
They come from the source distribution of the package vaderSentiment 3.3.2 (MIT licence):

    Hutto, C.J. & Gilbert, E.E. (2014). VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
    Social Media Text. Eighth International Conference on Weblogs and Social Media (ICWSM-14).

``vader_movie`` is the sign of the rating of a movie-review sentence rated 0.5 or more from zero;
``vader_genre`` is the source a sentence is from.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER_ARCHIVE = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
GENRES = {  # class name: file of "id TAB mean rating TAB text" lines
    "editorial": "nytEditorialSnippets_GroundTruth.txt",
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "product": "amazonReviewSnippets_GroundTruth.txt",
    "tweet": "tweets_GroundTruth.txt",
}
LEAST_RATING = 0.5  # sentences rated closer to zero count as neither positive nor negative

Rows = list[tuple[str, str]]  # (text, label)


def download(folder: Path) -> Path:
    """Fetch the source distribution with pip; returns its path."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PACKAGE]
    subprocess.run([*pip, "--dest", str(folder), f"{PACKAGE}=={VERSION}"], check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def read_ratings(archive: Path) -> dict[str, list[tuple[float, str]]]:
    """(mean rating, text) of every sentence, by genre.

    Raises:
        ValueError: the archive is not the published one.

    """
    content = archive.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{archive} must be {PACKAGE} {VERSION} with sha256 {SHA256}, got {digest}")
    ratings = {}
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as outer,
        tarfile.open(fileobj=outer.extractfile(INNER_ARCHIVE)) as inner,
    ):
        for genre, name in GENRES.items():
            # Not latin-1, which only the README beside these files is: "cliché" would come out as "clichÃ©".
            text = inner.extractfile(f"hutto_ICWSM_2014/{name}").read().decode("utf-8")
            lines = [line.split("\t") for line in text.split("\r\n")]
            ratings[genre] = [(float(rating), sentence.strip()) for _, rating, sentence in lines]
    return ratings


def movie_rows(ratings: dict[str, list[tuple[float, str]]]) -> Rows:
    """Clearly positive and clearly negative movie-review sentences."""
    return [
        (text, "positive" if rating > 0 else "negative")
        for rating, text in ratings["movie"]
        if abs(rating) >= LEAST_RATING
    ]


def genre_rows(ratings: dict[str, list[tuple[float, str]]]) -> Rows:
    """All sentences, labelled with their source."""
    return [(text, genre) for genre, sentences in ratings.items() for _, text in sentences]


def write(rows: Rows, file: Path) -> None:
    """Write text and label columns; the file appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts, labels = zip(*rows, strict=True)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(pa.table({"text": texts, "label": labels}), unfinished)
    os.replace(unfinished, file)


def main() -> None:
    """Make both tasks, unless they are there, and print their row counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for vader_movie/ and vader_genre/")
    parser.add_argument("--archive", type=Path, help="the source distribution, if it is here already")
    arguments = parser.parse_args()

    makers = {"vader_movie": movie_rows, "vader_genre": genre_rows}
    files = {task: arguments.output / task / "train.parquet" for task in makers}
    if not all(file.exists() for file in files.values()):
        with tempfile.TemporaryDirectory() as folder:
            ratings = read_ratings(arguments.archive or download(Path(folder)))
        for task, file in files.items():
            write(makers[task](ratings), file)
    for file in files.values():
        counts = Counter(pq.read_table(file)["label"].to_pylist())
        classes = ", ".join(f"{label} {count:,}" for label, count in sorted(counts.items()))
        print(f"{file}: {counts.total():,} rows ({classes})")


if __name__ == "__main__":
    main()
