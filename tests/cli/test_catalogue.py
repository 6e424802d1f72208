"""The commands that tell what there is: `backbones`, `recipes list|show`, `plugins info`; in pipes and terminals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from augury.registry import default_user_file
from augury_cli.main import main
from augury_train.catalogue import Backbone, Size, asked, table

AUGURY = str(Path(sys.executable).with_name("augury"))
WIDE = Size(25557032, 2048, ("Conv2d",))
KNOWN = {
    "narrow20": Backbone("narrow20", (3, 32, 32), (), Size(269722, 64, ("Linear",))),
    "wide50": Backbone("wide50", (3, 224, 224), ("best_in1k", "other_in1k"), WIDE),
    "two": Backbone("two", (3, 32, 32), (), Size(500, 64, ("Linear", "Linear"))),
    "odd": Backbone("odd", None, ("",)),
}
WHOLE = """# A comment that stays.
title = "[red]Alpha[/red] on ten classes, at some length, so that it fills more than one line of a terminal"
published = 95.10
[data]
dataset = "cifar10"
[model]
name = "narrow20"
[[methods]]
name = "alpha"
"""
Commands = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four networks, no cache but one's own, and a folder of its own."""
    monkeypatch.setattr(asked, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(asked, "collect", lambda: dict(KNOWN))
    monkeypatch.setattr(table, "shipped", lambda: table.Table(asked.installed(), KNOWN))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A listed method with recipes, whose package must not be imported."""
    info, package = tmp_path / "site/fake_alpha-1.0.dist-info", tmp_path / "site/fake_alpha"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-alpha\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[augury.methods]\nalpha = fake_alpha:M\n")
    (package / "recipes").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "recipes/whole.toml").write_text(WHOLE)
    (package / "recipes/broken.toml").write_text("[data")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path))
    default_user_file().write_text(
        '[methods.alpha]\ndistribution = "fake-alpha"\nentry_point = "fake_alpha:M"\nversions = ">=1"\n'
    )
    yield package
    sys.modules.pop("fake_alpha", None)


@pytest.fixture
def augury(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Exit code, stdout and stderr of a command, in this process; on a terminal of so many columns if given."""

    def call(*arguments: str, columns: int = 0) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["augury", *arguments])
            if columns:
                patch.setenv("COLUMNS", str(columns))
                patch.setattr(sys.stdout, "isatty", lambda: True)
            with pytest.raises(SystemExit) as end:
                main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


# backbones


def test_backbones_in_a_pipe(augury: Commands) -> None:
    code, out, err = augury("backbones")
    assert (code, err) == (0, "")
    assert [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()] == [
        ["name", "parameters", "input", "features", "head", "pretrained"],
        ["narrow20", "269,722", "3x32x32", "64", "linear", "-"],
        ["wide50", "25,557,032", "3x224x224", "2048", "other", "best_in1k, other_in1k"],
        ["two", "500", "3x32x32", "64", "two heads", "-"],
        ["odd", "-", "-", "-", "-", "yes"],
    ]
    assert [line.split()[0] for line in augury("backbones", "*e*")[1].splitlines()] == ["name", "wide50"]


def test_backbones_as_json(augury: Commands) -> None:
    code, out, err = augury("backbones", "--json")
    assert (code, err) == (0, "")
    narrow, wide, two, odd = json.loads(out)
    assert wide == {
        "name": "wide50",
        "input_size": [3, 224, 224],
        "tags": ["best_in1k", "other_in1k"],
        "parameters": 25557032,
        "num_features": 2048,
        "classifiers": ["Conv2d"],
        "linear": False,
    }
    assert (narrow["linear"], two["linear"], two["classifiers"]) == (True, False, ["Linear", "Linear"])
    assert odd == {"name": "odd", "input_size": None, "tags": [""]} | dict.fromkeys(list(wide)[3:])


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["--linear-head"], ["narrow20"]),
        (["--max-params", "1M"], ["narrow20", "two"]),
        (["--for", "isda"], ["narrow20"]),
        (["--for", "dcutmix"], ["narrow20", "wide50"]),
        (["--for", "dcutmix, isda"], ["narrow20"]),
        (["--for", "dcutmix", "--max-params", "269722"], ["narrow20"]),
    ],
)
def test_backbones_filtered(augury: Commands, filters: list[str], names: list[str]) -> None:
    code, out, err = augury("backbones", *filters, "--json")
    assert (code, [model["name"] for model in json.loads(out)]) == (0, names)
    assert err == (
        "the size of 1 model that match is not known, and they were left out (odd). "
        "A pattern that matches fewer has them measured.\n"
    )
    narrow = augury("backbones", "*0", *filters, "--json")
    assert (narrow[2], [model["name"] for model in json.loads(narrow[1])]) == ("", [n for n in names if n[-1] == "0"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--max-params", "30X"], "--max-params must be a number of parameters above 0, .* got '30X'. Write 30M, "),
        (["--max-params", "100"], "--max-params 100 leaves none of 3 models. The smallest is two, 500 parameters."),
        (["wide*", "--linear-head"], "--linear-head leaves none of 1 model. They have a classifier that is a Conv2d. "),
        (["wide*", "--for", "dcutmix,isda"], "--for dcutmix,isda leaves none of 1 model. "),
        (["--for", "idsa"], "unknown method `idsa`. .* Did you mean `isda`"),
        (["--for", ""], "unknown method ``"),
    ],
)
def test_backbones_filters_that_leave_nothing_or_are_none(augury: Commands, arguments: list[str], told: str) -> None:
    code, out, err = augury("backbones", *arguments)
    assert (code, out) == (2, "")
    assert re.match(told, err)


