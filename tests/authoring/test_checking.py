"""Installed methods held against the register, the contract and the clock."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import augury
from augury.criterion import row_losses
from augury.errors import MethodError, UsageError
from augury.registry import Register, default_user_file
from augury_authoring.checking import Checked, check, failures
from augury_authoring.testing.outcome import Failure, SuiteResult
from augury_train.training.hook_costs import CostMeter, HookCosts

METHOD = """
import time, torch
import augury

class M(augury.Method):
    contract = "2.0"
    {attributes}

    @augury.hookimpl
    def augment_batch(self, batch, run):
        {augment}

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output):
        loss = yield
        {loss}
        return loss
"""


def source(attributes: str = "", augment: str = "pass", loss: str = "pass") -> str:
    return METHOD.format(attributes=attributes, augment=augment, loss=loss)


GOOD = source()
IMAGES = 10
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put throw-away distributions on the path, listed in the user's register unless that is not wanted."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path))

    def put(name: str, code: str = GOOD, requires: str = "", listed: bool = True, entry: str = "") -> None:
        info = site / f"fake_{name}-1.0.dist-info"
        info.mkdir()
        needed = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{name}\nVersion: 1.0\n{needed}")
        (info / "entry_points.txt").write_text(f"[augury.methods]\n{name} = fake_{name}:M\n")
        (site / f"fake_{name}.py").write_text(code)
        if listed:
            with default_user_file().open("a") as file:
                text = f'distribution = "fake-{name}"\nentry_point = "fake_{name}:M"\nversions = ">=1,<2"\n'
                file.write(f"[methods.{name}]\n{text}{entry}\n")

    yield put
    for module in [m for m in sys.modules if m.startswith("fake_")]:
        del sys.modules[module]


def quick(*names: str) -> tuple[Checked, ...]:
    return check(names, suite=False, costs=False).methods


def test_a_method_that_fits_has_no_faults(install: Install) -> None:
    install("alpha", requires=f"augury-core >={augury.__version__}", entry='hooks = ["compute_loss", "augment_batch"]')
    (alpha,) = quick("alpha")
    assert alpha.passed
    assert (alpha.distribution, alpha.version, alpha.layer, alpha.versions) == ("fake-alpha", "1.0", "user", ">=1,<2")
    assert alpha.hooks == ("augment_batch", "compute_loss")
    assert alpha.contract == augury.CONTRACT_VERSION
    assert alpha.requires == f">={augury.__version__}"
    assert (alpha.faults, alpha.notes, alpha.suite, alpha.costs) == ((), (), None, None)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"entry": 'hooks = ["augment_batch"]'}, "user register lists the hooks augment_batch; .* implements augment_"),
        (
            {"entry": "linear_classifier = true"},
            r"user register lists `linear_classifier = true`; fake_alpha:M says otherwise\. `augury plugins trust",
        ),
        ({"code": source('contract = "1.0"')}, "fake-alpha 1.0: alpha: was written for contract 1.0"),
        ({"code": source("", "") + "1/0"}, "importing fake_alpha:M of fake-alpha 1.0 failed: "),
        ({"requires": "augury_core[x] >=7,<8"}, r"fake-alpha 1.0 requires augury-core<8,>=7, installed is 0\."),
        ({"entry": 'versions = ">=2"'}, "fake-alpha 1.0 .* is not among the listed versions"),
    ],
)
def test_each_fault_is_a_line(install: Install, given: dict[str, str], line: str) -> None:
    if "versions" in given.get("entry", ""):
        install("alpha")
        default_user_file().write_text(default_user_file().read_text().replace(">=1,<2", ">=2"))
    else:
        install("alpha", **given)
    report = check(suite=False, costs=False)
    assert not report.passed
    (alpha,) = [method for method in report.methods if not method.passed]
    (fault,) = alpha.faults
    assert alpha.name == "alpha"
    assert re.search(line, fault), fault
    assert "\n" not in fault


def test_an_entry_that_names_no_hooks_is_not_held_against_the_class(install: Install) -> None:
    install("alpha")
    assert quick("alpha")[0].passed


def test_what_is_not_listed_is_told_by_its_metadata_and_never_imported(install: Install) -> None:
    install("stranger", "raise SystemExit('imported')", requires="augury-core>=7", listed=False)
    report = check(suite=False, costs=False)
    stranger = next(method for method in report.methods if method.name == "stranger")
    assert report.passed
    assert "fake_stranger" not in sys.modules
    assert (stranger.distribution, stranger.version, stranger.entry_point) == (
        "fake-stranger",
        "1.0",
        "fake_stranger:M",
    )
    assert (stranger.layer, stranger.hooks, stranger.contract, stranger.requires) == ("", None, None, ">=7")
    assert stranger.faults == ()
    assert "augury plugins trust stranger" in stranger.notes[0]
    # Asked for by name, not to have been checked is a failure.
    (stranger,) = quick("stranger")
    assert not stranger.passed
    assert "augury plugins trust stranger" in stranger.faults[0]
    assert "requires augury-core>=7" in stranger.faults[1]
    assert "fake_stranger" not in sys.modules


def test_what_is_not_installed_fails_only_when_it_is_asked_for(install: Install) -> None:
    default_user_file().write_text('[methods.ghost]\ndistribution="g"\nentry_point="g:G"\nversions=""\n')
    ghost = next(method for method in check(suite=False, costs=False).methods if method.name == "ghost")
    assert ghost.passed
    assert "g is not installed" in ghost.notes[0]
    assert "g is not installed" in quick("ghost")[0].faults[0]


def test_names_and_aliases(install: Install) -> None:
    install("alpha")
    install("beta")
    with default_user_file().open("a") as file:
        file.write("[aliases.a]\nmethod = 'alpha'\n")
    assert [method.name for method in quick("beta", "a", "alpha")] == ["beta", "alpha"]
    assert {"alpha", "beta", "isda"} <= {method.name for method in quick()}
    with pytest.raises(UsageError, match=r"unknown method `alpa`.*Did you mean `alpha`"):
        quick("alpha", "alpa")


def test_the_suite_s_failures_are_told_in_a_line_each(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("alpha")
    install("beta", "raise RuntimeError")
    told, ran = [], []

    def suite(
        method: str, options: object = None, reporter: Callable[[str], None] = print, *, quick: bool = False
    ) -> SuiteResult:
        ran.append(method)
        reporter("shares")
        failed = Failure("shares", "sum to:\n  0.9"), Failure("state", ""), Failure("draws", "as before " * 99)
        return SuiteResult(method, 3, failed, 1, 2.0)

    monkeypatch.setattr("augury_authoring.testing.outcome.run_suite", suite)
    report = check(["alpha", "beta"], costs=False, watch=lambda doing, at="": told.append((doing, at)))
    alpha, beta = report.methods
    assert not alpha.passed
    *short, long = failures(alpha)
    assert short == ["alpha: shares: sum to: 0.9", "alpha: state: no reason given"]
    assert re.fullmatch(r"alpha: draws: (as before )+(as )?\.\.\.", long)
    assert 200 < len(long) < 300
    assert ("alpha: contract suite", "shares") in told
    # What cannot be imported fails by that already.
    assert ran == ["alpha"]
    assert beta.suite is None
    assert not beta.passed


REQUIRES = source("class Options(augury.Options):\n        x: int\n        rate: float = 1")


def test_the_suite_is_run_with_what_the_register_gives(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that nothing gives is missing, which is no fault of the method."""
    install("alpha", REQUIRES)
    install("beta", REQUIRES)
    with default_user_file().open("a") as file:
        file.write("[defaults.alpha]\nx = 3\nrate = 2.5\n")
    given: dict[tuple[str, bool], object] = {}

    def suite(method: str, options: object = None, reporter: object = None, *, quick: bool = False) -> SuiteResult:
        given[method, quick] = options
        return SuiteResult(method, 1, (), 0, 1.0)

    monkeypatch.setattr("augury_authoring.testing.outcome.run_suite", suite)
    alpha, beta = check(["alpha", "beta"], costs=False).methods
    check(["alpha"], costs=False, quick=True)
    assert given == {("alpha", quick): {"x": 3, "rate": 2.5} for quick in (False, True)}
    assert alpha.suite is not None
    assert alpha.notes == ()
    assert beta.passed
    assert beta.suite is None
    assert beta.notes == (
        "beta: the suite was not run: `x` must be given. [defaults.beta] in your register can do so.",
    )


