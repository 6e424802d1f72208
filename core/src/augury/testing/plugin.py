"""The module `augury_authoring.testing.plugin`, under the name that packages of methods know."""

import sys
from typing import TYPE_CHECKING

from augury.lazy_import import import_for

if TYPE_CHECKING:
    from augury_authoring.testing.plugin import *  # noqa: F403  their types, for mypy
else:
    sys.modules[__name__] = import_for("augury.testing", "augury_authoring.testing.plugin")
