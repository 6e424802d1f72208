"""The register: what is installed held against what is listed, and nothing imported that a run does not name."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from augury.errors import AuguryError, UsageError
from augury.hookspecs import HOOKS
from augury.listing import Found
from augury.method import hook_implementations
from augury.register_file import Entry
from augury.registry import Register, default_user_file
from augury_cli.register_writing import add_entry, changes

ROOT = Path(__file__).resolve().parents[2]
FIRST_PARTY = {
    "agmax": "augury_agmax:AgMax",
    "dcutmix": "augury_dcutmix:DCutMix",
    "isda": "augury_isda:ISDA",
    "resmooth": "augury_resmooth:ReSmooth",
}
METHOD = """
import augury

class M(augury.Method):
    @augury.hookimpl
    def {hook}(self, {parameters}):
        pass
"""
GOOD = METHOD.format(hook="post_epoch", parameters="run")

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put throw-away distributions on the path; give a name, get the name of its distribution."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path / "config"))

    def put(
        name: str,
        source: str = GOOD,
        *,
        dist: str = "",
        version: str = "1.0",
        target: str = "",
        at: str = "site",
        origin: object = None,
    ):
        dist = dist or f"fake-{name}"
        module = dist.replace("-", "_")
        folder = tmp_path / at
        info = folder / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\nSummary: Says {name}\n"
        )
        (info / "entry_points.txt").write_text(f"[augury.methods]\n{name} = {target or f'{module}:M'}\n")
        (folder / f"{module}.py").write_text(source)
        if origin is not None:
            (info / "direct_url.json").write_text(origin if isinstance(origin, str) else json.dumps(origin))
        if str(folder) not in sys.path:
            monkeypatch.syspath_prepend(str(folder))
        return dist

    yield put
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def user_lists(*names: str, extra: str = "", **changes: str) -> None:
    """Write the user's register, which lists the fakes of these names."""
    lines = [extra]
    for name in names:
        module = f"fake_{name}"
        values = {"distribution": f"fake-{name}", "entry_point": f"{module}:M", "versions": ">=1,<2"} | changes
        lines += [f"[methods.{name}]", *(f'{key} = "{value}"' for key, value in values.items())]
    default_user_file().parent.mkdir(exist_ok=True)
    default_user_file().write_text("\n".join(lines))


def found(register: Register, name: str) -> Found:
    return next(found for found in register.methods() if found.name == name)


def refusal(register: Register, name: str) -> str:
    """The one line with which a method is refused."""
    with pytest.raises(UsageError) as caught:
        register.load_class(name)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


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
        "unknown method `cutmux`. Installed and listed: agmax, dcutmix, isda, resmooth. Did you mean `dcutmix`?"
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


# Trusting


def test_trusting_lists_what_is_installed(install: Install) -> None:
    install("stranger", version="1.4.2+local")
    register = Register.load()
    entry = register.trust("stranger")
    assert entry == Entry("stranger", "fake-stranger", "fake_stranger:M", ">=1.4.2,<2", layer="user")
    for again in (register, Register.load()):
        assert again.notes == []
        assert found(again, "stranger") == Found(
            "stranger", "fake-stranger", "1.4.2+local", "fake_stranger:M", entry, "ready", summary="Says stranger"
        )
        assert again.load_class("stranger").__name__ == "M"


@pytest.mark.parametrize(
    ("version", "versions"), [("0.3", ">=0.3,<1"), ("2.0rc1", ">=2.0rc1,<3"), ("1!4.5", ">=1!4.5,<1!5")]
)
def test_the_range_ends_before_the_next_major_version(install: Install, version: str, versions: str) -> None:
    install("stranger", version=version)
    assert Register.load().trust("stranger").versions == versions
    assert found(Register.load(), "stranger").status == "ready"


def test_what_is_listed_already_is_not_written_again(install: Install) -> None:
    install("alpha")
    user_lists("alpha")
    before = default_user_file().read_text()
    register = Register.load()
    assert register.trust("alpha") == found(register, "alpha").entry
    assert default_user_file().read_text() == before


