"""SupCon against the whole contract, with two views and a queue shorter than two batches."""

from __future__ import annotations

from augury.testing import MethodContract


class TestSupCon(MethodContract):
    method = "supcon"
    options = {"dim": 8, "queue": 30}
