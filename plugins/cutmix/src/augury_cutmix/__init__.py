"""CutMix: a box of each image filled from another, as an augury method."""

from augury_cutmix.method import CutMix

__all__ = ["CutMix"]
