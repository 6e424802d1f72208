from augury_supcon.method import SupCon as SupCon

__all__ = ["SupCon"]
