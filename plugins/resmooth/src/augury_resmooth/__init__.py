from augury_resmooth.method import ReSmooth as ReSmooth

__all__ = ["ReSmooth"]
