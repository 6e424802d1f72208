"""Stochastic weight averaging, as an augury method."""

from augury_swa.method import SWA

__all__ = ["SWA"]
