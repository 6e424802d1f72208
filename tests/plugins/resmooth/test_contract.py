"""ReSmooth against the whole contract, with the network and the mixture that its stage makes."""

from __future__ import annotations

from augury.testing import MethodContract


class TestReSmooth(MethodContract):
    method = "resmooth"
    rejects = [{"loss": "smooth", "weighting": "random"}, {"fair_comparison": "id", "prob": 0.5}]
