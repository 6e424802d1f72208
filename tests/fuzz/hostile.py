"""What the fuzz tests draw, and what must hold of every answer."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from augury.errors import HIDDEN, LETTERS, LINES, AuguryError
from augury_cli.main import main
from augury_train.config import RunConfig

settings.register_profile("quick", max_examples=1, derandomize=True, database=None, deadline=timedelta(seconds=30))
settings.register_profile("fuzz", max_examples=34, deadline=timedelta(seconds=60), print_blob=True)
"""A profile's `max_examples` is the factor of each test's own number of cases."""

counted = 0
"""Cases until now, in this process."""


def cases(number: int, /, **drawn: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on so many cases of what is drawn by name; on as many times more as the profile says."""

    long = settings.get_profile("fuzz")
    # Other tests have profiles of their own, so "quick" is not loaded for all of them.
    profile = long if settings.default is long else settings.get_profile("quick")

    def of(test: Callable[..., None]) -> Callable[..., None]:
        @settings(profile, max_examples=number * profile.max_examples, suppress_health_check=list(HealthCheck))
        @given(**drawn)
        @functools.wraps(test)
        def one(*fixtures: Any, **values: Any) -> None:
            global counted
            counted += 1
            test(*fixtures, **values)

        return one

    return of


def told(text: str) -> None:
    """Check a message: it says something, in few lines, and brings nothing raw to the terminal."""
    assert text.strip()
    lines = text.split("\n")
    assert len(lines) <= LINES + 1
    assert max(map(len, lines)) <= 6 * LETTERS + 3
    assert not HIDDEN.search(text.replace("\n", "")), repr(text[:300])
    assert "Traceback" not in text


@dataclass(frozen=True)
class Drawn:
    """What a generator made, and what is due for it.

    Attributes:
        value: what it made.
        due: `refused`, `accepted`, or `either` where the generator does not know.
        about: a pattern that the message of a refusal that is due holds.
    """

    value: Any = None
    due: Literal["refused", "accepted", "either"] = "either"
    about: str = ""


EITHER = Drawn()


