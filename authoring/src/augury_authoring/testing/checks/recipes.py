"""The recipes that a method's package brings can be run."""

from __future__ import annotations

import tomllib

from augury.choice import choose
from augury.errors import UsageError
from augury.registry import Register
from augury_authoring.testing.bench import Bench, CheckFailed, NotApplicable
from augury_train.config import from_file, read_config
from augury_train.recipes import recipes


def readable(bench: Bench) -> None:
    """Every recipe is settings that augury reads, and names methods with options that they take. Methods that are not
    installed here are passed over."""
    if not bench.installed:
        raise NotApplicable("it is a class, which brings no recipes.")
    register = Register.load(trust=[bench.name])
    brought = [recipe for recipe in recipes(register) if recipe.owner == bench.name]
    if not brought:
        raise NotApplicable("its package brings no recipes.")
    faults = []
    for recipe in brought:
        if recipe.problem:
            faults.append(f"recipe {recipe.name}: {recipe.problem}")
            continue
        values = tomllib.loads(recipe.path.read_text(encoding="utf-8"))
        config = read_config(from_file(values))
        own = [(name, options) for name, options in config.named_methods() if _is_ready(name, register)]
        _, problems = choose(own, register)
        faults += [f"recipe {recipe.name}: {line}" for line in problems]
    if faults:
        raise CheckFailed("\n".join(faults))


def _is_ready(name: str, register: Register) -> bool:
    try:
        return bool(register.resolve(name))
    except UsageError:
        return False
