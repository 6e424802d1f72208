"""What is told of one method."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

import augury
from augury.errors import UsageError
from augury.registry import Register, default_user_file
from augury_train.description import _option, describe, plain

METHOD = '''
import augury
from pydantic import Field

class M(augury.Method):
    class Options(augury.Options):
        """Options."""
        strength: float = Field(0.5, ge=0, lt=2, description="how\\n much")
        kind: str

    contract = "2.0"
    views = 2
    min_rows = 3
    linear_classifier = True
    facts = ("total_steps",)
    mixes = True

    @augury.hookimpl
    def post_epoch(self, run):
        pass

    @augury.hookimpl
    def compute_loss(self, batch):
        return 0
'''
Install = Callable[..., Path]


class Colour(enum.Enum):
    RED = "red"


class Fields(augury.Options):
    """One option of each kind."""

    number: float = Field(0.5, ge=0, allow_inf_nan=False)
    between: int = Field(2, gt=1, le=9)
    switch: bool = False
    word: Literal["one", "two"] = "one"
    maybe: int | None = Field(None, ge=1)
    many: list[Annotated[float, Field(gt=0)]] = Field(default_factory=list)
    pair: tuple[int, int] = (1, 2)
    either: Literal["balanced"] | list[float] | None = None
    table: dict[str, float] = {"a": float("inf")}  # noqa: RUF012  pydantic copies it
    colour: Colour = Colour.RED
    inside: float | None = Field(None, exclude=True, description="in Python")
    must: str


@pytest.mark.parametrize(
    ("name", "kind", "default"),
    [
        ("number", "number >= 0, finite", 0.5),
        ("between", "whole number > 1, <= 9", 2),
        ("switch", "true or false", False),
        ("word", "one | two", "one"),
        ("maybe", "whole number >= 1 or unset", None),
        ("many", "list of number > 0", "computed"),
        ("pair", "list of whole number", [1, 2]),
        ("either", "balanced or list of number or unset", None),
        ("table", "table", {"a": "inf"}),
        ("colour", "Colour", "Colour.RED"),
        ("inside", "number or unset", None),
        ("must", "text", None),
    ],
)
def test_an_option_in_words(name: str, kind: str, default: object) -> None:
    option = _option(name, Fields.model_fields[name])
    assert (option.type, option.default) == (kind, default)
    assert option.required == (name == "must")
    assert option.in_python == (name == "inside")


def test_plain_is_what_json_can_say() -> None:
    value = {"a": (1, float("nan")), 2: {Path("x")}, "b": None}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == {"a": [1, "nan"], "2": ["x"], "b": None}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a throw-away package on the path; return its folder."""
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def put(name: str, source: str = METHOD, *, listed: bool = True, editable: Path | None = None) -> Path:
        monkeypatch.delitem(sys.modules, f"fake_{name}", raising=False)
        info = tmp_path / f"site/fake_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[augury.methods]\n{name} = fake_{name}:M\n")
        if editable is not None:
            origin = {"url": editable.as_uri(), "dir_info": {"editable": True}}
            (info / "direct_url.json").write_text(json.dumps(origin))
        package = tmp_path / f"site/fake_{name}"
        (package / "recipes").mkdir(parents=True)
        (package / "__init__.py").write_text(source)
        (package / "recipes/first.toml").write_text("")
        if listed:
            with default_user_file().open("a") as file:
                file.write(f'[methods.{name}]\ndistribution = "fake-{name}"\nentry_point = "fake_{name}:M"\n')
                file.write('versions = ">=1"\nhooks = ["pre_train_stage"]\ntitle = "A title"\n')
        return package

    yield put
    for name in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[name]


