"""The networks that can be trained: timm's and ours, told without importing torch.

timm knows its models only once it and torch are imported, which takes seconds. What it says is therefore kept in the
platform's cache folder, one file for each pair of versions of timm and augury-core, and read from there the next time.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from augury import __version__
from augury.errors import UsageError

MEASURABLE = 30
"""How many networks are built, at most, to answer one question."""


@dataclass(frozen=True)
class Size:
    """What only building a network tells.

    Attributes:
        parameters: how many, the classifier for the network's own number of classes among them.
        num_features: A, width of the classifier's input.
        linear: whether the classifier is one `nn.Linear`.
    """

    parameters: int
    num_features: int
    linear: bool


@dataclass(frozen=True)
class Backbone:
    """One network as timm's registry describes it.

    Attributes:
        input_size: (channels, height, width) that it is meant for, None where timm does not say.
        tags: its sets of pretrained weights, the default one first ("" for one without a name).
        size: None unless measured.
    """

    name: str
    input_size: tuple[int, int, int] | None
    tags: tuple[str, ...] = ()
    size: Size | None = None


def backbones(pattern: str = "*", *, measure: bool = False) -> list[Backbone]:
    """List the networks whose name matches a pattern.

    Args:
        pattern: a glob over names, `resnet*_cifar`; with a dot in it, over `name.tag`, and only those tags are told.
        measure: build what matches, at most `MEASURABLE` networks, without memory for weights, and tell its size.

    Raises:
        UsageError: nothing matches, or too much to be measured.
    """
    file, stamp = _place()
    known = _read(file, stamp)
    if known is None:
        known = _collect()
        _write(file, stamp, known)
    chosen = _matching(known, pattern)
    if not chosen:
        raise UsageError(_no_match(pattern, list(known)))
    if not measure:
        return [replace(backbone, size=None) for backbone in chosen]
    if len(chosen) > MEASURABLE:
        raise UsageError(
            f"`{pattern}` matches {len(chosen)} models; at most {MEASURABLE} are measured at once. Narrow the pattern."
        )
    if unmeasured := [backbone.name for backbone in chosen if backbone.size is None]:
        for name, size in _measure(unmeasured).items():
            known[name] = replace(known[name], size=size)
        _write(file, stamp, known)
    return [replace(backbone, size=known[backbone.name].size) for backbone in chosen]


def absent(names: Iterable[str], *, ask: bool = True) -> dict[str, str]:
    """Tell which of some networks do not exist here, as those of a recipe made for newer versions.

    Args:
        names: of networks; `name.tag` is the network of that name.
        ask: ask timm, which takes seconds, where its answer is not kept. Otherwise none is said to be absent then.

    Returns:
        for each of `names` that is absent, a line that says so and what to do.
    """
    known = _read(*_place())
    if known is None and ask:
        known = {backbone.name: backbone for backbone in backbones()}
    versions = f"timm {importlib.metadata.version('timm')} and augury-core {__version__}"
    return {
        name: f"needs the model `{name}`, which {versions} do not have. "
        "Update them, or take another: --model NAME, see `augury backbones`."
        for name in names
        if known is not None and name.partition(".")[0] not in known
    }


def cache_folder() -> Path:
    """The platform's folder for what can be made again."""
    import platformdirs

    return platformdirs.user_cache_path("augury", appauthor=False)


def _matching(known: Mapping[str, Backbone], pattern: str) -> list[Backbone]:
    if "." not in pattern:
        return [backbone for name, backbone in known.items() if fnmatchcase(name, pattern)]
    chosen = []
    for name, backbone in known.items():
        if tags := tuple(tag for tag in backbone.tags if fnmatchcase(f"{name}.{tag}", pattern)):
            chosen.append(replace(backbone, tags=tags))
    return chosen


def _no_match(pattern: str, names: Sequence[str]) -> str:
    bare = pattern.split(".")[0].strip("*?")
    around = sum(bare in name for name in names)
    if bare and around and f"*{bare}*" != pattern:
        return f"no model matches `{pattern}`. `*{bare}*` matches {around}."
    near = difflib.get_close_matches(bare, names, n=3)
    hint = f"Did you mean {', '.join(f'`{name}`' for name in near)}?" if near else "See them all: `augury backbones`."
    return f"no model matches `{pattern}`. {hint}"


def _collect() -> dict[str, Backbone]:
    """Ask timm, ours among its models."""
    import timm

    import augury.backbones  # noqa: F401  ours join timm's registry

    tags: dict[str, list[str]] = {}
    for pretrained in timm.list_pretrained():
        name, _, tag = pretrained.partition(".")
        tags.setdefault(name, []).append(tag)
    found = {}
    for name in timm.list_models():
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
        default = (cfg.tag or "") if cfg is not None else ""
        ordered = sorted(tags.get(name, ()), key=lambda tag: tag != default)
        found[name] = Backbone(name, _shape(cfg.input_size) if cfg is not None else None, tuple(ordered))
    return found


def _measure(names: Sequence[str]) -> dict[str, Size]:
    """Build networks on torch's meta device; leave out what cannot be built there, or has several classifiers."""
    import timm
    import torch
    from torch import nn

    import augury.backbones

    sizes = {}
    for name in names:
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                network = timm.create_model(name)
            classifier = augury.backbones.classifier_of(network)
        except Exception:  # whatever timm's 1,300 constructors raise: its size is not known then
            continue
        linear = isinstance(classifier, nn.Linear)
        width: Any = classifier.in_features if isinstance(classifier, nn.Linear) else network.num_features
        sizes[name] = Size(sum(p.numel() for p in network.parameters()), int(width), linear)
    return sizes


def _place() -> tuple[Path, str]:
    """The file in which it is kept, and what must stand in it."""
    versions = f"timm{importlib.metadata.version('timm')}-augury{__version__}"
    return cache_folder() / f"backbones-{versions}.json", _stamp()


def _stamp() -> str:
    """Changes when our networks do, which while they are being written is more often than the version."""
    files = [(path.name, path.stat()) for path in sorted((Path(__file__).parent / "backbones").glob("*.py"))]
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in files)


def _read(file: Path, stamp: str) -> dict[str, Backbone] | None:
    """What was kept; None when there is nothing, or nothing that can be used."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return {values["name"]: _backbone(**values) for values in kept["models"]} if kept["stamp"] == stamp else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _backbone(name: str, input_size: list[int] | None, tags: list[str], size: dict[str, Any] | None) -> Backbone:
    shape = None if input_size is None else _shape(input_size)
    return Backbone(name, shape, tuple(tags), None if size is None else Size(**size))


def _shape(sizes: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = map(int, sizes)
    return channels, height, width


def _write(file: Path, stamp: str, known: Mapping[str, Backbone]) -> None:
    """Keep it; where that is not possible the next time takes longer, and that is all."""
    kept = {"stamp": stamp, "models": [asdict(backbone) for backbone in known.values()]}
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept), encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        return
