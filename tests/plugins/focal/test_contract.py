"""The focal loss against the whole contract, alone and with class-balanced weights."""

from __future__ import annotations

from augury.testing import MethodContract


class TestFocal(MethodContract):
    method = "focal"
    options = {"gamma": 2.0, "beta": 0.99}


class TestFocalWithoutWeights(MethodContract):
    method = "focal"
    options = {"gamma": 0.5}
    test_composes = None  # with other methods it is as above
