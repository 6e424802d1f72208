"""The installed methods held against the register and the contract: what fits, what fails, and what it costs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from packaging.requirements import InvalidRequirement, Requirement

from augury import __version__
from augury.errors import AuguryError, UsageError, unknown
from augury.hookspecs import CONTRACT_VERSION, HOOKS
from augury.listing import Found
from augury.register_file import one_line
from augury.registry import Register

if TYPE_CHECKING:
    from augury_authoring.testing.outcome import SuiteResult
    from augury_train.training.hook_costs import CostMeter, HookCosts, ReferenceStep

CORE = "augury-core"
REASON = 240
"""Characters of a failed check's reason that are told in its line."""


class Watch(Protocol):
    """Is told what is being done."""

    def __call__(self, doing: str, at: str = "") -> None:
        """`doing` changes a few times a method, `at` every second or so."""


@dataclass(frozen=True)
class Checked:
    """One method.

    Attributes:
        distribution, version, entry_point, status: as `augury.registry.Found`.
        layer, versions: of the register's entry that it answers to; "" where it is not listed.
        listed_hooks: what the entry says, empty where it says nothing.
        requires: the versions of augury-core that the package asks for, "" where it does not say.
        hooks: what the class implements; None for one that was not imported, or could not be.
        contract: the version of the contract that it was written for, None likewise.
        suite: what the contract suite found, None where it was not run.
        costs: None where they were not measured.
        faults: a line for each thing that is wrong.
        notes: a line for each thing that was left out, and why.
    """

    name: str
    distribution: str
    version: str
    entry_point: str
    status: str
    layer: str = ""
    versions: str = ""
    listed_hooks: tuple[str, ...] = ()
    requires: str = ""
    hooks: tuple[str, ...] | None = None
    contract: str | None = None
    suite: SuiteResult | None = None
    costs: HookCosts | None = None
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing that was asked of it failed."""
        return not self.faults and (self.suite is None or not self.suite.failed)


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        methods: in the order asked for, else by name.
        reference: the step that costs are held against, None where none were measured.
        notes: a line for each thing that was left out for all of them, and why.
        contract: the version of the contract here.
        core: the version of augury-core here.
    """

    methods: tuple[Checked, ...]
    reference: ReferenceStep | None = None
    notes: tuple[str, ...] = ()
    contract: str = CONTRACT_VERSION
    core: str = __version__

    @property
    def passed(self) -> bool:
        """Whether all methods passed."""
        return all(method.passed for method in self.methods)


def check(
    names: Sequence[str] = (),
    register: Register | None = None,
    *,
    suite: bool | None = None,
    quick: bool = False,
    costs: bool = True,
    watch: Watch = lambda doing, at="": None,
) -> Report:
    """Check methods; one that is not listed is told by its metadata alone, and never imported.

    Args:
        names: of methods or aliases; one of them that cannot be checked is a fault. All that are installed or listed
            when empty.
        register: the built-in and the user's register when None.
        suite: run the contract suite on each, in a process of its own; where pytest is installed when None.
        quick: leave out of the suite what takes longest, two processes and other methods.
        costs: measure what each hook adds to a step.
        watch: told what is being done.

    Raises:
        UsageError: no method has one of the names, or the suite is asked for and pytest is not installed.
    """
    register = register or Register.load()
    asked_for = _asked_for(names, register)
    suite, notes = _with_suite(suite)
    meter: CostMeter | None = None
    checked = []
    for found in asked_for:
        method = _against_register(found, named=bool(names))
        if found.status == "ready":
            method = _imported(method, register, watch)
        if method.hooks is not None and costs:
            if meter is None:
                from augury_train.training.hook_costs import CostMeter

                meter = CostMeter(register)
            method = _measured(method, meter, watch)
        if method.hooks is not None and suite:
            method = _through_suite(method, register, quick, watch)
        checked.append(method)
    measured = meter is not None and any(method.costs for method in checked)
    if measured:
        watch("the reference step")
    return Report(tuple(checked), meter.reference if meter is not None and measured else None, notes)


def _with_suite(wanted: bool | None) -> tuple[bool, tuple[str, ...]]:
    """Whether the suite is run, and a line where only pytest is missing for it."""
    if wanted is False or importlib.util.find_spec("pytest") is not None:
        return wanted is not False, ()
    if wanted:
        raise UsageError(
            "the contract suite needs pytest. Install it with pip install pytest, or leave the suite out: --no-suite."
        )
    return False, ("contract suite not run: it needs pytest. Install it with pip install pytest.",)


def _asked_for(names: Sequence[str], register: Register) -> list[Found]:
    methods = {found.name: found for found in register.methods()}
    if not names:
        return list(methods.values())
    wanted = [register.aliases[name].method if name in register.aliases else name for name in names]
    for name in wanted:
        if name not in methods:
            raise UsageError(unknown("method", name, [*methods, *register.aliases], label="Installed or listed"))
    return [methods[name] for name in dict.fromkeys(wanted)]


