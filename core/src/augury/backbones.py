"""The module `augury_train.backbones`, under the name that exports made before the move import."""

import sys
from typing import TYPE_CHECKING

from augury.lazy_import import import_for

if TYPE_CHECKING:
    from augury_train.backbones import *  # noqa: F403  their types, for mypy
else:
    sys.modules[__name__] = import_for("augury.backbones", "augury_train.backbones")
    sys.modules[f"{__name__}.weights"] = sys.modules[__name__].weights
