from augury_manifold_mixup.method import ManifoldMixup as ManifoldMixup

__all__ = ["ManifoldMixup"]
