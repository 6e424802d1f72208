"""Names of splits, and class names that look like them.

A folder called `train_images` or `test` is hardly ever a class. This module holds the rule that tells, and the errors
and notes that come of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from augury.errors import UsageError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Which split a folder of that name is; upper and lower case count alike."""
WORDS = {
    **SPLIT_NAMES,
    "trn": "train",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "tst": "test",
    "holdout": "test",
    "heldout": "test",
    "unlabelled": "unlabelled",
    "unlabeled": "unlabelled",
}
"""Words that make a name look like a split's, and the split. Their plurals do so too."""
# fmt: off
EMPTY_WORDS = frozenset([
    "image", "img", "photo", "picture", "pic", "file", "sample", "example", "frame", "data", "dataset", "set",
    "split", "subset", "folder", "dir", "part", "fold", "batch", "label", "labelled", "labeled", "annotation",
    "mask", "class", "new", "old", "orig", "original", "raw", "full", "all", "final", "small", "mini", "big",
    "large", "crop", "cropped", "resize", "resized", "aug", "augmented", "clean", "processed", "public",
    "private", "jpg", "jpeg", "png", "the", "of", "and", "for", "my", "v", "version",
])
# fmt: on
"""Words that say nothing of what an image shows, in the singular: `train_images` is a split's name as `train` is."""
LISTED = 4
"""Names that a message quotes."""
_BORDERS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_DIGIT = re.compile(r"\d")
_LETTERS = re.compile(r"[^\W\d_]+")
_GLUED = re.compile("({0})({0}|{1})s?|({1})({0})s?".format("|".join(WORDS), "|".join(sorted(EMPTY_WORDS))))


@dataclass(frozen=True)
class Parts:
    """What a folder's name is made of.

    Attributes:
        splits: those that it has a word of.
        content: its other words, without those that say nothing.
        words: how many words it has.
    """

    splits: frozenset[str]
    content: tuple[str, ...]
    words: int

    @property
    def is_split(self) -> bool:
        """Whether the name is a split's and nothing else: `Train`, `train_images`, `01-test`, `valset`, `train2017`."""
        return bool(self.splits) and not self.content


def parts_of(name: str) -> Parts:
    """Split a name into words at whatever is no letter and at changes of case, and look for words of splits."""
    words = _LETTERS.findall(_BORDERS.sub(" ", name).lower())
    text = " ".join(words).replace("hold out", "holdout").replace("held out", "heldout")
    splits: set[str] = set()
    content = []
    for word in text.split():
        if word in WORDS or (word.endswith("s") and word[:-1] in WORDS):
            splits.add(WORDS.get(word) or WORDS[word[:-1]])
        elif glued := _GLUED.fullmatch(word):
            splits |= {WORDS[part] for part in glued.groups() if part in WORDS}
        elif word not in EMPTY_WORDS and word.removesuffix("s") not in EMPTY_WORDS:
            content.append(word)
    return Parts(frozenset(splits), tuple(content), len(words))


def doubtful(names: Iterable[str], tables: Iterable[str] = ()) -> tuple[list[str], list[str]]:
    """Find the names among those of would-be classes that are, or may be, names of splits.

    A name that is a split's and nothing else (`Parts.is_split`) is refused, with one exception: `train`, the vehicle,
    where two or more names of other things stand beside it and no table is named like a split. Names with a word of a
    split and words of their own (`training_shoes`, `plants_test`) are refused where two have the same other words and
    words of different splits, where one stands beside a refused name, or where all names are such and have words of
    several splits.

    Args:
        names: of the folders, or of the classes.
        tables: names of the tables beside them.

    Returns:
        the names that are refused, and the names that are taken for classes and need a note.
    """
    parts = {name: parts_of(name) for name in names}
    exact = [name for name, found in parts.items() if found.is_split]
    mixed = [name for name, found in parts.items() if found.splits and found.content]
    splits = frozenset().union(*(found.splits for found in parts.values()))
    kinds = {(parts[name].content, parts[name].splits) for name in mixed}
    pairs = max(Counter(content for content, _ in kinds).values(), default=0) > 1
    if exact:
        things = sum(not found.splits and bool(found.content or not found.words) for found in parts.values())
        of_splits = any(parts_of(table.rpartition(".")[0]).splits for table in tables)
        if len(exact) == 1 and parts[exact[0]].splits == {"train"} and things >= 2 and not of_splits and not pairs:
            return [], exact + mixed
        return exact + mixed, []
    if pairs or (len(mixed) == len(parts) and len(splits) > 1):
        return mixed, []
    return [], mixed