def answer(call: Callable[[], Any], drawn: Drawn = EITHER) -> Any:
    """What a call returns; None where it refuses as augury does. Everything else that it raises is a fault, and so is
    an answer that is not the one which is due."""
    with warnings.catch_warnings():
        # What libraries warn of is not what is tested here.
        warnings.simplefilter("ignore")
        try:
            found, refusal = call(), None
        except AuguryError as error:
            found, refusal = None, str(error)
    if refusal is not None:
        told(refusal)
        assert drawn.due != "accepted", refusal
        assert drawn.due == "either" or re.search(drawn.about, refusal), (drawn.about, refusal[:300])
    else:
        assert drawn.due != "refused", f"accepted, but due is a refusal of {drawn.about!r}: {drawn.value!r:.300}"
    return found


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process; bytes that are no UTF-8 are lone surrogates in them.

    pytest's own capturing would fail on such bytes, in this test and in all that follow it.
    """
    streams = {
        name: io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for name in ("stdout", "stderr")
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["augury", *arguments])
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as end:
            main()
    out, err = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in streams.values())
    return int(end.value.code or 0), out, err


def all_told(lines: Iterable[str]) -> None:
    """Check notes, a line each."""
    for line in lines:
        told(line)
        assert "\n" not in line


def tree(folder: Path) -> dict[str, str]:
    """Every entry of a folder and what it holds; links are not followed."""
    found = {}
    for inside, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(inside, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = f"-> {os.readlink(path)}"
            else:
                found[key] = hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


NASTY = [
    "",
    " ",
    "\n",
    "../../out",
    "/proc/self/mem",
    "/dev/zero",
    "~root/x",
    "\x00",
    "a\x00b",
    "\x1b]0;owned\x07",
    "\x1b[31mred",
    "\x9b2J",
    "\u202egnp.exe",
    "\ufeffname",
    "\ud800",
    "caf\udce9",
    "x" * 20_000,
    "9" * 5_000,
    "1e999",
    "nan",
    "-0",
    "{0.__class__}",
    "%s%n",
    "$(touch out)",
    "a.b.c",
    "hf-hub:someone/something",
    "local-dir:.",
    "hfds/x",
    "wds/pipe:touch out",
    "resnet18.no_such_tag",
    "synthetic:images=99999999999999999999",
    "NUL",
    "isda",
    "__proto__",
]
texts = st.sampled_from(NASTY) | st.text(max_size=20)
numbers = (
    st.integers(-3, 300)
    | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**40, 10**4200])
    | st.floats()
    | st.sampled_from([float("nan"), float("inf"), 1e308, 5e-324, -0.0])
)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)

TINY: dict[str, Any] = {
    "data": {"dataset": "digits", "images_per_class": 4},
    "model": {"name": "test_resnet"},
    "optim": {"batch_size": 8, "epochs": 1},
    "train": {"trackers": []},
}
"""Settings of a run that is over at once."""

DEFAULTS = RunConfig().model_dump()
KEYS = sorted(
    {(section, key) for section, inner in DEFAULTS.items() if isinstance(inner, dict) for key in inner}
    | {(section, "") for section in DEFAULTS}
)


@st.composite
def configs(draw: st.DrawFn, base: Mapping[str, Any] = TINY, methods: bool = True) -> dict[str, Any]:
    """Settings in which some values are odd, or keys unknown, or sections no sections."""
    found: dict[str, Any] = json.loads(json.dumps(base))
    for section, key in draw(st.lists(st.sampled_from(KEYS), max_size=3)):
        odd = draw(values)
        if key and isinstance(found.setdefault(section, {}), dict):
            found[section][key] = odd
        else:
            found[section] = odd
    if methods and draw(st.booleans()):
        found["methods"] = draw(st.lists(method_tables, max_size=3))
    if draw(st.integers(0, 4)) == 0:
        found[draw(texts)] = draw(values)
    return found


method_tables = st.fixed_dictionaries(
    {"name": st.sampled_from(["isda", "dcutmix", "agmax", "resmooth"]) | texts},
    optional={
        "options": st.dictionaries(st.sampled_from(["lambda_0", "k", "alpha", "prob"]) | texts, values, max_size=3)
        | values,
        "trust": st.booleans(),
    },
)


def toml(value: Any) -> str:
    """A value as TOML says it; what it has no word for becomes text."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"0x{value:x}" if value >= 0 else str(max(value, -(10**4000)))
    return json.dumps(str(value) if value is None else value, ensure_ascii=False)


def toml_text(values: Mapping[str, Any]) -> str:
    """Settings as a TOML file."""
    return "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in values.items())


def encoded(text: str) -> bytes:
    """Bytes of a text that may hold what no UTF-8 has."""
    return text.encode("utf-8", "surrogatepass")


BYTES = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"[" * 3000,
    b"{" * 3000,
    b'{"a":' * 3000,
    b"a." * 3000,
    b"\x1b[2J",
    b"\r",
    b"1" * 5000,
    b"a = 0x" + b"f" * 5000,
    b"\n[[x]]\n",
    b'"',
    b"'''",
    b"NaN",
    b"\xc2\x9b",
]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file's bytes after a few accidents."""
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(content), 1)))
        match draw(st.sampled_from(["cut", "flip", "insert", "drop", "repeat"])):
            case "cut":
                content = content[:at]
            case "flip" if content:
                place = at % len(content)
                bit = 1 << draw(st.integers(0, 7))
                content = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
            case "insert":
                content = content[:at] + draw(st.sampled_from(BYTES) | st.binary(max_size=20)) + content[at:]
            case "drop":
                content = content[:at] + content[at + draw(st.integers(1, 40)) :]
            case "repeat":
                content = content[:at] + content[max(at - 60, 0) :]
    return content


def files(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Files of a kind: whole, damaged, or of another kind altogether."""
    return content | content.flatmap(damaged) | st.binary(max_size=200) | st.sampled_from(BYTES)


def reject_root(config: Mapping[str, Any]) -> None:
    """Leave out folders around the tests, where there may be any number of files."""
    data = config.get("data")
    assume(not (isinstance(data, dict) and str(data.get("dataset")).strip() in (".", "..", "~")))
