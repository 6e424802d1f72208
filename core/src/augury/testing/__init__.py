"""The contract suite for methods: `from augury.testing import MethodContract`. augury-authoring has it.

docs/testing.md tells what each check asks. Everything here forwards to `augury_authoring.testing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from augury.lazy_import import import_for

if TYPE_CHECKING:
    from augury_authoring.testing import MethodContract as MethodContract

__all__ = ["MethodContract"]


def __getattr__(name: str) -> Any:
    if name != "MethodContract":
        raise AttributeError(f"module 'augury.testing' has no attribute {name!r}")
    return import_for("augury.testing", "augury_authoring.testing").MethodContract
