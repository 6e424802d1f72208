from augury_isda.method import ISDA as ISDA

__all__ = ["ISDA"]
