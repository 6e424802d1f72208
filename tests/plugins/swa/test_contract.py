"""SWA against the whole contract; two epochs are averaged."""

from __future__ import annotations

from augury.testing import MethodContract


class TestSWA(MethodContract):
    method = "swa"
    options = {"start": 0.5}
