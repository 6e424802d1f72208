"""The contract suite on an installed method, without a test file:

pytest --pyargs augury.testing.suite --augury-method NAME
"""

from __future__ import annotations

from augury_authoring.testing.contract import MethodContract


class TestContract(MethodContract):
    """The method that --augury-method names, with the options of --augury-options."""
