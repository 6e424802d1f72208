"""AgMax: agreement maximisation as an augury method."""

from augury_agmax.method import AgMax

__all__ = ["AgMax"]
