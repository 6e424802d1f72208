"""AugMix's consistency loss as an augury method."""

from augury_augmix.method import AugMix

__all__ = ["AugMix"]