def test_trusting_another_version_replaces_the_user_s_entry_and_nothing_else(install: Install, tmp_path: Path) -> None:
    install("alpha", version="4.0")
    user_lists("alpha", extra='# mine\n[defaults.alpha]\nname = """\n[methods.alpha]"""')
    file = default_user_file()
    text = (
        file.read_text()
        + '\n# about beta\n[methods . "beta"] # b\ndistribution = "b"\nentry_point = "b:B"\nversions = ""\n'
    )
    file.write_text(text)
    with pytest.raises(UsageError, match="in a form that cannot be edited here"):
        Register.load().trust("alpha")
    assert file.read_text() == text
    file.write_text(text.replace('"""\n[methods.alpha]"""', "1"))
    assert Register.load().trust("alpha").versions == ">=4.0,<5"
    new = file.read_text()
    assert new.count("[methods.alpha]") == 1
    assert "# mine\n" in new
    assert "# about beta\n" in new
    register = Register.load()
    assert register.notes == []
    assert register.defaults == {"alpha": {"name": 1}}
    assert found(register, "alpha").status == "ready"
    assert found(register, "beta").distribution == "b"
    assert [p.name for p in file.parent.iterdir()] == ["registry.toml"]


def test_trusting_a_newer_first_party_version_adds_to_the_built_in_entry(install: Install) -> None:
    install("isda", dist="augury-isda", version="1.2", target=FIRST_PARTY["isda"])
    register = Register.load()
    assert found(register, "isda").status == "refused"
    register.trust("isda")
    assert found(Register.load(), "isda").status == "ready"
    # What the built-in register accepts stays accepted beside the user's entry.
    install("isda", dist="augury-isda", version="0.1.0", target=FIRST_PARTY["isda"], at="ahead")
    isda = found(Register.load(), "isda")
    assert (isda.status, isda.version) == ("ready", "0.1.0")


def test_what_cannot_be_trusted_is_refused(install: Install) -> None:
    install("twice", dist="fake-twice")
    install("twice", dist="look-alike")
    install("odd", version="x-y")
    user_lists("ghost")
    before = default_user_file().read_text()
    register = Register.load()
    for name, reason in [
        ("twice", "claimed more than once"),
        ("ghost", "fake-ghost is not installed"),
        ("odd", "its version is not one of PEP 440"),
        ("twise", "unknown method `twise`.*Did you mean `twice`"),
    ]:
        with pytest.raises(UsageError, match=reason):
            register.trust(name)
    assert default_user_file().read_text() == before


def test_a_malformed_file_is_left_alone(install: Install) -> None:
    install("stranger")
    default_user_file().parent.mkdir()
    default_user_file().write_text("[methods")
    with pytest.raises(UsageError, match=r"registry\.toml is not valid TOML: .*Correct it, then try again"):
        Register.load().trust("stranger")
    assert default_user_file().read_text() == "[methods"


def test_a_file_that_cannot_be_written_is_a_failure(install: Install, tmp_path: Path) -> None:
    install("stranger")
    (tmp_path / "config").write_text("a file where the folder should be")
    with pytest.raises(AuguryError, match=r"registry\.toml cannot be written: "):
        Register.load().trust("stranger")


def test_any_text_survives_writing_and_a_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "link.toml"
    real.write_text("")
    link.symlink_to(real)
    entry = Entry("x", 'a "b" \\ c', "m:X", "", title="\x7f\x00\t\u2028é𝄞", hooks=("compute_loss", "post_epoch"))
    add_entry(link, entry)
    assert link.is_symlink()
    assert tomllib.loads(real.read_text())["methods"]["x"] == entry.table()


def test_the_user_s_file_is_in_the_platform_s_folder_unless_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path))
    assert default_user_file() == tmp_path / "registry.toml"
    monkeypatch.setenv("AUGURY_CONFIG", "")
    assert default_user_file().parent.name == "augury"


# What was made in a folder