def test_backbones_for_an_alias_and_for_a_method_of_somebodys(augury: Commands, package: Path) -> None:
    Path("registry.toml").write_text('[aliases.strong]\nmethod = "isda"\n')
    assert "wide50" not in augury("backbones", "--for", "strong")[1]
    # Its entry does not say what it needs, so that its class is asked.
    code, _, err = augury("backbones", "--for", "alpha")
    assert code == 2
    assert "importing fake_alpha:M of fake-alpha 1.0 failed: RuntimeError: imported" in err
    listed = default_user_file().read_text()
    for says, found in (("true", ["narrow20"]), ("false", ["narrow20", "wide50"])):
        default_user_file().write_text(f"{listed}linear_classifier = {says}\n")
        models = json.loads(augury("backbones", "--for", "alpha", "--json")[1])
        assert [model["name"] for model in models] == found
    default_user_file().write_text(listed)
    (package / "__init__.py").write_text(
        "import augury\nprint('loud')\nclass M(augury.Method):\n    contract = '2.0'\n    linear_classifier = True\n"
        "    @augury.hookimpl\n    def post_epoch(self, metrics): ...\n"
    )
    code, out, err = augury("backbones", "--for", "alpha", "--json")
    assert (code, [model["name"] for model in json.loads(out)]) == (0, ["narrow20"])
    assert "loud" in err


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_backbones_that_match_nothing(augury: Commands, as_json: list[str]) -> None:
    assert augury("backbones", "wide5O", *as_json) == (2, "", "no model matches `wide5O`. Did you mean `wide50`?\n")


# recipes


def test_recipes_in_a_pipe(augury: Commands, package: Path) -> None:
    code, out, err = augury("recipes", "list", "--method", "alpha")
    assert (code, err) == (0, "")
    header, broken, whole = (re.split(r"\s{2,}", line) for line in out.splitlines())
    assert header == ["name", "data set", "model", "methods", "published", "title"]
    assert broken[:5] == ["alpha/broken", "-", "-", "-", "-"]
    assert broken[5].startswith("broken: cannot be read: ")
    title = "[red]Alpha[/red] on ten classes, at some length, so that it fills more than one line of a terminal"
    assert whole == ["alpha/whole", "cifar10", "narrow20", "alpha", "95.1", title]
    assert augury("recipes", "list", "alpha/*")[1] == out
    assert [line.split()[0] for line in augury("recipes", "list", "alpha/w*")[1].splitlines()] == [
        "name",
        "alpha/whole",
    ]
    code, out, err = augury("recipes", "list", "alpha")
    assert (code, out, err) == (2, "", "no recipe matches `alpha`. `*alpha*` matches 2.\n")


def test_recipes_as_json_and_filtered(augury: Commands, package: Path) -> None:
    code, out, _ = augury("recipes", "list", "--json", "--method", "alpha")
    assert code == 0
    broken, whole = json.loads(out)
    assert broken["problem"]
    assert whole["path"] == str(package / "recipes/whole.toml")
    assert (whole["name"], whole["methods"], whole["published"]) == ("alpha/whole", ["alpha"], 95.1)
    assert whole.keys() == broken.keys()
    only = augury("recipes", "list", "--json", "--dataset", "cifar*", "--model", "narrow20", "--method", "al*")
    assert [recipe["name"] for recipe in json.loads(only[1])] == ["alpha/whole"]
    code, out, err = augury("recipes", "list", "--json", "--method", "alhpa")
    assert (code, out) == (2, "")
    assert "unknown method `alhpa`" in err
    assert "Did you mean `alpha`?" in err


