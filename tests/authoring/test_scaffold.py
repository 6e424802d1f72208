"""New packages: every choice of hooks gives one that works; whatever is refused, or fails, leaves nothing behind."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.small_runs import rows_of, small

import augury
from augury.errors import AuguryError, UsageError
from augury.hookspecs import CONTRACT_VERSION, HOOKS
from augury.method import hook_implementations
from augury.register_file import Entry
from augury.registry import default_user_file
from augury_authoring.scaffold import DEFAULT_HOOKS, new_package
from augury_authoring.scaffold.names import LONGEST, spell
from augury_authoring.scaffold.package import _compatible, render
from augury_train.recipes import recipes
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer

# Each hook alone, beside each other, and all together.
SUBSETS = [hooks for n in (1, 2, len(HOOKS)) for hooks in itertools.combinations(HOOKS, n)]
LETTERS = dict(zip(HOOKS, "salpe", strict=True))
LOGS = {"pre_train_stage": "scale", "compute_loss": "penalty", "post_epoch": "gap"}


def name_of(hooks: tuple[str, ...], start: str = "x") -> str:
    """A name for each subset: `x_salpe` has all of them."""
    return f"{start}_{''.join(LETTERS[hook] for hook in hooks)}"


NAMES = {name_of(hooks): hooks for hooks in SUBSETS}


def install(project: Path, site: Path) -> None:
    """What `pip install -e` does: the package's folder on the path, and its metadata."""
    facts = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    info = site / f"{facts['name'].replace('-', '_')}-{facts['version']}.dist-info"
    info.mkdir(parents=True)
    summary = facts["description"]
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {facts['name']}\nVersion: {facts['version']}\nSummary: {summary}\n"
    )
    points = "\n".join(f"{name} = {target}" for name, target in facts["entry-points"]["augury.methods"].items())
    (info / "entry_points.txt").write_text(f"[augury.methods]\n{points}\n")
    (info / "direct_url.json").write_text(json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}}))
    sys.path.append(str(project / "src"))


def forget(start: str) -> None:
    """Let nobody find these modules as imported already."""
    for module in [module for module in sys.modules if module.startswith(start)]:
        del sys.modules[module]


def add_entry(path: Path, entry: Entry) -> None:
    """Add an entry to a register, as the command line does after it wrote a package."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in entry.table().items()]
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write("\n".join([f"[methods.{entry.name}]", *lines, ""]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a package for each subset of the hooks, `config/registry.toml`, and all of them installed."""
    folder = tmp_path_factory.mktemp("made")
    register = augury.Register.load(user_file=folder / "config" / "registry.toml")
    before = list(sys.path)
    sys.path.append(str(folder / "site"))
    for name, hooks in NAMES.items():
        package = new_package(name, hooks[::-1], path=folder / name, register=register)
        assert package.hooks == hooks
        add_entry(register.user_file, package.entry)
        install(package.folder, folder / "site")
    importlib.invalidate_caches()
    yield folder
    sys.path[:] = before
    forget("augury_x_")


@pytest.fixture
def register(made: Path, monkeypatch: pytest.MonkeyPatch) -> augury.Register:
    monkeypatch.setenv("AUGURY_CONFIG", str(made / "config"))
    return augury.Register.load()


def test_every_package_is_formatted_and_clean(made: Path, tmp_path: Path) -> None:
    # The longest name makes the longest lines, the others those that would fit into one.
    start = "n" * (LONGEST - len(HOOKS) - 1)
    for name, hooks in {name_of(hooks, start): hooks for hooks in SUBSETS}.items():
        for file, text in render(spell(name), hooks).items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    ruff = [str(Path(sys.executable).with_name("ruff"))]
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [*ruff, *command, "--no-cache", str(made), str(tmp_path)], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(made.rglob("*.py"))) == 5 * len(SUBSETS)


