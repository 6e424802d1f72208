"""Tests of a method against the whole contract, for packages of methods.

A package's whole test file can be

    from augury.testing import MethodContract

    class TestFeatureNoise(MethodContract):
        method = "feature_noise"            # a registered name, or the class itself
        options = {"strength": 0.5}         # to test with, where the defaults will not do
        rejects = [{"strength": -1}]        # more options that must be refused

and `pytest --pyargs augury.testing.suite --augury-method feature_noise` needs none. docs/testing.md tells what each
check asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from augury_authoring.testing.contract import MethodContract as MethodContract

__all__ = ["MethodContract"]


def __getattr__(name: str) -> Any:
    # On first use: the plugin, which every run of pytest loads, must not bring torch, nor `outcome` pytest.
    if name != "MethodContract":
        raise AttributeError(f"module 'augury_authoring.testing' has no attribute {name!r}")
    from augury_authoring.testing.contract import MethodContract

    return MethodContract
