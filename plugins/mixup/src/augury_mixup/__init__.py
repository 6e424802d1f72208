"""Mixup: pairs of images blended with their labels, as an augury method."""

from augury_mixup.method import Mixup

__all__ = ["Mixup"]
