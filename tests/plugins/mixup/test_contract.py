"""Mixup against the whole contract; a coin decides which batches are mixed."""

from __future__ import annotations

from augury.testing import MethodContract


class TestMixup(MethodContract):
    method = "mixup"
    options = {"prob": 0.5}
    rejects = [{"per": "view"}]


class TestMixupPerImage(MethodContract):
    method = "mixup"
    options = {"per": "image"}
    test_composes = None  # with other methods it is as above
