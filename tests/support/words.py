"""The words of the toy task: three classes, each with words of its own, and fillers that tell nothing."""

from __future__ import annotations

import random

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASS_WORDS = {
    "a": ["cat", "dog", "horse", "sheep", "goat", "fox", "hare", "mouse"],
    "b": ["bread", "cheese", "apple", "soup", "rice", "cake", "salt", "honey"],
    "c": ["train", "ship", "bicycle", "truck", "plane", "tram", "wagon", "canoe"],
}
FILLERS = [
    *("the", "a", "one", "this", "that", "old", "new", "big", "small", "good", "bad"),
    *("near", "far", "red", "blue", "here", "there", "we", "saw", "had", "was", "and"),
    *("of", "with", "my", "your", "very", "some", "every", "two", "three"),
]
VOCABULARY = SPECIAL + [word for words in CLASS_WORDS.values() for word in words] + FILLERS
CLASS_NAMES = tuple(CLASS_WORDS)


def toy_rows(per_class: int, seed: int) -> list[tuple[str, str]]:
    """Shuffled rows (text, label). Each text holds two or three words of its class among two to six fillers."""
    draw = random.Random(seed)
    rows = []
    for label, words in CLASS_WORDS.items():
        for _ in range(per_class):
            text = draw.choices(words, k=draw.randint(2, 3)) + draw.choices(FILLERS, k=draw.randint(2, 6))
            draw.shuffle(text)
            rows.append((" ".join(text), label))
    draw.shuffle(rows)
    return rows