def test_the_suite_without_pytest(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out with a word where nobody asked for it, refused where somebody did; a wrong name is told before."""
    install("alpha")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pytest" else real(name, *a))
    report = check(["alpha"], costs=False)
    assert report.passed
    assert report.methods[0].suite is None
    assert len(report.notes) == 1
    assert re.match(r"contract suite not run: it needs pytest\. Install it with pip install pytest\.", report.notes[0])
    assert check(["alpha"], suite=False, costs=False).notes == ()
    with pytest.raises(UsageError, match=r"needs pytest. Install it with .*, or leave the suite out: --no-suite"):
        check(["alpha"], suite=True)
    with pytest.raises(UsageError, match="unknown method `alpa`"):
        check(["alpa"], suite=True)


@pytest.mark.parametrize(
    ("error", "fault", "note"),
    [
        (
            UsageError("alpha: option `x` must be given.\nalpha: more"),
            "",
            "its cost is not measured: alpha: option `x`",
        ),
        (MethodError("alpha: `augment_batch` raised X"), "alpha: `augment_batch` raised X", ""),
        (RuntimeError("no\ngrad"), "alpha: a step on the reference failed: RuntimeError: no grad", ""),
    ],
)
def test_a_cost_that_cannot_be_measured_is_a_note_or_a_fault(
    install: Install, monkeypatch: pytest.MonkeyPatch, error: Exception, fault: str, note: str
) -> None:
    install("alpha")

    def fail(*_: Any) -> HookCosts:
        raise error

    monkeypatch.setattr(CostMeter, "measure", fail)
    report = check(["alpha"], suite=False)
    (alpha,) = report.methods
    assert alpha.faults == ((fault,) if fault else ())
    assert [note in line for line in alpha.notes] == ([True] if note else [])
    assert alpha.costs is None
    assert report.reference is None


# The clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which sleeping alone takes time, so that a busy machine changes no figure."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


@pytest.mark.usefixtures("clock")
def test_costs_are_those_of_the_hooks_alone(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a call that sleeps in every fourth step, the mean of the steps; of the loss, what the method adds."""

    def slow(*args: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return row_losses(*args)

    monkeypatch.setattr(augury.criterion, "row_losses", slow)
    install("alpha", source("views = 2", "time.sleep(0.08 * (run.step % 4 == 0))", "time.sleep(0.03)"))
    costs = CostMeter(Register.load(), images=IMAGES, device="cpu").measure("alpha")
    assert costs.views == 2
    assert costs.augment_batch == pytest.approx(0.08 / 4)
    assert costs.compute_loss == pytest.approx(0.03)


def test_hooks_that_are_not_there_cost_nothing_and_the_reference_is_stated(install: Install) -> None:
    code = "import augury\nclass M(augury.Method):\n    contract = '2.0'\n"
    code += "    @augury.hookimpl\n    def post_epoch(self):\n        pass\n"
    install("alpha", code)
    meter = CostMeter(Register.load(), images=IMAGES, device="cpu")
    assert meter.measure("alpha") == HookCosts(None, None, None, 1)
    reference = meter.reference
    assert (reference.images, reference.image_size, reference.classes) == (IMAGES, (3, 32, 32), 10)
    assert (reference.model, reference.precision, reference.hardware["device"]) == ("resnet20_cifar", "fp32", "cpu")
    assert reference.seconds > 0


@pytest.mark.usefixtures("clock")
def test_what_is_mixed_inside_the_network_counts_for_augment_batch(install: Install) -> None:
    augment = (
        "own = torch.arange(len(batch)); mix = lambda h: (time.sleep(0.03), h)[1]; "
        "batch.mix_hidden('layer2', mix, own[:, None], torch.ones(len(batch), 1))"
    )
    install("alpha", source("mixes_hidden = True", augment))
    costs = CostMeter(Register.load(), images=IMAGES, device="cpu").measure("alpha")
    assert costs.augment_batch == pytest.approx(0.03)


def test_a_batch_of_which_nothing_is_left_has_no_loss(install: Install) -> None:
    install("alpha", source("", "batch.take(torch.arange(0))", "time.sleep(9)"))
    costs = CostMeter(Register.load(), images=IMAGES, device="cpu").measure("alpha")
    assert costs.compute_loss == 0


def test_required_options_cannot_be_measured_and_a_hook_that_fails_says_so(install: Install) -> None:
    install("alpha", source("class Options(augury.Options):\n        x: int"))
    install("beta", source("", "1 / 0"))
    meter = CostMeter(Register.load(), images=IMAGES, device="cpu")
    with pytest.raises(UsageError, match="option `x` must be given"):
        meter.measure("alpha")
    with pytest.raises(MethodError, match="beta: `augment_batch` raised ZeroDivisionError"):
        meter.measure("beta")


@pytest.mark.parametrize(
    "name", ["agmax", "augmix", "cutmix", "dcutmix", "focal", "isda", "mixup", "resmooth", "supcon", "swa"]
)
def test_the_methods_here_can_be_measured(name: str) -> None:
    costs = CostMeter(Register.load(), images=IMAGES, device="cpu").measure(name)
    measured = [cost for cost in (costs.augment_batch, costs.compute_loss, costs.post_step) if cost is not None]
    assert measured
    assert all(0 <= cost < 1 for cost in measured)
    assert costs.views == {"agmax": 2, "supcon": 2, "augmix": 3}.get(name, 1)
