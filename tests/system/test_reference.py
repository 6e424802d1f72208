"""docs/hooks.md and docs/python.md are what docs/reference.py makes of specifications and docstrings, and tell all."""

from __future__ import annotations

import ast
import inspect
import re
from types import ModuleType

import pytest
from tests.docs_programs import DOCS, load

import augury
from augury import hookspecs

PAGE = (DOCS / "hooks.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load("reference")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_pages_are_up_to_date(program: ModuleType) -> None:
    for file, text in program.pages().items():
        assert (DOCS / file).read_text(encoding="utf-8") == text, f"{file}: write it anew: make docs"


def test_every_public_name_is_on_one_of_the_pages() -> None:
    both = PAGE + (DOCS / "python.md").read_text(encoding="utf-8")
    titles = set(re.findall(r"^##+ (\w+)$", both, re.MULTILINE))
    # The markers, the criterion's function and the version are told in the text.
    assert set(augury.__all__) - titles == {"__version__", "CONTRACT_VERSION", "hookimpl", "hookspec", "row_losses"}


def test_what_python_users_call_is_told_with_every_argument() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    for call in (augury.train, augury.resume, augury.compare, augury.evaluate, augury.compose, augury.forward):
        part = page.split(f"\n### {call.__name__}\n")[1].split("\n### ")[0]
        told = set(re.findall(r"`(\w+)`", part.partition("| argument |")[2]))
        shown = re.search(r"```python\n\w+\(\n(.*?)\n\) -> ", part, re.DOTALL)
        assert shown is not None
        assert set(re.findall(r"^    (\w+):", shown[1], re.MULTILINE)) == set(inspect.signature(call).parameters)
        assert set(inspect.signature(call).parameters) <= told, call.__name__


def test_every_hook_is_told_with_its_signature() -> None:
    """Read from the page and from the source, not through the generator."""
    tree = ast.parse(inspect.getsource(hookspecs))
    found = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert tuple(found) == hookspecs.HOOKS
    for name, node in found.items():
        signature = re.search(r"```python\n(.*)\n```", section(name))
        assert signature is not None
        assert signature[1] == f"{name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
        assert f"| [{name}](#{name}) |" in PAGE.split("\n## ")[0]


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_every_hook_is_told_with_an_example_that_implements_it(hook: str) -> None:
    _, *examples = re.findall(r"```python\n(.*?)```", section(hook), re.DOTALL)
    names: dict[str, type] = {}
    for example in examples:
        if not example.startswith("@"):
            # What a wrapper does behind its `yield`.
            lines = ["@augury.hookimpl(wrapper=True)", f"def {hook}(self, batch, output):"]
            example = "\n".join([*lines, *(f"    {line}" for line in example.splitlines())])
        body = "".join(f"    {line}\n" for line in example.splitlines())
        exec(f"import augury, torch\nclass Example(augury.Method):\n{body}", names)
        assert augury.method.check_method(names["Example"], "example")
    assert examples


def test_all_that_a_method_may_use_is_told() -> None:
    for cls in (augury.Batch, augury.ModelOutput, augury.Run, augury.Ranks, augury.Method, augury.Spec):
        told = set(re.findall(r"^(?:\| `|\*\*`)(\w+)", section(cls.__name__), re.MULTILINE))
        told |= {
            name
            for row in re.findall(r"^\| (`.*?`) \|", section(cls.__name__), re.MULTILINE)
            for name in re.findall(r"\w+", row)
        }
        public = {name for name in vars(cls) if not name.startswith("_")} | set(cls.__annotations__)
        assert {name for name in public if not name.startswith("_")} - told == set(), cls.__name__


def test_defaults_and_inherited_texts_are_right() -> None:
    assert "train_network(pipeline: str = 'base')" in section("Run")
    assert "Define the computation" not in PAGE, "that is torch's docstring"


def test_the_changes_begin_with_this_version_and_contract() -> None:
    changes = (DOCS / "changes.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (?:Unreleased: )?([\d.]+), contract ([\d.]+)$", changes, re.MULTILINE)
    assert newest is not None
    assert newest.groups() == (augury.__version__, augury.CONTRACT_VERSION)
    for word in (f"`augury.__version__`, now {augury.__version__}", f"`augury.CONTRACT_VERSION`, now {newest[2]}"):
        assert word in changes


@pytest.mark.parametrize(("contract", "works"), [("1.0", True), ("1.2", False), ("0.9", False), ("2.0", False)])
def test_contracts_count_as_the_changes_say(contract: str, works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("augury.method.CONTRACT_VERSION", "1.1")

    class Example(augury.Method):
        @augury.hookimpl
        def augment_batch(self, batch: augury.Batch) -> None:
            """Leaves it."""

    Example.contract = contract
    if works:
        assert augury.compose([Example], num_classes=2)["example"].contract == contract
    else:
        with pytest.raises(augury.UsageError, match=f"written for contract {re.escape(contract)}.*Upgrade"):
            augury.compose([Example], num_classes=2)
