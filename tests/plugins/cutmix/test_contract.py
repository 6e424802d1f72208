"""CutMix against the whole contract; a coin decides which batches are mixed."""

from __future__ import annotations

from augury.testing import MethodContract


class TestCutMix(MethodContract):
    method = "cutmix"
    options = {"prob": 0.5}
    rejects = [{"per": "view"}]


class TestCutMixPerImage(MethodContract):
    method = "cutmix"
    options = {"per": "image"}
    test_composes = None  # with other methods it is as above