def test_once_installed_they_are_ready_and_bring_a_recipe(made: Path, register: augury.Register) -> None:
    found = {found.name: found for found in register.methods() if found.name in NAMES}
    assert found.keys() == NAMES.keys()
    brought = {recipe.name: recipe for recipe in recipes(register)}
    for name in NAMES:
        entry = found[name].entry
        assert (found[name].status, found[name].problem) == ("ready", "")
        assert entry is not None
        # What its author is about to change stands in the package alone.
        assert entry.table().keys() == {"distribution", "entry_point", "versions", "folder"}
        assert (entry.versions, entry.folder) == (">=0.1.0,<1", str(made / name))
        assert found[name].summary.startswith(f"{spell(name).title}, an example to start from: ")
        recipe = brought[f"{name}/digits"]
        assert (recipe.problem, recipe.dataset, recipe.methods) == ("", "digits", (name,))
    assert register.notes == []


def test_a_method_has_the_hooks_asked_for_and_typed_options_that_its_card_tells(
    made: Path, register: augury.Register
) -> None:
    for name, hooks in NAMES.items():
        cls = register.load_class(name)
        assert set(hook_implementations(cls)) == set(hooks)
        assert cls.__dict__["contract"] == CONTRACT_VERSION
        card = (made / name / "README.md").read_text()
        rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", card, re.MULTILINE))
        defaults = {key: info.default for key, info in cls.Options.model_fields.items()}
        assert {key: None if told.startswith("unset") else float(told) for key, told in rows.items()} == defaults
        assert len(defaults) == len(hooks)
        assert all(info.description for info in cls.Options.model_fields.values())


def test_their_tests_of_the_mathematics_pass(made: Path, register: augury.Register) -> None:
    for name, hooks in NAMES.items():
        text = (made / name / "tests/test_functional.py").read_text()
        names: dict[str, Any] = {}
        exec(compile(text, f"{name}/test_functional.py", "exec", dont_inherit=True), names)
        tests: list[Callable[[], None]] = [value for key, value in names.items() if key.startswith("test_")]
        assert len(tests) == len(hooks) + ("augment_batch" in hooks)
        for test in tests:
            test()


