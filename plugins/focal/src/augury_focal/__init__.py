"""Focal loss with class-balanced weights, as an augury method."""

from augury_focal.method import Focal

__all__ = ["Focal"]
