"""DCutMix: K-image mixing by stick breaking, as an augury method."""

from augury_dcutmix.method import DCutMix

__all__ = ["DCutMix"]
