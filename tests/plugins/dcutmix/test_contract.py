"""DCutMix against the whole contract; a coin decides which batches are mixed."""

from __future__ import annotations

from augury.testing import MethodContract


class TestDCutMix(MethodContract):
    method = "dcutmix"
    options = {"prob": 0.5, "k": 3}
