"""augury: training-time augmentation and regularisation methods for image classifiers, as plugins that compose.

Public names are imported on first use, so that `import augury` costs nothing.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from augury.lazy_import import import_for

if TYPE_CHECKING:
    from augury.batch import Batch as Batch
    from augury.batch import ModelOutput as ModelOutput
    from augury.composition import Composition as Composition
    from augury.composition import compose as compose
    from augury.criterion import row_losses as row_losses
    from augury.distributed import Ranks as Ranks
    from augury.errors import AuguryError as AuguryError
    from augury.errors import MethodError as MethodError
    from augury.errors import UsageError as UsageError
    from augury.frozen import Frozen as Frozen
    from augury.hookspecs import CONTRACT_VERSION as CONTRACT_VERSION
    from augury.hookspecs import hookimpl as hookimpl
    from augury.hookspecs import hookspec as hookspec
    from augury.method import Method as Method
    from augury.method import Options as Options
    from augury.method import Spec as Spec
    from augury.passes import forward as forward
    from augury.registry import Register as Register
    from augury.run import Host as Host
    from augury.run import Run as Run
    from augury_lab.evaluation.evaluator import evaluate as evaluate
    from augury_lab.experiment.compare import compare as compare
    from augury_train.inference.classifier import Classifier as Classifier
    from augury_train.inference.classifier import load_classifier as load_classifier
    from augury_train.inference.export import export as export
    from augury_train.inference.predict import predict as predict
    from augury_train.runs import rehearse as rehearse
    from augury_train.runs import resume as resume
    from augury_train.runs import train as train
    from augury_train.training.result import Result as Result
    from augury_train.training.watch import Interrupted as Interrupted

__version__ = "0.1.0"

_HOME = {
    "CONTRACT_VERSION": "augury.hookspecs",
    "Batch": "augury.batch",
    "ModelOutput": "augury.batch",
    "Composition": "augury.composition",
    "compose": "augury.composition",
    "row_losses": "augury.criterion",
    "Ranks": "augury.distributed",
    "AuguryError": "augury.errors",
    "MethodError": "augury.errors",
    "UsageError": "augury.errors",
    "compare": "augury_lab.experiment.compare",
    "evaluate": "augury_lab.evaluation.evaluator",
    "forward": "augury.passes",
    "Frozen": "augury.frozen",
    "hookimpl": "augury.hookspecs",
    "hookspec": "augury.hookspecs",
    "Classifier": "augury_train.inference.classifier",
    "load_classifier": "augury_train.inference.classifier",
    "export": "augury_train.inference.export",
    "predict": "augury_train.inference.predict",
    "Method": "augury.method",
    "Options": "augury.method",
    "Spec": "augury.method",
    "Register": "augury.registry",
    "Host": "augury.run",
    "Run": "augury.run",
    "Result": "augury_train.training.result",
    "Interrupted": "augury_train.training.watch",
    "rehearse": "augury_train.runs",
    "resume": "augury_train.runs",
    "train": "augury_train.runs",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'augury' has no attribute {name!r}")
    value = getattr(import_for(f"augury.{name}", _HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    # Only what is there: who looks at every name would otherwise meet the error of a distribution that is not.
    missing = {name for name, module in _HOME.items() if find_spec(module.partition(".")[0]) is None}
    return sorted(set(__all__) - missing)
