"""`augury plugins new`: a new method's package, complete and working, to be made into the real thing."""

from augury_authoring.scaffold.forms import FORMS as FORMS
from augury_authoring.scaffold.package import DEFAULT_HOOKS as DEFAULT_HOOKS
from augury_authoring.scaffold.package import Package as Package
from augury_authoring.scaffold.package import new_package as new_package

__all__ = ["DEFAULT_HOOKS", "FORMS", "Package", "new_package"]