def check_classes(
    place: str,
    names: Sequence[str],
    told: Callable[[str], str],
    *,
    inside: Mapping[str, Sequence[str]] = MappingProxyType({}),
    tables: Sequence[str] = (),
    above: str = "",
) -> list[str]:
    """Refuse classes that are named like splits.

    Args:
        place: what messages call the data set.
        names: of the classes.
        told: what a message says of a class in brackets: how many images it has, say.
        inside: the names of the folders inside each class's folder, where classes are folders.
        tables: names of the tables beside the class folders.
        above: the split that the names were found in, "" for none.

    Returns:
        a line for each class that has a word of a split in its name, and is taken for a class nevertheless.

    Raises:
        UsageError: a name is a split's; the message tells what was found and how to lay the images out.
    """
    refused, noted = doubtful(names, tables)
    if above and 2 * sum(parts_of(name).is_split for name in names) <= len(names):
        # The splits are there already: most names are to be splits' before they are taken for more of them.
        refused, noted = [], refused + noted
    if refused:
        quoted = " and ".join(f"`{name}` ({told(name)})" for name in refused[:LISTED])
        more = f" and {len(refused) - LISTED} more" if len(refused) > LISTED else ""
        what = "is named like a split, not like a class" if len(refused) == 1 else "are named like splits, not classes"
        beside = f"; beside {'it' if len(refused) == 1 else 'them'}: {', '.join(tables[:LISTED])}" if tables else ""
        raise UsageError(
            f"{place}: {quoted}{more} {what}{beside}.\n{_way_out(place, names, refused, inside, tables, above)}"
        )
    return [
        f"{place}: class `{name}` has the word of a split in its name, and is taken for a class. "
        "If it is a split: train/<class>/, val/<class>/ and test/<class>/ are read."
        for name in noted
    ]


def _way_out(
    place: str,
    names: Sequence[str],
    refused: Sequence[str],
    inside: Mapping[str, Sequence[str]],
    tables: Sequence[str],
    above: str,
) -> str:
    """What to do about classes named like splits."""
    others = [name for name in names if name not in refused]
    example = next(iter(others), "cat")
    one = len(refused) == 1
    if above and one and not others:
        return (
            f"If the folder is there twice, give {place} as the data set. If it is a class, there must be a second one."
        )
    if others or above:
        return (
            f"If {'it is a class' if one else 'they are classes'}, rename the folder{'' if one else 's'}: "
            f"`{refused[0]}_object`, say. If not, put splits above classes (train/{example}/0001.jpg, "
            f"test/{example}/0001.jpg), or move {'it' if one else 'them'} out of the data set."
        )
    layout = "train/<class>/*.jpg, with val/<class>/ and test/<class>/ if there are any"
    if all(inside.get(name) for name in refused):
        renamed = rename(refused) or "Name the folder of the training images `train`, the others `val` and `test`"
        return f"{renamed}: augury reads {layout}."
    why = f"{tables[0]} is not read" if tables else "these images have none"
    return (
        f"augury takes labels from folders ({why}): {layout}, or <class>/*.jpg alone. "
        "Sort the images into one folder for each class: train/cat/0001.jpg, train/dog/0001.jpg."
    )


def rename(names: Sequence[str]) -> str:
    """Say which folder is to be called train, which val and which test; "" where the names do not tell."""
    splits = {name: parts_of(name).splits for name in names}
    wanted = {name: next(iter(found)) for name, found in splits.items() if len(found) == 1}
    if len(set(wanted.values())) < len(names) or "train" not in wanted.values() or "unlabelled" in wanted.values():
        return ""
    changed = [f"`{name}` to `{split}`" for name, split in wanted.items() if SPLIT_NAMES.get(name.lower()) != split]
    return f"Rename {' and '.join(changed)}" if changed else ""


def check_below(place: str, folders: Iterable[Sequence[str]], layout: str) -> None:
    """Refuse splits among folders that hold none: below a class, say, where all images would be trained on.

    Args:
        place: what messages call the data set.
        folders: the way to each folder with images, as names.
        layout: what to do.

    Raises:
        UsageError: a folder named like a split.
    """
    inside: dict[tuple[str, ...], set[str]] = {}
    for folder in folders:
        for depth, name in enumerate(folder):
            inside.setdefault(tuple(folder[:depth]), set()).add(name)
    for above, names in inside.items():
        refused, _ = doubtful(sorted(names))
        found = frozenset().union(*(parts_of(name).splits for name in refused))
        # `test_1` and `test_2` may count measurements.
        if len(found) > 1 or any(not _DIGIT.search(name) for name in refused):
            quoted = " and ".join(f"`{name}`" for name in refused[:LISTED])
            where = "/".join((place, *above))
            raise UsageError(f"{where}: {quoted} {'is' if len(refused) == 1 else 'are'} named like a split. {layout}")