def test_recipes_show_writes_out_what_is_no_text(augury: Commands, package: Path) -> None:
    path = package / "recipes/bytes.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n\xff\xfe\x9b")
    code, out, err = augury("recipes", "show", str(path))
    assert (code, out) == (0, "\ufeffa = 1\r\n\\xff\\xfe\\x9b")
    assert "it is no UTF-8 text" in err
    path.write_bytes(b"#" * (2**20 + 1))
    code, out, err = augury("recipes", "show", str(path))
    assert (code, out, err) == (1, "", f"recipe {path}: cannot be read: it is larger than 1 MiB.\n")


def test_recipes_show_prints_the_file_as_it_is(augury: Commands, package: Path) -> None:
    path = package / "recipes/whole.toml"
    assert augury("recipes", "show", "alpha/whole") == (0, WHOLE, f"# {path}\n")
    assert augury("recipes", "show", str(path)) == (0, WHOLE, f"# {path}\n")
    code, out, err = augury("recipes", "show", "alpha/broken")
    assert (code, out) == (0, "[data")
    assert "alpha/broken: cannot be read: " in err
    code, out, err = augury("recipes", "show", "alpha/hole")
    assert (code, out) == (2, "")
    assert "Did you mean `alpha/whole`" in err


def test_a_recipe_whose_network_does_not_exist_says_so(
    augury: Commands, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "recipes/broken.toml").unlink()
    text = WHOLE.replace("narrow20", "narrow30")
    (package / "recipes/whole.toml").write_text(text)
    told = re.compile(
        r"needs the model `narrow30`, which timm [\d.]+ and augury-train [\d.]+ do not have. Update them, or "
    )
    listed = ("recipes", "list", "--method", "alpha")
    assert told.search(augury(*listed)[1])
    monkeypatch.setattr(table, "shipped", lambda: table.Table("0.0.1", KNOWN))
    assert not told.search(augury(*listed)[1]), "timm of another version is not asked for a list"
    code, out, err = augury("recipes", "show", "alpha/whole")
    assert (code, out) == (0, text)
    assert told.search(err.splitlines()[-1])
    # Now timm has been asked, and its answer is kept.
    code, out, _ = augury(*listed)
    cells = re.split(r"\s{2,}", out.splitlines()[1])
    assert cells[:5] == ["alpha/whole", "cifar10", "narrow30", "alpha", "95.1"]
    assert told.match(cells[5])
    (recipe,) = json.loads(augury(*listed, "--json")[1])
    assert told.match(recipe["problem"])
    assert recipe["model"] == "narrow30"


def test_a_run_says_what_to_do_about_a_recipes_network(augury: Commands, tmp_path: Path) -> None:
    Path("own.toml").write_text('[model]\nname = "narrow30"\n')
    for command in (["run"], ["run", "--dry-run"], ["preview"], ["compare", "--with", "isda"]):
        code, _, err = augury(*command, "--recipe", "own.toml")
        assert code == 2
        lines = err.splitlines()
        assert "unknown model `narrow30`" in lines[0]
        assert lines[-1].startswith("recipe own.toml needs the model `narrow30`, which timm ")
    code, _, err = augury("run", "--recipe", "own.toml", "--model", "narrow40")
    assert code == 2
    assert "recipe own.toml" not in err, "the model is not the recipe's"


# plugins info


def test_info_of_our_own_method(augury: Commands) -> None:
    code, out, err = augury("plugins", "info", "isda")
    assert (code, err) == (0, "")
    facts = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in out.splitlines())
    assert facts["name"] == "isda"
    assert facts["distribution"].endswith("(augury_isda:ISDA)")
    assert facts["status"] == "ready (built-in register, versions >=0.1,<1)"
    assert facts["hooks"] == "compute_loss"
    assert facts["needs"] == (
        "a classifier that is one nn.Linear; total_steps to be known; a criterion that reads class_logits, as augury's "
        "does (it sets them)"
    )
    assert facts["recipes"].startswith("isda/cifar10-densenetbc100_12, ")
    assert re.fullmatch(r"(isda/\S+ ){5}and \d+ more: augury recipes list 'isda/\*'", facts["recipes"].replace(",", ""))
    assert facts["option lambda_0"].startswith("number >= 0, finite, default 0.5: strength")
    assert facts["option covariance"].startswith("full | diagonal, default full: ")


@pytest.mark.parametrize(
    "name", ["agmax", "augmix", "cutmix", "dcutmix", "distill", "focal", "isda", "mixup", "resmooth", "supcon", "swa"]
)
def test_info_as_json(augury: Commands, name: str) -> None:
    code, out, err = augury("plugins", "info", name, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["name"], facts["status"], facts["layer"]) == (name, "ready", "built-in")
    assert all({"name", "type", "default", "description"} <= option.keys() for option in facts["options"])
    assert facts["needs"].keys() >= {"views", "linear_classifier", "pipelines", "views_alike", "keeps_last"}


