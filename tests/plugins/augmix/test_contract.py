"""AugMix's loss against the whole contract."""

from __future__ import annotations

from augury.testing import MethodContract


class TestAugMix(MethodContract):
    method = "augmix"
