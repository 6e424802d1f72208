"""The register: what is installed held against what is listed, and nothing imported that a run does not name."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.core.fake_methods import FIRST_PARTY, METHOD, ROOT, Install, found, refusal, user_lists
from tests.core.fake_methods import install as install
from tests.core.fake_methods import project as project

from augury.errors import UsageError
from augury.hookspecs import HOOKS
from augury.method import hook_implementations
from augury.registry import Register, default_user_file

# What the built-in register says


def test_the_two_copies_of_the_built_in_register_are_identical() -> None:
    assert (ROOT / "registry.toml").read_bytes() == (ROOT / "core/src/augury/registry.toml").read_bytes()


def test_the_built_in_register_lists_what_the_plugins_declare(tmp_path: Path) -> None:
    listed = {
        f.name: f.entry for f in Register.load(project=tmp_path, user_file=tmp_path / "none").methods() if f.entry
    }
    declared = {}
    for file in sorted(ROOT.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(file.read_text())["project"]
        for name, target in project["entry-points"]["augury.methods"].items():
            declared[name] = (project["name"], target)
    assert {name: (entry.distribution, entry.entry_point) for name, entry in listed.items()} == declared
    assert {name: target for name, (_, target) in declared.items()} == FIRST_PARTY
    for entry in listed.values():
        assert entry.layer == "built-in"
        assert entry.title
        assert entry.paper
        assert entry.summary
        assert entry.hooks
        assert set(entry.hooks) <= set(HOOKS)


@pytest.mark.parametrize("name", FIRST_PARTY)
def test_the_listed_hooks_are_those_that_the_class_implements(name: str, tmp_path: Path) -> None:
    register = Register.load(project=tmp_path, user_file=tmp_path / "none")
    entry = found(register, name).entry
    assert entry is not None
    assert set(entry.hooks) == hook_implementations(register.load_class(name)).keys()
    assert entry.linear_classifier is register.load_class(name).linear_classifier
    assert register.needs_linear(name) is entry.linear_classifier


# What is installed against what is listed


def test_a_listed_and_installed_method_is_ready(install: Install) -> None:
    install("alpha")
    user_lists("alpha")
    register = Register.load()
    alpha, options = register.resolve("alpha")
    assert (alpha.distribution, alpha.version, alpha.entry_point) == ("fake-alpha", "1.0", "fake_alpha:M")
    assert (alpha.status, alpha.problem, options) == ("ready", "", {})
    assert alpha.entry is not None
    assert alpha.entry.layer == "user"
    assert register.load_class("alpha").__module__ == "fake_alpha"
    assert register.notes == []


def test_a_listed_method_that_is_not_installed_says_what_to_install(install: Install) -> None:
    user_lists("ghost")
    register = Register.load()
    assert found(register, "ghost").status == "not installed"
    assert refusal(register, "ghost") == (
        "ghost: fake-ghost is not installed. Install it from where you have it, or take it off with "
        "`augury plugins untrust ghost`."
    )


def test_what_the_built_in_register_lists_is_installed_by_its_name(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("augury.registry.discover", lambda: ({}, []))
    assert refusal(Register.load(), "isda") == (
        "isda: augury-isda is not installed. Install it from where you got augury."
    )


def test_an_unlisted_one_is_named_and_leaves_the_others_usable(install: Install) -> None:
    install("alpha")
    install("stranger", "raise RuntimeError('imported')")
    user_lists("alpha")
    register = Register.load()
    assert found(register, "stranger").status == "not trusted"
    assert refusal(register, "stranger") == (
        "stranger: fake-stranger 1.0 (fake_stranger:M) is installed but not listed. "
        "Trust it with `augury plugins trust stranger`, or with --trust stranger for one run, preview, comparison or "
        "resume."
    )
    assert "fake_stranger" not in sys.modules
    assert register.load_class("alpha")


def test_trust_for_one_register_only(install: Install) -> None:
    install("stranger")
    register = Register.load(trust=["stranger"])
    assert register.load_class("stranger").__name__ == "M"
    assert found(register, "stranger").entry is None
    assert not default_user_file().exists()
    assert found(Register.load(), "stranger").status == "not trusted"
    with pytest.raises(UsageError, match=r"unknown method `strangr`\. Installed: .*Did you mean `stranger`\?"):
        Register.load(trust=["strangr"])


def test_two_distributions_that_claim_one_name_are_both_named(install: Install) -> None:
    install("alpha")
    install("twice", dist="fake-twice")
    install("twice", dist="look-alike", version="3.0")
    user_lists("alpha", "twice")
    register = Register.load(trust=["twice"])
    assert found(register, "twice").status == "refused"
    twice = found(register, "twice")
    pairs = zip(twice.distribution.split(" and "), twice.version.split(" and "), strict=True)
    assert set(pairs) == {("fake-twice", "1.0"), ("look-alike", "3.0")}
    assert set(twice.entry_point.split(" and ")) == {"fake_twice:M", "look_alike:M"}
    line = refusal(register, "twice")
    assert line.startswith("twice: claimed more than once, by ")
    assert "fake-twice 1.0 (fake_twice:M)" in line
    assert "look-alike 3.0 (look_alike:M)" in line
    assert register.load_class("alpha")


def test_one_distribution_found_twice_on_the_path_is_one(install: Install) -> None:
    install("alpha", version="1.0", at="behind")
    install("alpha", version="1.5", at="ahead")
    user_lists("alpha")
    assert found(Register.load(), "alpha").version == "1.5"


def test_a_method_that_the_first_copy_no_longer_offers_is_not_found(install: Install, tmp_path: Path) -> None:
    install("alpha", version="1.0", at="behind")
    install("alpha", version="1.5", at="ahead")
    (tmp_path / "ahead/fake_alpha-1.5.dist-info/entry_points.txt").unlink()
    assert "alpha" not in [f.name for f in Register.load().methods()]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"entry_point": "fake_alpha:Other"}, "but listed is fake-alpha (fake_alpha:Other)."),
        ({"distribution": "alpha-proper"}, "but listed is alpha-proper (fake_alpha:M)."),
        ({"versions": ">=1.1,<2"}, "is not among the listed versions `>=1.1,<2`."),
        ({"versions": "one or two"}, "its version cannot be held against the listed range `one or two`"),
    ],
)
def test_another_package_than_listed_is_refused(install: Install, changes: dict[str, str], reason: str) -> None:
    install("alpha")
    install("beta")
    user_lists("alpha", **changes)
    register = Register.load(trust=["alpha", "beta"])
    assert found(register, "alpha").status == "refused"
    line = refusal(register, "alpha")
    assert "fake-alpha 1.0 (fake_alpha:M)" in line
    assert reason in line
    assert "`augury plugins trust alpha`" in line
    assert register.load_class("beta")


def test_names_of_distributions_are_compared_as_pip_does(install: Install) -> None:
    install("alpha")
    user_lists("alpha", distribution="Fake_Alpha")
    assert found(Register.load(), "alpha").status == "ready"


def test_a_pre_release_in_the_range_is_accepted(install: Install) -> None:
    install("alpha", version="1.5.dev3")
    user_lists("alpha")
    assert found(Register.load(), "alpha").status == "ready"


def test_a_name_or_target_that_cannot_be_used_is_refused(install: Install) -> None:
    install("with.dot")
    install("bare", target="fake_bare")
    register = Register.load(trust=["with.dot", "bare"])
    assert "a name is a letter, then letters, digits, - and _" in refusal(register, "with.dot")
    assert "fake-bare 1.0 (fake_bare) names no module:Class" in refusal(register, "bare")


def test_unreadable_metadata_is_noted_and_hides_nothing_else(install: Install, tmp_path: Path) -> None:
    install("alpha")
    install("broken")
    (tmp_path / "site/fake_broken-1.0.dist-info/entry_points.txt").write_text("[augury.methods]\nbroken\n")
    install("nameless")
    (tmp_path / "site/fake_nameless-1.0.dist-info/METADATA").unlink()
    user_lists("alpha")
    register = Register.load()
    assert len(register.notes) == 2
    assert all(f"a distribution in {tmp_path / 'site'} has unreadable metadata" in note for note in register.notes)
    assert register.load_class("alpha")


# Unknown names


def test_an_unknown_name_lists_what_is_ready_and_the_nearest(install: Install) -> None:
    for name, target in FIRST_PARTY.items():
        install(name, dist=f"augury-{name}", version="0.1.0", target=target)
    with pytest.raises(UsageError) as caught:
        Register.load().resolve("cutmux")
    assert str(caught.value) == (
        f"unknown method `cutmux`. Installed and listed: {', '.join(FIRST_PARTY)}. Did you mean `cutmix`?"
    )


def test_aliases_take_part_in_near_matches(install: Install) -> None:
    install("alpha")
    user_lists("alpha", extra='[aliases.strong-alpha]\nmethod = "alpha"\n')
    with pytest.raises(UsageError, match="Did you mean `strong-alpha`"):
        Register.load().resolve("strongalpha")


# Aliases and defaults


def test_aliases_and_defaults_of_both_files_meet(install: Install, tmp_path: Path) -> None:
    install("alpha")
    user_lists("alpha", extra="[defaults.alpha]\na = 1\nb = 1\nc = 1\n")
    (tmp_path / "registry.toml").write_text(
        '[defaults.alpha]\nb = 2\nc = 2\n[aliases.mine]\nmethod = "alpha"\noptions = {c = 3}\n'
    )
    register = Register.load()
    assert register.notes == []
    assert register.resolve("alpha")[1] == {"a": 1, "b": 2, "c": 2}
    mine, options = register.resolve("mine")
    assert (mine.name, options) == ("alpha", {"a": 1, "b": 2, "c": 3})
    options["a"] = 9
    assert register.resolve("mine")[1]["a"] == 1
    assert register.load_class("mine") is register.load_class("alpha")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[aliases.beta]\nmethod = "alpha"', "[aliases.beta] is ignored: a method has that name"),
        ('[aliases.mine]\nmethod = "alfa"', "[aliases.mine] is ignored: unknown method `alfa`"),
        ('[aliases.mine]\nmethod = "beta"', "[aliases.mine] is ignored: unknown method `beta`"),
        ("[defaults.beta]\na = 1", "[defaults.beta] is ignored: unknown method `beta`"),
    ],
)
def test_aliases_and_defaults_are_for_listed_methods_only(
    install: Install, tmp_path: Path, text: str, reason: str
) -> None:
    install("alpha")
    install("beta", "raise RuntimeError('imported')")
    user_lists("alpha")
    (tmp_path / "registry.toml").write_text(text)
    register = Register.load()
    assert len(register.notes) == 1
    assert register.notes[0].startswith(f"./registry.toml: {reason}")
    assert register.aliases == register.defaults == {}
    assert found(register, "beta").status == "not trusted"


# A project's file


def test_a_cloned_folder_cannot_retarget_a_listed_method(install: Install, tmp_path: Path) -> None:
    install("isda", dist="augury-isda", version="0.1.0", target=FIRST_PARTY["isda"])
    install("alpha")
    install("evil", "raise RuntimeError('imported')")
    user_lists("alpha")
    (tmp_path / "registry.toml").write_text(
        '[methods.isda]\ndistribution = "fake-evil"\nentry_point = "fake_evil:M"\nversions = ">=1"\n'
        '[methods.evil]\ndistribution = "fake-evil"\nentry_point = "fake_evil:M"\nversions = ">=1"\n'
        '[aliases.better]\nmethod = "isda"\noptions = {lambda_0 = 0.25}\n'
    )
    register = Register.load()
    assert len(register.notes) == 1
    assert register.notes[0].startswith("./registry.toml: its entry for `evil`, `isda` is ignored: ")
    assert "augury plugins trust NAME" in register.notes[0]
    isda, options = register.resolve("better")
    assert (isda.distribution, isda.entry_point, options) == ("augury-isda", FIRST_PARTY["isda"], {"lambda_0": 0.25})
    assert found(register, "evil").status == "not trusted"
    assert register.load_class("alpha")
    assert "fake_evil" not in sys.modules


def test_this_repository_s_own_file_says_nothing_new(install: Install) -> None:
    assert Register.load(project=ROOT).notes == []


# Files that are not as they should be


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[methods", "is not valid TOML and is ignored"),
        ("a = " + "[" * 5000, "is not valid TOML and is ignored"),
        ("method = 1", "unknown table `method`. Tables: aliases, defaults, methods. Did you mean `methods`?"),
        ("methods = 1", "`methods` must be tables [methods.NAME], got the int 1."),
        ("[methods]\nx = 1", "[methods.x] must be a table, got the int 1."),
        ('[methods.x]\ndistribution = "x"\nversions = ""', "[methods.x] lacks `entry_point`."),
        (
            '[methods.x]\ndistribution = 1\nversions = ""\nentry_point = "x:X"',
            "[methods.x] `distribution` must be a text",
        ),
        ('[methods.x]\ndistribution = "x"\nversions = ""\nentry_point = "x"', "`entry_point` must be module:Class"),
        ("[methods.x]\ndistributon = 1", "[methods.x] has an unknown key `distributon`. Keys: "),
        (
            '[methods.x]\ndistribution = "x"\nversions = ""\nentry_point = "x:X"\nhooks = "y"',
            "`hooks` must be a list of names, got 'y'.",
        ),
        (
            '[methods.x]\ndistribution = "x"\nversions = ""\nentry_point = "x:X"\nlinear_classifier = 1',
            "`linear_classifier` must be true or false, got 1.",
        ),
        ('[methods."a:b"]', "[methods.a:b] has no name that can be used"),
        ('[methods."a\\nb\\u001b[2J"]', "[methods.a b[2J] has no name that can be used"),
        ("[aliases.y]\noptions = {}", "[aliases.y] lacks `method`."),
        (
            '[aliases.y]\nmethod = "alpha"\noptions = 1',
            "[aliases.y] `options` must be a table of options, got the int 1.",
        ),
        (
            '[methods.x]\ndistribution = "x"\nversions = ""\nentry_point = "x:X"\nfolder = "y"',
            "`folder` must be an absolute path, got 'y'.",
        ),
        ("[defaults]\nalpha = 1", "[defaults.alpha] must be a table, got the int 1."),
    ],
)
@pytest.mark.parametrize("layer", ["user", "project"])
def test_a_fault_in_a_file_is_one_line_with_its_name(
    install: Install, tmp_path: Path, layer: str, text: str, reason: str
) -> None:
    install("alpha")
    user_lists("alpha")
    if layer == "user":
        # The rest of the file works, where there is a rest.
        whole = "not valid TOML" in reason
        file = default_user_file()
        listed = file.read_text()
        file.write_text(text if whole else f"{text}\n{listed}")
        label, status = str(file), "not trusted" if whole else "ready"
        if text == "methods = 1":
            file.write_text(text)
            status = "not trusted"
    else:
        (tmp_path / "registry.toml").write_text(text)
        label, status = "./registry.toml", "ready"
    register = Register.load()
    assert len(register.notes) == 1
    assert register.notes[0].startswith(f"{label}: ")
    assert reason in register.notes[0]
    assert register.notes[0].isprintable()
    assert found(register, "alpha").status == status


def test_a_file_that_cannot_be_read_is_noted(install: Install, tmp_path: Path) -> None:
    (tmp_path / "registry.toml").mkdir()
    default_user_file().parent.mkdir()
    default_user_file().write_bytes(b"\xff\xfe")
    notes = Register.load().notes
    assert notes[0].startswith(f"{default_user_file()}: cannot be read and is ignored: ")
    assert notes[1].startswith("./registry.toml: cannot be read and is ignored: ")


# Importing


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no\\nway')", "importing fake_broken:M of fake-broken 1.0 failed: RuntimeError: no way."),
        ("import sys; sys.exit(3)", "importing fake_broken:M of fake-broken 1.0 failed: SystemExit: 3."),
        ("raise SystemExit", "importing fake_broken:M of fake-broken 1.0 failed: SystemExit."),
        (
            "import augury\nclass Options(augury.Options):\n    alpha = 0.5\n",
            "fake-broken 1.0: its option `alpha` has no type. Write `alpha: float = 0.5`, say.",
        ),
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'."),
        ("def", "importing fake_broken:M of fake-broken 1.0 failed: SyntaxError: "),
        ("x = 1", "AttributeError: module 'fake_broken' has no attribute 'M'."),
        ("M = dict", "fake-broken 1.0: broken: <class 'dict'> is no method"),
        (METHOD.format(hook="post_epok", parameters="run"), "unknown hook `post_epok`"),
        (
            METHOD.format(hook="post_epoch", parameters="run=None"),
            "hook `post_epoch` gives its parameter `run` a default",
        ),
    ],
)
def test_a_broken_method_is_named_in_one_line_and_leaves_the_others_usable(
    install: Install, source: str, reason: str
) -> None:
    install("broken", source)
    install("alpha")
    user_lists("broken", "alpha")
    register = Register.load()
    line = refusal(register, "broken")
    assert "broken" in line
    assert "fake-broken 1.0" in line
    assert reason in line
    assert register.load_class("alpha").__module__ == "fake_alpha"


def test_an_interruption_during_an_import_is_not_a_fault_of_the_method(install: Install) -> None:
    install("slow", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        Register.load(trust=["slow"]).load_class("slow")


def test_only_the_named_method_is_imported_and_torch_with_the_first(install: Install, tmp_path: Path) -> None:
    install("alpha")
    for name in ("beta", "stranger"):
        install(name, "raise RuntimeError('imported')")
    user_lists("alpha", "beta")
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from augury.registry import Register
register = Register.load()
print(*(f"{f.name}={f.status}" for f in register.methods() if f.distribution.startswith("fake-")))
register.resolve("alpha")
print(*(m for m in ("torch", "timm", "pydantic", "pluggy", "rich", "numpy") if m in sys.modules))
register.load_class("alpha")
print(*(m for m in sorted(sys.modules) if m.startswith(("fake_", "augury_")) and not m.startswith("_")))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "site")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["alpha=ready beta=ready stranger=not trusted", "", "fake_alpha"]


def test_the_user_s_file_is_in_the_platform_s_folder_unless_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path))
    assert default_user_file() == tmp_path / "registry.toml"
    monkeypatch.setenv("AUGURY_CONFIG", "")
    assert default_user_file().parent.name == "augury"
