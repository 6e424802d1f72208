"""Knowledge distillation as an augury method."""

from augury_distill.method import Distill

__all__ = ["Distill"]
