"""Recipes: found in the packages of methods that may run, none of which is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from augury.errors import UsageError
from augury.registry import Register, default_user_file
from augury_train.recipes import Recipe, find_recipe, package_folders, recipes, select

WHOLE = """
title = "Alpha on ten\\n classes"
source = "table 2"
published = 95.13
[data]
dataset = "cifar10"
[model]
name = "resnet18"
[[methods]]
name = "alpha"
[[methods]]
name = "beta"
"""
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package on the path that must not be imported, its metadata in another folder as an editable install has
    it, and list its method; return the folder of its recipes."""
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path / "config"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for part in ("site", "source"):
        (tmp_path / part).mkdir()
        monkeypatch.syspath_prepend(str(tmp_path / part))

    def put(name: str, *, target: str = "", listed: bool = True, versions: str = ">=1,<2", **files: str) -> Path:
        target = target or f"fake_{name}:M"
        info = tmp_path / f"site/fake_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fake-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[augury.methods]\n{name} = {target}\n")
        package = tmp_path / "source" / target.split(":")[0].split(".")[0]
        folder = package / "recipes"
        folder.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        for stem, text in files.items():
            (folder / f"{stem}.toml").write_text(text)
        if listed:
            default_user_file().parent.mkdir(exist_ok=True)
            with default_user_file().open("a") as file:
                file.write(f'[methods.{name}]\ndistribution = "fake-{name}"\nentry_point = "{target}"\n')
                file.write(f'versions = "{versions}"\n')
        return folder

    return put


def of(name: str, listed: list[Recipe] | None = None) -> dict[str, Recipe]:
    """The recipes that the package of one method brings."""
    return {recipe.name: recipe for recipe in (recipes() if listed is None else listed) if recipe.owner == name}


def test_a_recipe_is_named_by_method_and_file_and_read_without_an_import(install: Install) -> None:
    folder = install("alpha", whole=WHOLE, bare="")
    found = of("alpha")
    assert list(found) == ["alpha/bare", "alpha/whole"]
    assert found["alpha/whole"] == Recipe(
        name="alpha/whole",
        path=folder / "whole.toml",
        title="Alpha on ten classes",
        dataset="cifar10",
        model="resnet18",
        methods=("alpha", "beta"),
        published=95.13,
        source="table 2",
    )
    bare = found["alpha/bare"]
    assert (bare.dataset, bare.model, bare.methods, bare.published) == ("digits", "resnet20_cifar", (), None)
    assert "fake_alpha" not in sys.modules


def test_what_is_not_a_recipe_of_a_method_that_may_run_is_left_out(install: Install) -> None:
    folder = install("alpha", whole=WHOLE)
    (folder / "notes.txt").write_text("none")
    (folder / "deeper").mkdir()
    (folder / "deeper/no.toml").write_text(WHOLE)
    install("stranger", listed=False, whole=WHOLE)
    install("old", versions="<1", whole=WHOLE)
    assert list(of("alpha")) == ["alpha/whole"]
    assert of("stranger") == of("old") == {}
    assert list(of("stranger", recipes(Register.load(trust=["stranger"])))) == ["stranger/whole"]


def test_a_broken_recipe_says_so_and_the_others_go_on(install: Install) -> None:
    broken = {
        "no_toml": ("[data", "cannot be read:"),
        "key": ("[data]\ndatset = 'x'", "data: unknown key `datset`."),
        "value": ("[optim]\nepochs = 0", "key `optim.epochs` must be >= 1, got 0."),
        "two": ("[optim]\nepochs = 0\nlr = -1", "(and 1 more)"),
        "title": ("title = 5", "key `title` must be text, got 5."),
        "nan": ("published = nan", "key `published` must be a number or text, got nan."),
        "yes": ("published = true", "key `published` must be a number or text, got True."),
        "rows": ("published = [1, 2]", "key `published` must be a number or text, got [1, 2]."),
    }
    folder = install("alpha", whole=WHOLE, **{stem: text for stem, (text, _) in broken.items()})
    (folder / "bytes.toml").write_bytes(b"title = '\xff'")
    (folder / "folder.toml").mkdir()
    found = of("alpha")
    assert len(found) == len(broken) + 3
    assert found.pop("alpha/whole").problem == ""
    for stem, (_, problem) in broken.items():
        assert problem in found[f"alpha/{stem}"].problem
    for recipe in found.values():
        assert recipe.problem
        assert len(recipe.problem.splitlines()) == 1
        assert recipe == Recipe(recipe.name, recipe.path, problem=recipe.problem)


