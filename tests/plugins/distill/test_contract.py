"""Distillation against the whole contract, with a teacher that is given as a module."""

from __future__ import annotations

from tests.plugins.distill.networks import Teacher

from augury.testing import MethodContract


class TestDistill(MethodContract):
    method = "distill"
    options = {"teacher": Teacher()}
    rejects = [{"teacher": ""}, {"teacher": 3}]
