"""Inputs that are to be refused: whole ones in which one thing is wrong, and what the refusal must say."""

from __future__ import annotations

import copy
import io
import math
import tarfile
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from tests.fuzz.hostile import DEFAULTS, KEYS, TINY, Drawn

from augury_train.backbones.weights import _content

UNSEEN = ["\x1b[2J", "\x00", "\u202e", "\x9b", "\n", "\ud800"]
DEEPEST = 32


def judged(config: Mapping[str, Any]) -> Drawn:
    """Say of any settings in a file what is due, as far as it can be told without reading them as augury does."""
    found: set[str] = set()
    _look(config, 0, found)
    keys = {key for _, key in KEYS} | {"checkpoint"}
    if not found and any(
        section not in DEFAULTS
        or (isinstance(DEFAULTS[section], dict) and isinstance(inner, dict) and not keys.issuperset(inner))
        for section, inner in config.items()
    ):
        # A key with a byte of a file name in it is no text to pydantic.
        found.add("unknown key|keys must be text")
    if "format" in config and (type(config["format"]) is not int or config["format"] not in (1, 2)):
        # Told alone: what the rest means depends on it.
        found.add("`format`|in format")
    if found:
        return Drawn(config, "refused", "|".join(sorted(found)))
    return Drawn(config, "accepted" if config == TINY else "either")


def _look(value: Any, depth: int, found: set[str]) -> None:
    if depth > DEEPEST:
        found.add("nested too deeply")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _look(key, depth, found)
            _look(inner, depth + 1, found)
    elif isinstance(value, list):
        for inner in value:
            _look(inner, depth + 1, found)
    elif isinstance(value, float) and not math.isfinite(value):
        found.add("finite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        found.add("64 bits|integer string")
    elif isinstance(value, str):
        # Lone halves of characters from U+DC80 on are bytes of file names.
        if any(ord(c) < 32 or 127 <= ord(c) < 160 or c in "\u202e" or "\ud800" <= c < "\udc80" for c in value):
            found.add("cannot be seen")
        if len(value) > 10_000:
            found.add("characters")


def _with(path: str, value: Any) -> dict[str, Any]:
    """Whole settings in which one value is another."""
    values = copy.deepcopy(TINY)
    *sections, key = path.split(".")
    inner = values
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[key] = value
    return values


def _settings(places: list[str], wrong: st.SearchStrategy[Any], about: str) -> st.SearchStrategy[Drawn]:
    return st.builds(
        lambda place, value: Drawn(_with(place, value), "refused", about.format(place=place)),
        st.sampled_from(places),
        wrong,
    )


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


ANYWHERE = ["model.kwargs.x", "optim.kwargs.x"]
SETTINGS = {
    "not finite": _settings([*ANYWHERE, "optim.lr"], st.sampled_from([math.inf, -math.inf, math.nan]), "finite number"),
    "too large": _settings(ANYWHERE, st.sampled_from([2**63, -(2**63) - 1, 10**40]), "more than 64 bits"),
    "too long": _settings([*ANYWHERE, "data.dataset"], st.integers(10_001, 20_000).map("x".__mul__), "characters"),
    "unseen": _settings(
        [*ANYWHERE, "data.dataset", "model.name"], st.sampled_from(UNSEEN).map("a{}b".format), "cannot be seen"
    ),
    "too deep": _settings(ANYWHERE, st.integers(DEEPEST, 60).map(_nested), "nested too deeply"),
    "unknown key": _settings(
        ["optim.no_such", "data.lr", "no_such", "train.dataset", "model.pipeline"], st.integers(0, 3), "unknown key"
    ),
    "wrong kind": _settings(
        ["optim.epochs", "optim.batch_size", "data.images_per_class", "seed", "optim.lr", "train.patience"],
        st.sampled_from(["many", [1], {"a": 1}, [], -1]),
        "{place}",
    ),
}
"""Settings with one fault each."""

NO_NUMBERS: list[Any] = ["8", None, [8], {}, True, 8.5, -1]
NO_TEXTS: list[Any] = [5, None, ["a"], {}, True, "other"]
DATA: dict[str, list[Any]] = {
    "classes": ["abc", [5], None, {"0": "a"}, [None]],
    "images": [{"train": "8"}, {"train": 8.5}, {"train": True}, [8], None, 8],
    "loader": NO_TEXTS,
    "channels": [*NO_NUMBERS, 2],
    "image_size": [*NO_NUMBERS, 0, 2**20],
    "kept_size": [*NO_NUMBERS, 0],
    "interpolation": NO_TEXTS,
    "mean": ["a", [None], ["x"], 5, [[0.5]]],
    "std": ["a", [0], [-1.0], ["x"], 5],
}
"""What no field of `data.json` can be."""
SUBSET: dict[str, list[Any]] = {
    "dataset": [5, None, ["digits"]],
    "classes": ["01", [0, 1], None, {"0": 1}],
    "images": ["9", 9.0, True, None, [9]],
    "labels": [5, None],
    "rows": ["1", [], [1, 1], [1.5], ["1"], [True], [9], [-1], None, [[1]]],
    "protocol": [5, None],
    "split_seed": ["0", 0.5, True, None],
    "val_fraction": ["0.1", None, [0.1]],
}
"""What no field of a subset's file can be."""


def documents(said: Mapping[str, Any], wrong: Mapping[str, list[Any]]) -> st.SearchStrategy[list[Drawn]]:
    """A document for each field, in which it is what it cannot be, or is missing."""
    gone = object()

    def made(key: str, value: Any) -> Drawn:
        other = {inner: kept for inner, kept in said.items() if inner != key}
        return Drawn(other if value is gone else {**said, key: value}, "refused", key)

    def field(key: str) -> st.SearchStrategy[Drawn]:
        return st.sampled_from([*wrong[key], gone]).map(lambda value: made(key, value))

    return st.tuples(*map(field, wrong)).map(list)


LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE]
SPECIAL = [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]