def test_the_packages_around_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for top in ("one", "two"):
        monkeypatch.syspath_prepend(str(tmp_path / top))
        (tmp_path / top / "spread/inner").mkdir(parents=True)
    (tmp_path / "one/whole/inner").mkdir(parents=True)
    (tmp_path / "one/whole/__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "one/whole/inner/module.py").write_text("")
    (tmp_path / "one/file.py").write_text("")
    whole = tmp_path / "one/whole"
    assert package_folders("whole:M") == [whole]
    assert package_folders("whole.inner.module:M") == [whole / "inner", whole]
    spread = [tmp_path / top / "spread" for top in ("two", "one")]
    assert package_folders("spread.inner:M") == [*(folder / "inner" for folder in spread), *spread]
    assert package_folders("file:M") == package_folders("none_such:M") == []
    monkeypatch.setitem(sys.modules, "whole", None)
    assert package_folders("whole:M") == []


def test_the_innermost_folder_of_recipes_counts(install: Install) -> None:
    folder = install("alpha", target="fake_both.alpha.method:M", shared=WHOLE)
    inner = folder.parent / "alpha/recipes"
    assert list(of("alpha")) == ["alpha/shared"]
    inner.mkdir(parents=True)
    (inner / "own.toml").write_text(WHOLE)
    assert list(of("alpha")) == ["alpha/own"]


def test_find_by_name_by_path_and_a_file_before_a_name(install: Install) -> None:
    folder = install("alpha", whole=WHOLE)
    assert find_recipe("alpha/whole") == folder / "whole.toml"
    assert find_recipe(str(folder / "whole.toml")) == folder / "whole.toml"
    Path("alpha/whole").mkdir(parents=True)
    assert find_recipe("alpha/whole") == folder / "whole.toml", "a folder is no recipe"
    Path("alpha/whole").rmdir()
    Path("alpha/whole").write_text(WHOLE)
    assert find_recipe("alpha/whole") == Path("alpha/whole")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("alpha/whale", "unknown recipe `alpha/whale`: no such file, and no method brings a recipe of this name. "),
        ("alpha/whale", "Did you mean `alpha/whole`"),
        ("whole", "Did you mean `alpha/whole`? See `augury recipes list`."),
        ("whole.toml", "Did you mean `alpha/whole`?"),
        ("", "unknown recipe ``: no such file"),
        ("stranger/whole", "recipe `stranger/whole` cannot be had. stranger: fake-stranger 1.0 (fake_stranger:M) is "),
        ("stranger/whole", "augury plugins trust stranger"),
    ],
)
def test_what_is_not_found(install: Install, text: str, told: str) -> None:
    install("alpha", whole=WHOLE)
    install("stranger", listed=False, whole=WHOLE)
    with pytest.raises(UsageError) as caught:
        find_recipe(text)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_recipe_of_what_is_trusted_this_once(install: Install) -> None:
    folder = install("stranger", listed=False, whole=WHOLE)
    assert find_recipe("stranger/whole", Register.load(trust=["stranger"])) == folder / "whole.toml"


def test_select() -> None:
    here = Path()
    alpha = Recipe("alpha/one", here, dataset="cifar10", model="resnet18", methods=("alpha", "beta"))
    plain = Recipe("alpha/baseline", here, dataset="cifar100", model="resnet50")
    gamma = Recipe("gamma/one", here, dataset="digits", model="wide", methods=("gamma",))
    broken = Recipe("gamma/broken", here, problem="cannot be read")
    listed = [alpha, plain, gamma, broken]
    assert select(listed) == listed
    assert select(listed, method="alpha") == [alpha, plain]
    assert select(listed, method="beta") == [alpha]
    assert select(listed, method="gamma") == [gamma, broken]
    assert select(listed, dataset="cifar*") == [alpha, plain]
    assert select(listed, dataset="cifar*", model="resnet50") == [plain]
    assert select(listed, name="*/one") == [alpha, gamma]
    assert select(listed, name="*/one", method="beta") == [alpha]
    assert select([]) == []
    with pytest.raises(UsageError, match="unknown method `betta`. There are recipes for: alpha, beta, gamma. Did you"):
        select(listed, method="betta")
    for name, told in (
        ("alpha", "no recipe matches `alpha`. `*alpha*` matches 2."),
        ("alpha/baselin?x", "no recipe matches `alpha/baselin?x`. Did you mean `alpha/baseline`"),
        ("?", "no recipe matches `?`. See them all: `augury recipes list`."),
    ):
        with pytest.raises(UsageError) as caught:
            select(listed, name=name)
        assert str(caught.value).startswith(told)
    with pytest.raises(UsageError, match="unknown data set `cifar`. There are recipes for: cifar10, cifar100, digits."):
        select(listed, dataset="cifar")
    with pytest.raises(UsageError, match="no recipe has method `beta`, model `wide` together. Leave one of them out."):
        select(listed, method="beta", model="wide")


def test_the_recipes_of_our_own_methods_are_whole_and_found_without_torch() -> None:
    program = """
import sys
from augury_train.recipes import recipes
found = [r for r in recipes() if not r.problem]
assert not [m for m in sys.modules if m == "torch" or m.startswith("augury_") and m.split(".")[0] != "augury_train"]
print(*(r.name for r in found))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plugins = Path(__file__).parents[2] / "plugins"
    written = {f"{path.parts[-5]}/{path.stem}" for path in plugins.glob("*/src/*/recipes/*.toml")}
    assert len(written) >= 4
    assert set(done.stdout.split()) == written
