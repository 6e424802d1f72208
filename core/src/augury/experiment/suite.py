"""The module `augury_lab.experiment.suite`, under the name that programs written before the move import."""

import sys

from augury.lazy_import import import_for

sys.modules[__name__] = import_for("augury.experiment.suite", "augury_lab.experiment.suite")
