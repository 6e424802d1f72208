"""Supervised contrastive learning, as an augury method."""

from augury_supcon.method import SupCon

__all__ = ["SupCon"]