@st.composite
def tars(draw: st.DrawFn) -> list[Drawn]:
    """A tar of two classes that is whole, and one for each thing that a member may not be."""
    names = draw(st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), min_size=2, max_size=4, unique=True))
    whole = [(f"{folder}/{folder}.png", tarfile.REGTYPE, b"?" * draw(st.integers(0, 700)), "") for folder in names]
    name = draw(st.sampled_from(["x.png", "x.tar", "a/x.png", "x.cls", "x", "a/b/c.TAR"]))
    to = draw(st.sampled_from([name, whole[0][0], "nowhere", "../../x", "/etc/passwd"]))
    odd = {
        "link": (name, draw(st.sampled_from(LINKS)), b"", to),
        "named pipe|device": (name, draw(st.sampled_from(SPECIAL)), b"", ""),
        "unknown type": (name, draw(st.sampled_from([b"Z", b"A", b"9"])), b"", ""),
        r"`\.\.` in its name": (f"a/../{name}", tarfile.REGTYPE, b"", ""),
    }
    deep = [("x.tar", tarfile.REGTYPE, packed(whole), "")]
    for _ in range(draw(st.integers(8, 11))):
        deep = [("x.tar", tarfile.REGTYPE, packed(deep), "")]
    cut = packed(whole)
    place = draw(st.integers(0, len(names)))
    return [
        Drawn(packed(whole), "accepted"),
        *(Drawn(packed([*whole[:place], entry, *whole[place:]]), "refused", about) for about, entry in odd.items()),
        Drawn(packed(deep), "refused", "tars inside each other"),
        Drawn(cut[: draw(st.integers(1, 512 * len(names)))], "refused", "not a readable tar"),
    ]


def packed(entries: list[tuple[str, bytes, bytes, str]]) -> bytes:
    """A tar of (name, type, content, what a link leads to)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, content, to in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), to
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


ranges = st.builds(
    lambda first, count, width: (f"{first:0{width}}..{first + count - 1:0{width}}", count),
    st.integers(0, 1000),
    st.sampled_from([1, 3, 1000, 10**6, 10**10, 10**17]),
    st.integers(1, 18),
)
commas = st.integers(1, 3000).map(lambda count: ("," * (count - 1), count))


@st.composite
def patterns(draw: st.DrawFn) -> Drawn:
    """A pattern of shards with braces, of which none exists; those for too many paths are refused for that."""
    braces = draw(st.lists(ranges | commas, min_size=1, max_size=12))
    count = math.prod(count for _, count in braces)
    about = "more than 100,000 paths" if count > 100_000 else "does not exist"
    return Drawn("x".join(f"{{{inside}}}" for inside, _ in braces) + ".tar", "refused", about)


@st.composite
def weights(draw: st.DrawFn) -> Drawn:
    """A file of weights whose tensors are others than those of which it has the digest, or the same."""
    state = {"fc.weight": torch.full((10, 4), float(draw(st.integers(1, 9)))), "fc.bias": torch.zeros(10)}
    metadata = {"content": _content(state)}
    if draw(st.integers(0, 3)):
        state["fc.bias"][draw(st.integers(0, 9))] += draw(st.sampled_from([1.0, -0.5, 1e-3]))
        return Drawn(save(state, metadata), "refused", "damaged")
    return Drawn(save(state, metadata), "accepted")


paths = st.one_of(
    st.integers(256, 20_000).map("x".__mul__).map(lambda text: Drawn(text, "refused", "File name too long")),
    st.sampled_from(["loop", "loop/x", "loop/"]).map(lambda text: Drawn(text, "refused", "symbolic links")),
    st.sampled_from(["a\0", "~\0", "\0"]).map(lambda text: Drawn(text, "refused", "null byte")),
    st.just(Drawn("", "refused", "it is empty")),
    st.sampled_from(["not/here", "~no-such-user/x", " ", "-", "caf\udce9"]).map(lambda text: Drawn(text, "accepted")),
)
"""Paths that a user gives; none exists."""
