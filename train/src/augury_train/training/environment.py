"""With what a run is made, `environment.json`: versions, the packages of its methods, the machine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import torch

from augury.discovery import GROUP
from augury.errors import UsageError
from augury.hookspecs import CONTRACT_VERSION
from augury.method import Method
from augury.outside import RECORDED, parse_json, read_text
from augury.registry import Register
from augury_train.config import RunConfig
from augury_train.training.costs import hardware
from augury_train.training.launch import launched, place
from augury_train.training.plan import Plan

ENVIRONMENT = "environment.json"
_CLASS = "class"
"""Stands before the name of a method's class that no package offers."""
_MACHINE = ("device", "processor")
"""What tells one machine from another."""


def environment(plan: Plan, device: torch.device, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """With what a run is made: versions, the packages of its methods, the machine; and, where it goes on with others,
    `earlier`: with what it was made until then.

    Args:
        before: what this said the last time.
    """
    now = {
        "versions": versions(),
        "methods": {chosen.name: _origin(chosen.name, chosen.cls) for chosen in plan.chosen},
        "hardware": hardware(device),
    }
    if not before:
        return now
    then = {key: before.get(key, {}) for key in now}
    other = _others(then, now) or any(then["hardware"].get(key) != now["hardware"][key] for key in _MACHINE)
    earlier = [*before.get("earlier", []), *([then] if other else [])]
    return {**now, "earlier": earlier} if earlier else now


def _origin(name: str, cls: type[Method]) -> str:
    """The package that offers a method; the class, where none does."""
    for point in entry_points(group=GROUP, name=name):
        # Its module has been imported if the class came from it; nothing is imported to find out.
        offered: Any = sys.modules.get(point.module)
        for part in point.attr.split("."):
            offered = getattr(offered, part, None)
        if point.dist is not None and offered is cls:
            return f"{point.dist.name} {point.dist.version}"
    return f"{_CLASS} {cls.__module__}.{cls.__qualname__}"


def read_environment(folder: Path) -> dict[str, Any]:
    """What a run folder says of its environment; nothing where it cannot be read."""
    try:
        said = parse_json(read_text(folder / ENVIRONMENT, RECORDED))
    except (OSError, ValueError):
        return {}
    if not isinstance(said, dict):
        return {}
    earlier = said.get("earlier")
    then = [_sections(one) for one in earlier if isinstance(one, dict)] if isinstance(earlier, list) else []
    return _sections(said) | ({"earlier": then} if then else {})


def _sections(said: Mapping[str, Any]) -> dict[str, Any]:
    """What is of the right form."""
    texts = {
        key: {name: text for name, text in said[key].items() if isinstance(text, str)}
        for key in ("versions", "methods")
        if isinstance(said.get(key), dict)
    }
    if "versions" in texts:
        # Runs of before there was another did not say it.
        texts["versions"].setdefault("contract", "1.0")
    return texts | ({"hardware": said["hardware"]} if isinstance(said.get("hardware"), dict) else {})


def version_changes(environment: Mapping[str, Any]) -> list[str]:
    """A line for each package that was another when the run began, or at an earlier resume."""
    lines = []
    for then in environment.get("earlier", []):
        for what, old, new in _others(then, environment):
            lines.append(
                f"{what}: the run went on with {new}, and had {old} until then. It may end otherwise than one without "
                "a break."
            )
    return list(dict.fromkeys(lines))


def _others(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What was another version then: its name, old and new."""
    return [
        (name, str(then[key][name]), str(found))
        for key in ("methods", "versions")
        for name, found in now[key].items()
        if name in then.get(key, {}) and then[key][name] != found
    ]


def versions() -> dict[str, str]:
    """Of Python, of the contract of methods, and of what a result depends on."""
    found = {"python": platform.python_version(), "contract": CONTRACT_VERSION}
    for name in ("augury-core", "augury-train", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def refuse_lost_classes(folder: Path, config: RunConfig, register: Register | None) -> None:
    """Refuse to go on without a class that the run was given as a method.

    Raises:
        UsageError: it was not given again.
    """
    wanted = {m.name for m in config.methods}
    lost = {name: origin for name, origin in _classes(read_environment(folder)).items() if name in wanted}
    if not lost:
        return
    known = {found.name for found in (register or Register.load()).methods()}
    for name, origin in lost.items():
        if name not in known:
            raise UsageError(
                f"{folder}: its method `{name}` is a class that was given in Python, {origin}, and no package offers "
                f"it. Go on in Python: {how_to_resume(folder, read_environment(folder))}."
            )


def how_to_resume(folder: Path, environment: Mapping[str, Any]) -> str:
    """The command with which a run goes on, in as many processes as it has now; from Python, where it has methods that
    were given there as classes."""
    named = [origin.rpartition(".")[2] for origin in _classes(environment).values()]
    # It is to be typed as it stands, and a folder from elsewhere may say anything.
    classes = [name for name in named if name.isidentifier()]
    size = place()[1]
    if not classes and launched():
        return f"augury resume {folder} --processes {size}"
    alone = f"augury.resume({str(folder)!r}, methods=[{', '.join(classes)}])" if classes else f"augury resume {folder}"
    return alone if size == 1 else f"{alone} (in {size} processes, started as these were)"


def _classes(environment: Mapping[str, Any]) -> dict[str, str]:
    """The methods that are classes which no package offers: module and name of each."""
    origins = {name: str(origin) for name, origin in environment.get("methods", {}).items()}
    return {
        name: origin.removeprefix(f"{_CLASS} ") for name, origin in origins.items() if origin.startswith(f"{_CLASS} ")
    }