def test_a_method_that_may_run(install: Install) -> None:
    install("alpha")
    with default_user_file().open("a") as file:
        file.write('[aliases.strong]\nmethod = "alpha"\noptions = { strength = 1.5 }\n[defaults.alpha]\nkind = "x"\n')
    d = describe("alpha", Register.load())
    assert (d.name, d.distribution, d.version, d.entry_point) == ("alpha", "fake-alpha", "1.0", "fake_alpha:M")
    assert (d.status, d.problem, d.layer, d.versions, d.title) == ("ready", "", "user", ">=1", "A title")
    assert d.hooks == ("compute_loss", "post_epoch"), "those of the class, not those that the register says"
    assert d.aliases == {"strong": {"strength": 1.5}}
    assert d.defaults == {"kind": "x"}
    assert d.recipes == ("alpha/first",)
    assert d.options is not None
    strength, kind = d.options
    assert (strength.name, strength.type, strength.description) == ("strength", "number >= 0, < 2", "how much")
    assert kind.required
    assert d.needs is not None
    assert (d.needs.views, d.needs.min_rows, d.needs.facts) == (2, 3, ("total_steps",))
    assert (d.needs.linear_classifier, d.needs.mixes, d.needs.unmixed) == (True, True, False)
    assert d.needs.replaces_criterion
    assert d.needs.pipelines is None
    assert describe("strong", Register.load()) == d


def test_a_method_that_is_not_listed_is_not_imported(install: Install) -> None:
    install("alpha", "raise RuntimeError('imported')", listed=False)
    d = describe("alpha", Register.load())
    assert (d.distribution, d.version, d.status, d.layer) == ("fake-alpha", "1.0", "not trusted", "")
    assert "augury plugins trust alpha" in d.problem
    assert d.options is d.needs is None
    assert d.hooks == d.recipes == ()
    assert "fake_alpha" not in sys.modules


def test_a_method_that_cannot_be_imported_says_so(install: Install) -> None:
    install("alpha", "raise RuntimeError('one\\ntwo')")
    d = describe("alpha", Register.load())
    assert d.problem.startswith("alpha: importing fake_alpha:M of fake-alpha 1.0 failed: RuntimeError: one two.")
    assert d.options is None
    assert d.hooks == ("pre_train_stage",)


def test_an_unknown_name(install: Install) -> None:
    install("alpha", listed=False)
    with pytest.raises(UsageError, match=r"unknown method `alfa`. Installed or listed: .*alpha.* Did you mean `alpha`"):
        describe("alfa", Register.load())


def test_the_card(install: Install, tmp_path: Path) -> None:
    package = install("alpha")
    assert describe("alpha", Register.load()).card is None
    (package / "README.md").write_text("card")
    assert describe("alpha", Register.load()).card == str(package / "README.md")
    project = tmp_path / "a project"
    project.mkdir()
    install("beta", editable=project)
    assert describe("beta", Register.load()).card is None
    (project / "README.md").write_text("card")
    assert describe("beta", Register.load()).card == str(project / "README.md")


@pytest.mark.parametrize(
    "name", ["agmax", "augmix", "cutmix", "dcutmix", "distill", "focal", "isda", "mixup", "resmooth", "supcon", "swa"]
)
def test_our_own_methods(name: str) -> None:
    d = describe(name, Register.load())
    assert d.options
    assert all(option.description for option in d.options)
    assert [option.name for option in d.options if option.required] == (["teacher"] if name == "distill" else [])
    assert f"{name}/digits" in d.recipes
    json.dumps([plain(option.default) for option in d.options], allow_nan=False)


def test_needs_of_our_own_methods() -> None:
    names = ("agmax", "augmix", "focal", "isda", "resmooth", "swa")
    needs = {name: describe(name, Register.load()).needs for name in names}
    assert needs["augmix"].view_pipelines == ("base", "augmented", "augmented")
    assert (needs["augmix"].views_alike, needs["agmax"].views_alike) == (True, False)
    assert (needs["isda"].sets_class_logits, needs["focal"].reads_class_logits, needs["swa"].keeps_last) == (True,) * 3
    assert needs["agmax"].views == 2
    assert needs["isda"].linear_classifier
    assert needs["resmooth"].pipelines == {"base": 0.2, "augmented": 0.8}
