"""ISDA against the whole contract."""

from __future__ import annotations

from augury.testing import MethodContract


class TestISDA(MethodContract):
    method = "isda"
    options = {"lambda_0": 2.0}
