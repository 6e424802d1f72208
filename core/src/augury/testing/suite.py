"""The contract suite on an installed method: pytest --pyargs augury.testing.suite --augury-method NAME"""

from augury.lazy_import import import_for

# pytest wants a module whose file is this one, so the class is taken over and not the module.
TestContract = import_for("augury.testing", "augury_authoring.testing.suite").TestContract
