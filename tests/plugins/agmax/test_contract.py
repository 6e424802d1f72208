"""AgMax against the whole contract, with two views."""

from __future__ import annotations

from augury.testing import MethodContract


class TestAgMax(MethodContract):
    method = "agmax"
    options = {"q_init_std": 0.2}
    rejects = [{"agreement": "kl", "n_units": 8}]
