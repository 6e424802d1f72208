from augury_swa.method import SWA as SWA

__all__ = ["SWA"]
