"""Import what other distributions of augury have, at the moment that it is asked for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def import_for(asked: str, module: str) -> ModuleType:
    """Import a module, and name the distribution that has it where that is not installed.

    Args:
        asked: the name that the caller used, for the error: `augury.train`.
        module: the dotted name of the module. Its first part is the name of the distribution, with `_` for `-`.

    Raises:
        ModuleNotFoundError: the distribution is not installed, or lacks one of its own dependencies.
    """
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        distribution = package.replace("_", "-")
        # Not an AttributeError: `from augury import train` would put a text of its own in the place of this one.
        raise ModuleNotFoundError(
            f"{asked} needs {distribution}, which is not installed. Install it from where you got augury.",
            name=package,
        ) from None