def from_folder(folder: Path, *, editable: bool = True) -> dict[str, object]:
    """What an installer writes down of a project's folder."""
    return {"url": folder.as_uri(), "dir_info": {"editable": True} if editable else {}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of a project; its name has to be quoted, in a URL and on a command line."""
    folder = tmp_path / "my projects" / "alphä"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("editable", [True, False])
@pytest.mark.parametrize("linked", [True, False])
def test_an_entry_with_a_folder_takes_what_is_installed_from_it(
    install: Install, project: Path, tmp_path: Path, editable: bool, linked: bool
) -> None:
    link = tmp_path / "link"
    link.symlink_to(project.parent)
    install("alpha", origin=from_folder(project, editable=editable))
    user_lists("alpha", folder=str(link / project.name if linked else project))
    register = Register.load()
    assert register.notes == []
    assert register.load_class("alpha").__module__ == "fake_alpha"
    before = default_user_file().read_text()
    register.trust("alpha")
    assert default_user_file().read_text() == before


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "not JSON",
        "[]",
        {"url": 3, "dir_info": {}},
        {"url": "https://somewhere/fake_alpha.whl", "archive_info": {}},
        "a wheel in the folder",
        "another host",
        "another folder",
    ],
)
def test_an_entry_with_a_folder_takes_nothing_else_of_that_name(
    install: Install, project: Path, tmp_path: Path, origin: object
) -> None:
    given: dict[object, object] = {
        "a wheel in the folder": {"url": (project / "dist/a.whl").as_uri(), "archive_info": {}},
        "another host": {"url": project.as_uri().replace("file://", "https://x"), "dir_info": {}},
        "another folder": from_folder(tmp_path),
    }
    install(
        "alpha", "raise SystemExit('imported')", origin=given.get(origin, origin) if isinstance(origin, str) else origin
    )
    install("beta")
    user_lists("alpha", folder=str(project))
    register = Register.load(trust=["beta", "alpha"])
    assert found(register, "alpha").status == "refused"
    place = f"from {tmp_path}" if origin == "another folder" else "not from a folder"
    assert refusal(register, "alpha") == (
        f"alpha: installed is fake-alpha 1.0 (fake_alpha:M), {place}, but listed is what was made in {project}. "
        f"Install it with pip install -e '{project}', or accept what is installed with `augury plugins trust alpha`."
    )
    assert register.load_class("beta")
    # The way out: what is installed is listed from then on, with the folder that it is from, if any.
    folder = str(tmp_path) if origin == "another folder" else ""
    assert register.trust("alpha") == Entry("alpha", "fake-alpha", "fake_alpha:M", ">=1.0,<2", folder)
    assert found(Register.load(), "alpha").status == "ready"
    assert ("folder" in default_user_file().read_text()) == bool(folder)


def test_a_project_that_is_not_installed_or_was_moved(install: Install, project: Path, tmp_path: Path) -> None:
    user_lists("alpha", folder=str(project))
    take_off = "or take it off with `augury plugins untrust alpha`."
    assert refusal(Register.load(), "alpha") == (
        f"alpha: fake-alpha is not installed. Install it with pip install -e '{project}', {take_off}"
    )
    new = project.rename(tmp_path / "moved")
    moved = f"{project}, which is not there any more. Install it with pip install -e from where it is now, then "
    assert refusal(Register.load(), "alpha") == (
        f"alpha: fake-alpha is not installed. It was made in {moved}`augury plugins trust alpha`, {take_off}"
    )
    install("alpha", origin=from_folder(project), at="old")
    assert refusal(Register.load(), "alpha") == (
        f"alpha: fake-alpha 1.0 (fake_alpha:M) is imported from {moved}`augury plugins trust alpha`."
    )
    install("alpha", origin=from_folder(new), at="new")
    assert refusal(Register.load(), "alpha") == (
        f"alpha: installed is fake-alpha 1.0 (fake_alpha:M), from {new}, but listed is what was made in {project}. "
        "It is not there any more. Accept what is installed with `augury plugins trust alpha`."
    )
    assert Register.load().trust("alpha").folder == str(new)
    assert Register.load().load_class("alpha")
    # A copy that was installed needs its folder no more.
    project.parent.rmdir()
    install("beta", origin=from_folder(project, editable=False))
    user_lists("beta", folder=str(project))
    assert Register.load().load_class("beta")


def test_trusting_again_takes_out_what_goes_stale_and_keeps_what_the_user_wrote(
    install: Install, project: Path
) -> None:
    install("alpha", version="1.4", origin=from_folder(project))
    user_lists("alpha", title="Alpha", summary="old", paper="Ann, 2020")
    with default_user_file().open("a") as file:
        file.write('\nhooks = ["compute_loss"]\nlinear_classifier = false\n[aliases.a]\nmethod = "alpha"\n')
    register = Register.load()
    before = found(register, "alpha")
    assert (before.status, before.summary) == ("ready", "old")
    new = Entry("alpha", "fake-alpha", "fake_alpha:M", ">=1,<2", str(project), paper="Ann, 2020")
    assert before.entry is not None
    assert changes(before.entry, new) == [
        '- title = "Alpha"',
        '- hooks = ["compute_loss"]',
        "- linear_classifier = false",
        '- summary = "old"',
        f'+ folder = "{project}"',
    ]
    assert register.trust("alpha") == new
    for again in (register, Register.load()):
        assert found(again, "alpha").entry == new
        assert found(again, "alpha").summary == "Says alpha"
        assert again.aliases.keys() == {"a"}
    text = default_user_file().read_text()
    assert Register.load().trust("alpha") == new
    assert default_user_file().read_text() == text


# Taking trust back


def test_untrusting_takes_out_the_entry_and_leaves_the_rest_of_the_file_as_it_is(install: Install) -> None:
    install("alpha")
    user_lists("alpha")
    file = default_user_file()
    before = "# mine\n\n[defaults.isda]\nlambda_0 = 1\n\n# what Ann wrote\n"
    after = '\n# about beta\n[methods . "beta"] # b\ndistribution = "b"\nentry_point = "b:B"\nversions = ""\n\n\n'
    entry = (
        '[ methods."alpha" ]\n# since May\ndistribution = "fake-alpha"\nentry_point = "fake_alpha:M"\nversions = ""\n'
    )
    file.write_text(before + entry + after)
    register = Register.load()
    assert found(register, "alpha").status == "ready"
    now = register.untrust("alpha")
    assert now is not None
    assert (now.status, now.entry) == ("not trusted", None)
    # The blank line that ended the entry went with it.
    assert file.read_text() == before + "# since May\n" + after.lstrip("\n")
    for again in (register, Register.load()):
        assert found(again, "alpha") == now
        with pytest.raises(UsageError, match="augury plugins trust alpha"):
            again.load_class("alpha")
    register.trust("alpha")
    assert found(Register.load(), "alpha").status == "ready"


def test_untrusting_leaves_nothing_where_nothing_else_is_known_of_the_name(install: Install) -> None:
    user_lists("ghost", extra="[aliases.g]\nmethod = 'ghost'\n[defaults.ghost]\nx = 1\n")
    register = Register.load()
    assert register.aliases.keys() == {"g"}
    assert register.untrust("ghost") is None
    assert "ghost" not in {method.name for method in register.methods()}
    assert (register.aliases, register.defaults) == ({}, {})
    assert tomllib.loads(default_user_file().read_text()) == {
        "aliases": {"g": {"method": "ghost"}},
        "defaults": {"ghost": {"x": 1}},
    }


def test_untrusting_a_user_s_entry_beside_the_built_in_one_leaves_that(install: Install) -> None:
    install("isda", dist="augury-isda", version="0.1.0", target=FIRST_PARTY["isda"])
    user_lists("isda", extra="[defaults.isda]\nlambda_0 = 1\n", distribution="mine", entry_point="mine:M")
    register = Register.load()
    now = register.untrust("isda")
    assert now is not None
    assert now.entry is not None
    assert (now.status, now.entry.layer) == ("ready", "built-in")
    assert register.defaults == {"isda": {"lambda_0": 1}}


def test_an_entry_that_counts_for_nothing_can_be_taken_out_too(install: Install) -> None:
    install("alpha")
    user_lists("alpha", versions="")
    text = default_user_file().read_text().replace('versions = ""', "versions = 3")
    default_user_file().write_text(text)
    register = Register.load()
    assert register.notes
    assert register.untrust("alpha") is not None
    assert "alpha" not in default_user_file().read_text()


def test_what_the_user_does_not_list_cannot_be_untrusted(install: Install) -> None:
    install("alpha")
    install("stranger")
    user_lists("alpha", extra="[aliases.a]\nmethod = 'alpha'\n")
    before = default_user_file().read_text()
    register = Register.load()
    for name, reason in [
        ("isda", "listed by the built-in register, which nobody edits.*pip uninstall augury-isda"),
        ("stranger", "stranger is not listed, so there is nothing to take back.*only with --trust stranger"),
        ("a", "`a` is an alias of alpha"),
        ("alpa", r"unknown method `alpa`. Listed in .*registry\.toml: alpha. Did you mean `alpha`"),
    ]:
        with pytest.raises(UsageError, match=reason):
            register.untrust(name)
    assert default_user_file().read_text() == before
    default_user_file().write_text('methods = { alpha = { distribution = "a", entry_point = "a:A", versions = "" } }\n')
    with pytest.raises(UsageError, match=r"Remove \[methods.alpha\] from it by hand"):
        Register.load().untrust("alpha")
    default_user_file().unlink()
    with pytest.raises(UsageError, match=r"Listed in .*: none\."):
        Register.load().untrust("ghost")
    assert not default_user_file().exists()