def _against_register(found: Found, *, named: bool) -> Checked:
    """What metadata and the register tell. Not being listed, or not installed, is a fault of what was asked for by name
    alone."""
    entry = found.entry
    listed: dict[str, Any] = {}
    if entry is not None:
        listed = {"layer": entry.layer, "versions": entry.versions, "listed_hooks": entry.hooks}
    requires, problem = _core_range(found)
    at_fault = named or (found.status == "refused" and entry is not None)
    told = (found.problem,) if found.problem else ()
    return Checked(
        name=found.name,
        distribution=found.distribution,
        version=found.version,
        entry_point=found.entry_point,
        status=found.status,
        requires=requires,
        faults=(told if at_fault else ()) + ((problem,) if problem and (named or found.status == "ready") else ()),
        notes=() if at_fault else told,
        **listed,
    )


def _core_range(found: Found) -> tuple[str, str]:
    """The versions of augury-core that the package asks for, and what is wrong with them."""
    try:
        lines = importlib.metadata.requires(found.distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return "", ""
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        plain = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if requirement.name.lower().replace("_", "-") == CORE and plain:
            asked = str(requirement.specifier)
            if requirement.specifier.contains(__version__, prereleases=True):
                return asked, ""
            return asked, (
                f"{found.name}: {found.distribution} {found.version} requires {CORE}{asked}, installed is "
                f"{__version__}. Upgrade the one or the other."
            )
    return "", ""


def _imported(method: Checked, register: Register, watch: Watch) -> Checked:
    """With what its class tells."""
    watch(f"{method.name}: importing")
    try:
        cls = register.load_class(method.name)
    except UsageError as error:
        return replace(method, faults=(*method.faults, *map(one_line, str(error).splitlines())))
    from augury.method import hook_implementations

    implemented = hook_implementations(cls)
    hooks = tuple(hook for hook in HOOKS if hook in implemented)
    faults = method.faults
    if method.listed_hooks and set(method.listed_hooks) != set(hooks):
        told = f"lists the hooks {', '.join(method.listed_hooks)}; {method.entry_point} implements {', '.join(hooks)}"
        faults += (_stale(method, told, "hooks"),)
    entry = register.resolve(method.name)[0].entry
    listed = None if entry is None else entry.linear_classifier
    if listed not in (None, cls.linear_classifier):
        told = f"lists `linear_classifier = {str(listed).lower()}`; {method.entry_point} says otherwise"
        faults += (_stale(method, told, "linear_classifier"),)
    return replace(method, hooks=hooks, contract=cls.contract, faults=faults)


def _stale(method: Checked, told: str, key: str) -> str:
    """A line about an entry that says otherwise than the class."""
    way_out = f"Correct the register's `{key}`."
    if method.layer == "user":
        way_out = f"`augury plugins trust {method.name}` writes the entry anew."
    return f"{method.name}: the {method.layer} register {told}. {way_out}"


def _measured(method: Checked, meter: CostMeter, watch: Watch) -> Checked:
    """With the cost of its hooks."""
    watch(f"{method.name}: cost of each hook")
    try:
        return replace(method, costs=meter.measure(method.name))
    except UsageError as error:
        # Options that it requires, or a need that the reference does not meet: no fault of the method.
        reason = "; ".join(map(one_line, str(error).splitlines()))
        return replace(method, notes=(*method.notes, f"{method.name}: its cost is not measured: {reason}"))
    except AuguryError as error:
        return replace(method, faults=(*method.faults, one_line(str(error))))
    except Exception as error:  # whatever the backward pass through a method's loss raises
        reason = one_line(f"{type(error).__name__}: {error}")
        return replace(method, faults=(*method.faults, f"{method.name}: a step on the reference failed: {reason}"))


def _through_suite(method: Checked, register: Register, quick: bool, watch: Watch) -> Checked:
    """With what the contract suite found of it with the options that the register gives it."""
    from augury_authoring.testing.outcome import run_suite
    from augury_train.description import plain

    name = method.name
    given, fields = register.defaults.get(name, {}), register.load_class(name).Options.model_fields
    missing = [key for key, info in fields.items() if info.is_required() and not {key, info.alias} & given.keys()]
    if missing:
        told = " and ".join(f"`{key}`" for key in missing)
        left_out = f"{name}: the suite was not run: {told} must be given. [defaults.{name}] in your register can do so."
        return replace(method, notes=(*method.notes, left_out))
    doing = f"{name}: contract suite"
    watch(doing)
    return replace(method, suite=run_suite(name, plain(given), lambda check: watch(doing, check), quick=quick))


def failures(method: Checked) -> Iterator[str]:
    """A line for each thing that failed: faults, then the checks of the suite with their reasons, shortened."""
    yield from method.faults
    if method.suite is not None:
        for failure in method.suite.failed:
            reason = textwrap.shorten(one_line(failure.reason), REASON, placeholder=" ...")
            yield f"{method.name}: {failure.check}: {reason or 'no reason given'}"
