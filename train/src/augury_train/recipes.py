"""Recipes: the TOML files of settings that method packages bring, found without importing any of them.

A package keeps them in a folder `recipes` beside its modules. `recipes/digits.toml` in the package of the method `m` is
the recipe `m/digits`. Only packages that may run, by the register, are looked at.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from augury.errors import UsageError, shown, unknown
from augury.outside import given_path, oddity, parse_toml, read_text
from augury.register_file import one_line
from augury.registry import Register
from augury_train.config import RECIPE_NOTES, from_file, read_config


@dataclass(frozen=True)
class Recipe:
    """One recipe as its file describes it.

    Attributes:
        name: `method/file`, the method being the one whose package brings it.
        methods: the methods that it uses, in order.
        published: the number that the paper reports for this run, None where there is none.
        source: where that is said.
        problem: one line that says why the file cannot be used; all that is read from it is empty then.
    """

    name: str
    path: Path
    title: str = ""
    dataset: str = ""
    model: str = ""
    methods: tuple[str, ...] = ()
    published: float | str | None = None
    source: str = ""
    problem: str = ""

    @property
    def owner(self) -> str:
        """The method whose package brings it."""
        return self.name.partition("/")[0]


def recipes(register: Register | None = None) -> list[Recipe]:
    """Read every recipe of the methods that may run, by name; a broken one has its `problem` told."""
    return [describe(name, path) for name, path in _files(register or Register.load()).items()]


def select(
    listed: Sequence[Recipe],
    *,
    name: str | None = None,
    method: str | None = None,
    dataset: str | None = None,
    model: str | None = None,
) -> list[Recipe]:
    """Choose among recipes by globs.

    Args:
        name: over the recipe's name.
        method: over the methods that a recipe uses, and the one whose package brings it.
        dataset: over the data set's name.
        model: over the network's name.

    Raises:
        UsageError: there is none.
    """

    asked = {"name": name, "method": method, "data set": dataset, "model": model}
    offered = {
        recipe.name: {
            "name": (recipe.name,),
            "method": (recipe.owner, *recipe.methods),
            "data set": (recipe.dataset,),
            "model": (recipe.model,),
        }
        for recipe in listed
    }
    chosen = list(listed)
    for key, glob in asked.items():
        if glob is None:
            continue
        has = {name for name, words in offered.items() if any(fnmatchcase(word, glob) for word in words[key])}
        if not has and key == "name":
            raise UsageError(_no_match(glob, list(offered)))
        if not has:
            known = {word for words in offered.values() for word in words[key] if word}
            raise UsageError(unknown(key, glob, known, label="There are recipes for"))
        chosen = [recipe for recipe in chosen if recipe.name in has]
    if listed and not chosen:
        told = ", ".join(f"{key} `{glob}`" for key, glob in asked.items() if glob is not None)
        raise UsageError(f"no recipe has {told} together. Leave one of them out.")
    return chosen


def find_recipe(text: str | Path, register: Register | None = None) -> Path:
    """Find a recipe's file by its path or its name; a file that exists wins.

    Args:
        text: a path, or `method/file` as `recipes` names it.
        register: the methods that may run; the register of this machine when None.

    Raises:
        UsageError: neither a file nor a recipe of a method that may run.
    """
    if text != "" and (path := given_path(text, "recipe")).is_file():
        return path
    register = register or Register.load()
    files = _files(register)
    name = str(text)
    if name in files:
        return files[name]
    owner, slash, _ = name.partition("/")
    shut = [found.problem for found in register.methods() if slash and found.name == owner and found.problem]
    if shut:
        raise UsageError(f"recipe `{name}` cannot be had. {shut[0]}")
    same = [known for known in files if known.partition("/")[2] == Path(name).stem]
    near = same[:3] or difflib.get_close_matches(name, files, n=3)
    hint = f" Did you mean {', '.join(f'`{known}`' for known in near)}?" if near else ""
    raise UsageError(
        f"unknown recipe `{name}`: no such file, and no method brings a recipe of this name.{hint} "
        "See `augury recipes list`."
    )


def package_folders(target: str) -> list[Path]:
    """The folders of the packages around an entry point's module, the innermost first, without importing any.

    Args:
        target: `module:Class`, or `package.module:Class`.
    """
    top, *inner = target.partition(":")[0].split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    # None for a module that is a file, and so can bring nothing with it.
    levels = [[Path(place) for place in (spec and spec.submodule_search_locations) or ()]]
    for part in inner:
        levels.append([folder / part for folder in levels[-1] if (folder / part).is_dir()])
    return [folder for level in reversed(levels) for folder in level]


def _files(register: Register) -> dict[str, Path]:
    """The file of each recipe's name, sorted."""
    files = {}
    for found in register.methods():
        if found.status != "ready":
            continue
        folders = (folder / "recipes" for folder in package_folders(found.entry_point))
        folder = next((folder for folder in folders if folder.is_dir()), None)
        for path in sorted(folder.glob("*.toml")) if folder is not None else ():
            files[f"{found.name}/{path.stem}"] = path
    return dict(sorted(files.items()))


def describe(name: str, path: Path) -> Recipe:
    """Read one recipe's file."""
    try:
        values = parse_toml(read_text(path))
        if why := oddity({key: value for key, value in values.items() if key not in RECIPE_NOTES}):
            raise ValueError(why)
        notes = {key: values[key] for key in RECIPE_NOTES if key in values}
        config = read_config(from_file(values), subject=name)
        title, source, published = _described(notes)
    except UsageError as error:
        first, *more = str(error).splitlines()
        problem = first.removeprefix(f"{name}: ") + (f" (and {len(more)} more)" if more else "")
        return Recipe(name, path, problem=one_line(problem))
    except (OSError, ValueError) as error:
        return Recipe(name, path, problem=one_line(f"cannot be read: {error}"))
    methods = tuple(method.name for method in config.methods)
    return Recipe(name, path, title, config.data.dataset, config.model.name, methods, published, source)


def _no_match(glob: str, names: Sequence[str]) -> str:
    bare = glob.strip("*?")
    if around := sum(bare in name for name in names) if bare else 0:
        return f"no recipe matches `{glob}`. `*{bare}*` matches {around}."
    near = difflib.get_close_matches(bare, names, n=3)
    hint = (
        f"Did you mean {', '.join(f'`{name}`' for name in near)}?" if near else "See them all: `augury recipes list`."
    )
    return f"no recipe matches `{glob}`. {hint}"


def _described(notes: Mapping[str, Any]) -> tuple[str, str, float | str | None]:
    """Title, source and published number."""
    for key in ("title", "source"):
        if not isinstance(notes.get(key, ""), str):
            raise UsageError(f"key `{key}` must be text, got {shown(notes[key])}.")
    published = notes.get("published")
    number = isinstance(published, int | float) and not isinstance(published, bool) and math.isfinite(published)
    if not (published is None or number or isinstance(published, str)):
        raise UsageError(
            f"key `published` must be a number or text, got {shown(published)}. Leave it out where there is none."
        )
    told = one_line(published) if isinstance(published, str) else published
    return one_line(notes.get("title", "")), one_line(notes.get("source", "")), told
