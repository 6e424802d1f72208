"""Typer's group and command without the price of pydantic at start.

Typer 0.29 converts the value of every option through pydantic, whose import takes half of the time in which
`augury plugins list` must be done. It leaves flags that are False alone, but its own (--help, --install-completion) are
None until they are given.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class QuickCommand(TyperCommand):
    """A command whose flags of Typer's own are False unless given."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _false_by_default(super().get_params(ctx))


class QuickGroup(TyperGroup):
    """A group whose flags of Typer's own are False unless given."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _false_by_default(super().get_params(ctx))


def _false_by_default(params: list[Any]) -> list[Any]:
    for param in params:
        # What is not exposed to the command's function is Typer's own.
        if not param.expose_value and param.default is None and getattr(param, "is_flag", False):
            param.default = False
    return params