def test_info_shows_what_the_registers_add(augury: Commands) -> None:
    Path("registry.toml").write_text(
        '[aliases.strong]\nmethod = "isda"\noptions = { lambda_0 = 1.5 }\n[defaults.isda]\nschedule = "epoch"\n'
    )
    facts = augury("plugins", "info", "strong")[1]
    assert re.search(r"^alias +strong:lambda_0=1.5$", facts, re.MULTILINE)
    assert re.search(r"^defaults +schedule=epoch$", facts, re.MULTILINE)


def test_info_of_what_is_not_listed_imports_nothing(augury: Commands, package: Path) -> None:
    default_user_file().write_text("")
    code, out, _ = augury("plugins", "info", "alpha")
    assert code == 0
    assert "fake-alpha 1.0 (fake_alpha:M)" in out
    assert "Trust it with `augury plugins trust alpha`" in out
    assert "option" not in out
    assert "fake_alpha" not in sys.modules
    facts = json.loads(augury("plugins", "info", "alpha", "--json")[1])
    assert facts["options"] is facts["needs"] is None


def test_info_of_what_there_is_not(augury: Commands) -> None:
    code, out, err = augury("plugins", "info", "isdb")
    assert (code, out) == (2, "")
    assert "unknown method `isdb`" in err
    assert "Did you mean `isda`?" in err


# Terminals


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize(
    "arguments",
    [
        ["backbones"],
        ["recipes", "list", "--method", "alpha"],
        ["plugins", "list"],
        ["plugins", "info", "dcutmix"],
    ],
)
def test_a_terminal_of_any_width_wraps_nothing_itself(
    augury: Commands, package: Path, arguments: list[str], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, _ = augury(*arguments, columns=columns)
    assert code == 0
    assert "\x1b" not in out
    # A path is not broken, so that it can be copied.
    lines = [line for line in out.splitlines() if "/" not in line or " " in line.strip()]
    assert max(map(len, lines)) <= columns
    piped = augury(*arguments)[1]
    for word in ("narrow20", "best_in1k,", "25,557,032", "alpha/whole", "[red]Alpha[/red]", "fake-alpha", "Dirichlet"):
        # A narrow list of recipes is spared their models.
        spared = arguments[0] == "recipes" and columns == 40 and word == "narrow20"
        assert (word in out) == (word in piped and not spared)


def test_a_narrow_terminal_gets_paragraphs_and_a_wide_one_a_table(augury: Commands, package: Path) -> None:
    narrow = augury("backbones", columns=40)[1].splitlines()
    assert narrow[:4] == ["narrow20: 269,722", "  input: 3x32x32", "  features: 64", "  head: linear"]
    wide = augury("backbones", columns=80)[1].splitlines()
    assert any(line.split() == ["narrow20", "269,722", "3x32x32", "64", "linear", "-"] for line in wide)
    none = augury("backbones", "narrow*", columns=60)[1].splitlines()
    assert none[1].split() == ["name", "parameters", "input", "features", "head"], "nothing is pretrained"
    narrow = augury("plugins", "info", "dcutmix", columns=40)[1].splitlines()
    assert narrow[:2] == ["name", "  dcutmix"]
    recipes = [augury("recipes", "list", "--method", "alpha", columns=n)[1].splitlines() for n in (40, 60, 200)]
    start = recipes[0].index("alpha/whole: 95.1")
    assert recipes[0][start + 1].startswith("  title: ")
    assert not any("model" in line for line in recipes[0])
    assert recipes[1][1].split() == ["name", "methods", "published", "title"]
    assert recipes[2][1].split() == ["name", "data", "set", "model", "methods", "published", "title"]


# What it costs


def test_help_names_the_commands_and_imports_little(tmp_path: Path) -> None:
    for arguments in (["--help"], ["recipes", "--help"], ["backbones", "--help"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", AUGURY, *arguments], capture_output=True, text=True, check=True
        )
        imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
        assert "typer" in imported
        assert not imported & {
            "torch",
            "timm",
            "numpy",
            "pydantic",
            "rich.table",
            "augury_train.config",
            "augury_train.catalogue",
        }
    assert "recipes" in subprocess.run([AUGURY, "--help"], capture_output=True, text=True, check=True).stdout


def test_recipes_list_imports_no_torch_and_no_method() -> None:
    command = [sys.executable, "-X", "importtime", AUGURY, "recipes", "list", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert len(json.loads(done.stdout)) >= 4
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "augury_train.recipes" in imported
    assert not imported & {"torch", "timm", "numpy", "augury_isda"}
