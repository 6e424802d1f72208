"""Everything that a run expects of a method, asked of this one."""

from __future__ import annotations

from augury.testing import MethodContract


class TestManifoldMixup(MethodContract):
    """Manifold Mixup keeps the contract."""

    method = "manifold_mixup"
    rejects = [{"alpha": 0}, {"layers": []}, {"layers": ["input", "input"]}, {"layers": "input"}]
