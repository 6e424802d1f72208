"""What timm itself is asked, which takes seconds, and what of it is kept in the platform's cache folder."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from augury import __version__
from augury.errors import UsageError
from augury_train.catalogue.facts import Backbone, Size, shape


@dataclass
class Asked:
    """What timm said.

    Attributes:
        models: by name in timm's order, without their sizes.
        sizes: of those networks that were built, None for one that could not be.
    """

    models: dict[str, Backbone]
    sizes: dict[str, Size | None] = field(default_factory=dict)


def installed() -> str:
    """The version of timm."""
    return importlib.metadata.version("timm")


def ask() -> Asked:
    """Ask timm for its networks, ours among them, and keep it."""
    asked = Asked(collect())
    keep(asked)
    return asked


def collect() -> dict[str, Backbone]:
    """What timm's registry tells, without building anything."""
    import timm

    import augury_train.backbones  # noqa: F401  ours join timm's registry

    tags: dict[str, list[str]] = {}
    for pretrained in timm.list_pretrained():
        name, _, tag = pretrained.partition(".")
        tags.setdefault(name, []).append(tag)
    found = {}
    for name in timm.list_models():
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
        default = (cfg.tag or "") if cfg is not None else ""
        ordered = sorted(tags.get(name, ()), key=lambda tag: tag != default)
        found[name] = Backbone(name, shape(cfg.input_size) if cfg is not None else None, tuple(ordered))
    return found


def measure(names: Iterable[str]) -> dict[str, Size | None]:
    """Build networks on torch's meta device, where weights take no memory, and pass images through them as the plan of
    a run does; None for one that cannot be built there."""
    return {name: _measure(name) for name in names}


def _measure(name: str) -> Size | None:
    import timm
    import torch
    from torch import nn

    from augury_train import backbones
    from augury_train.config import ModelConfig

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network: Any = timm.create_model(name)
    except Exception:  # whatever timm's 1,300 constructors raise: its size is not known then
        return None
    parameters = sum(p.numel() for p in network.parameters())
    cfg = timm.get_pretrained_cfg(name)
    try:
        # For ten classes: some networks have a classifier only where they are told how many there are.
        facts = backbones.inspect_model(ModelConfig(name=name), 10, cfg.input_size if cfg else (3, 224, 224))
    except UsageError:
        told = network.get_classifier() if hasattr(network, "get_classifier") else ()
        return Size(parameters, int(getattr(network, "num_features", 0)), tuple(_kinds(told)))
    kind = "Linear" if isinstance(facts.classifier, nn.Linear) else type(facts.classifier).__name__
    return Size(parameters, facts.num_features, (kind,))


def _kinds(told: Any) -> Iterator[str]:
    """What the last layers are that a network tells."""
    from torch import nn

    if isinstance(told, list | tuple | nn.ModuleList):
        for layer in told:
            yield from _kinds(layer)
    elif isinstance(told, nn.Module) and not isinstance(told, nn.Identity):
        # A class derived from it is one too.
        yield "Linear" if isinstance(told, nn.Linear) else type(told).__name__


def kept() -> Asked | None:
    """What was kept; None when there is nothing, or nothing that can be used."""
    file, stamp = _place()
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if said["stamp"] != stamp:
            return None
        models = {values["name"]: _backbone(**values) for values in said["models"]}
        return Asked(models, {name: None if size is None else _size(**size) for name, size in said["sizes"].items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def keep(asked: Asked) -> None:
    """Keep it; where that is not possible the next time takes longer, and that is all."""
    file, stamp = _place()
    models = [{"name": b.name, "input_size": b.input_size, "tags": b.tags} for b in asked.models.values()]
    sizes = {name: None if size is None else asdict(size) for name, size in asked.sizes.items()}
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"stamp": stamp, "models": models, "sizes": sizes}), encoding="utf-8")
        os.replace(temporary, file)
    except OSError:
        return


def cache_folder() -> Path:
    """The platform's folder for what can be made again."""
    import platformdirs

    return platformdirs.user_cache_path("augury", appauthor=False)


def _place() -> tuple[Path, str]:
    """The file in which it is kept, and what must stand in it."""
    return cache_folder() / f"backbones-timm{installed()}-augury{__version__}.json", _stamp()


def _stamp() -> str:
    """Changes when our networks do, which while they are being written is more often than the version."""
    files = [(path.name, path.stat()) for path in sorted((Path(__file__).parents[1] / "backbones").glob("*.py"))]
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in files)


def _backbone(name: str, input_size: list[int] | None, tags: list[str]) -> Backbone:
    return Backbone(name, None if input_size is None else shape(input_size), tuple(tags))


def _size(parameters: int, num_features: int, classifiers: list[str]) -> Size:
    return Size(int(parameters), int(num_features), tuple(classifiers))
