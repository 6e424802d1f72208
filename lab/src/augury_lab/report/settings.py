"""What was asked for: settings as flat keys, what differs between compositions, and what is not the default."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from augury_train.config import RunConfig

METHODS = "methods"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as texts by their full names; the methods in order, and each one's options."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if key == METHODS and not prefix:
            flat |= _methods(value)
        elif isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = text(value)
    return flat


def _methods(value: Any) -> dict[str, str]:
    named = [m for m in value if isinstance(m, Mapping)] if isinstance(value, list) else []
    flat = {METHODS: ", ".join(str(m.get("name")) for m in named) or "none"}
    for method in named:
        options = method.get("options")
        if isinstance(options, Mapping):
            flat |= flatten(options, f"{METHODS}.{method.get('name')}.")
    return flat


def text(value: Any) -> str:
    """A setting as one would write it."""
    if value is None:
        return "unset"
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False)


def differing(configs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, str]]:
    """The keys that are not the same in all compositions, with each one's value.

    Args:
        configs: composition -> the settings of its runs, which differ in their seeds.

    Returns:
        key -> composition -> value; no entry where a composition has no such key.
    """
    flat = {name: [flatten(config) for config in given] for name, given in configs.items()}
    keys = dict.fromkeys(key for given in flat.values() for one in given for key in one if key != "seed")
    table: dict[str, dict[str, str]] = {}
    for key in keys:
        found = {
            name: " / ".join(dict.fromkeys(one[key] for one in given if key in one)) for name, given in flat.items()
        }
        if len(set(found.values())) > 1:
            table[key] = {name: value for name, value in found.items() if value}
    return table


def shared(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What all runs were given that is not the default: key, value, default."""
    flat = [flatten(config) for config in configs]
    defaults = flatten(RunConfig().model_dump(mode="json"))
    if not flat:
        return []
    alike = {key: value for key, value in flat[0].items() if all(other.get(key) == value for other in flat)}
    return [
        (key, value, defaults.get(key, NO_DEFAULT))
        for key, value in alike.items()
        if value != defaults.get(key) and key != "seed"
    ]


NO_DEFAULT = "\N{EN DASH}"