def test_all_of_them_train_on_digits_together(register: augury.Register, tmp_path: Path) -> None:
    trainer = Trainer(make_plan(small(*NAMES, optim={"epochs": 1})))
    trainer.run(tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    for name, hooks in NAMES.items():
        logged = {key.partition("/")[2] for key in row if key.startswith(f"{name}/")}
        assert logged == {LOGS[hook] for hook in hooks if hook in LOGS}, name
    assert math.isfinite(row["train_loss"])
    scale = trainer.methods["x_salpe"].scale
    squares = torch.cat([batch.images for batch in trainer.loader("base")]).double().square()
    torch.testing.assert_close(scale.double(), squares.mean().sqrt(), rtol=1e-6, atol=0)
    assert trainer.methods["x_se"].gap == pytest.approx(0.5 * (row["val_loss"] - row["train_loss"]))
    # Each acts: the noise of eight methods, and a penalty that is the mean square of the logits.
    assert row["x_l/penalty"] == pytest.approx(row["x_salpe/penalty"])
    assert row["x_l/penalty"] > 0


@pytest.mark.parametrize("hooks", [("augment_batch",), ("pre_train_stage", "augment_batch")])
def test_noise_is_in_units_of_what_was_measured(register: augury.Register, hooks: tuple[str, ...]) -> None:
    staged = "pre_train_stage" in hooks
    options = {"noise": 0.5, **({"scale": 4.0} if staged else {})}
    methods = augury.compose([(name_of(hooks), options)], num_classes=10, register=register)
    batch = methods.batch(torch.zeros(64, 3, 8, 8), torch.zeros(64, dtype=torch.int64))
    methods.augment_batch(batch)
    assert batch.images.std().item() == pytest.approx(2.0 if staged else 0.5, rel=0.02)


def test_the_penalty_is_added_to_the_loss(register: augury.Register) -> None:
    output = augury.ModelOutput(torch.zeros(2, 3), torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
    losses = []
    for penalty in (0.0, 2.0):
        methods = augury.compose([("x_l", {"penalty": penalty})], num_classes=2, register=register)
        losses.append(float(methods.compute_loss(methods.batch(torch.zeros(2, 1, 2, 2), torch.arange(2)), output)))
    assert losses[1] - losses[0] == pytest.approx(2 * (1 + 4 + 9 + 1) / 4)


def test_words_of_python_and_of_the_template_make_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("none", "any", "field", "tensor", "generator", "feature-noise"):
        package = new_package(name, HOOKS, path=tmp_path / name)
        monkeypatch.syspath_prepend(str(tmp_path / name / "src"))
        module, _, cls = package.entry.entry_point.partition(":")
        method = getattr(importlib.import_module(module), cls)
        assert cls == ("FeatureNoise" if name == "feature-noise" else f"{name.capitalize()}Method")
        augury.compose([method], num_classes=3)
        forget(module)


# What is refused, and what fails.


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; `full` holds a file, `file` is one. The register is beside it."""
    folder = tmp_path / "here"
    (folder / "full").mkdir(parents=True)
    (folder / "full" / "mine.txt").write_text("mine")
    (folder / "file").write_text("a file")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "registry.toml").write_text(
        '[methods.gone_away]\ndistribution = "augury-gone-away"\nentry_point = "a:B"\nversions = ">=1"\n'
        '[aliases.other]\nmethod = "isda"\n'
    )
    return folder


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("isda", f"`isda` is taken: augury-isda {augury.__version__} has the method isda."),
        ("other", "`other` is taken: it is an alias of isda."),
        ("gone_away", "not installed. Choose another name, or take it off with `augury plugins untrust gone_away`."),
        ("gone-away", "`gone-away` is taken: your register lists gone_away of augury-gone-away"),
        ("core", f"`core` is taken: augury-core {augury.__version__} is installed."),
        ("lonely", "`lonely` is taken: Python imports augury_lonely from "),
        ("criterion", "`criterion` cannot be the name of a method: torch's modules, or augury, use it themselves."),
        ("pop", "`pop` cannot be the name of a method: torch's modules, or augury, use it themselves."),
        ("training", "`training` cannot be the name of a method: torch's modules, or augury, use it themselves."),
        ("MixUp", "Allowed: lower-case letters and digits in words joined by _ or -, a letter first, at most 32 "),
        ("MixUp", "Try `mix_up`."),
        ("9lives", "`9lives` cannot be the name of a new method."),
        ("ends_", "Try `ends`."),
        ("two__words", "Try `two_words`."),
        ("../up", "Try `up`."),
        ("ünï", "`ünï` cannot be the name of a new method."),
        ("Ünïcode", "Try `unicode`."),
        ("a日b", "Try `a_b`."),
        ("", "`` cannot be the name of a new method."),
        ("n" * (LONGEST + 1), "at most 32 characters."),
    ],
)
def test_a_name_that_cannot_be_had(here: Path, monkeypatch: pytest.MonkeyPatch, name: str, line: str) -> None:
    (here.parent / "lonely").mkdir()
    (here.parent / "lonely" / "augury_lonely.py").touch()
    monkeypatch.syspath_prepend(str(here.parent / "lonely"))
    before = listing(here.parent)
    with pytest.raises(UsageError) as refused:
        new_package(name)
    assert line in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert listing(here.parent) == before


@pytest.mark.parametrize(
    ("hooks", "path", "lines"),
    [
        (["augment_bach"], None, ["unknown hook `augment_bach`. Hooks: augment_batch, compute_loss, post_epoch, "]),
        (["augment_bach"], None, ["Did you mean `augment_batch`?"]),
        (["post_epoch", "post_epoch"], None, ["hook `post_epoch` is named twice."]),
        (DEFAULT_HOOKS, "full", ["full holds files already (mine.txt). Name another folder with --path."]),
        (DEFAULT_HOOKS, "file", ["file is no folder. Name another with --path."]),
        (DEFAULT_HOOKS, "file/below", ["file/below is no folder."]),
        (["x", "y"], "full", ["unknown hook `x`", "unknown hook `y`", "full holds files"]),
    ],
)
def test_hooks_and_folders_that_cannot_be(here: Path, hooks: list[str], path: str | None, lines: list[str]) -> None:
    before = listing(here.parent)
    with pytest.raises(UsageError) as refused:
        new_package("fresh", hooks, path=path and Path(path))
    told = str(refused.value).splitlines()
    assert len(told) == len(lines)
    assert all(line in found for line, found in zip(lines, told, strict=True))
    assert listing(here.parent) == before


def test_all_that_is_wrong_is_told_at_once(here: Path) -> None:
    with pytest.raises(UsageError) as refused:
        new_package("MixUp", ["nothing"], path=Path("full"))
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize("path", ["new", "deep/down/new", "empty", "."])
@pytest.mark.parametrize("fault", ["file", "end"])
def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, fault: str) -> None:
    monkeypatch.chdir(tmp_path)
    if path == "empty":
        Path("empty").mkdir()
    before = listing(tmp_path)
    calls = itertools.count(1)
    attribute = "write_text" if fault == "file" else "rename"
    own = getattr(Path, attribute)

    def failing(self: Path, *args: Any, **kwargs: Any) -> Any:
        # The third file, or, where entries are moved one by one, the third of those.
        if next(calls) == (3 if fault == "file" or path in ("empty", ".") else 1):
            raise OSError(28, "No space left on device")
        return own(self, *args, **kwargs)

    monkeypatch.setattr(Path, attribute, failing)
    with pytest.raises(AuguryError, match=r"cannot be written: No space left on device\. Name another with --path\."):
        new_package("fresh", path=Path(path))
    assert listing(tmp_path) == before
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    new_package("fresh", path=Path(path))
    assert (tmp_path / path / "src/augury_fresh/method.py").is_file()
    assert [path.name for path in tmp_path.rglob(".*") if path.name != ".gitignore"] == []


def test_the_folder_is_named_like_the_distribution_and_has_the_usual_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package = new_package("feature_noise")
    (tmp_path / "other").mkdir()
    assert package.folder == Path("augury-feature-noise")
    assert package.folder.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert package.hooks == DEFAULT_HOOKS
    assert package.entry.folder == str(tmp_path / "augury-feature-noise")
    assert {path.relative_to(package.folder).as_posix() for path in package.folder.rglob("*") if path.is_file()} == set(
        package.files
    )


def test_what_else_has_the_name_of_its_distribution_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    package = new_package("hot_noise", path=tmp_path / "hot")
    add_entry(default_user_file(), package.entry)
    listed = next(found for found in augury.Register.load().methods() if found.name == "hot_noise")
    assert (listed.status, listed.problem) == (
        "not installed",
        f"hot_noise: augury-hot-noise is not installed. Install it with pip install -e {tmp_path / 'hot'}, or take it "
        "off with `augury plugins untrust hot_noise`.",
    )
    install(package.folder, tmp_path / "site")
    assert augury.Register.load().resolve("hot_noise")[0].entry == package.entry
    next(tmp_path.rglob("direct_url.json")).unlink()
    with pytest.raises(UsageError, match="not from a folder, but listed is what was made in .*/hot\\."):
        augury.Register.load().resolve("hot_noise")


@pytest.mark.parametrize(
    ("version", "range_"),
    [("0.1.0", ">=0.1,<0.2"), ("0.12.3", ">=0.12,<0.13"), ("1.4.2", ">=1.4,<2"), ("2.0.0rc1", ">=2.0.0rc1,<3")],
)
def test_the_range_of_core(version: str, range_: str) -> None:
    assert _compatible(version) == range_
