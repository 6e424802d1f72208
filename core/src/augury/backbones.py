"""The module `augury_train.backbones`, under the name that exports made before the move import."""

import sys
from typing import TYPE_CHECKING

from augury.lazy_import import import_for

if TYPE_CHECKING:
    from augury_train.backbones import *  # noqa: F403  their types, for mypy
else:
    sys.modules[__name__] = import_for("augury.backbones", "augury_train.backbones")
    for name in [name for name in sys.modules if name.startswith("augury_train.backbones.")]:
        sys.modules[name.replace("augury_train", "augury", 1)] = sys.modules[name]
