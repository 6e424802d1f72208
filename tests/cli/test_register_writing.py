"""The user's register written: trusted methods added and taken out, the rest of the file left alone."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tests.core.fake_methods import FIRST_PARTY, Install, found, from_folder, refusal, user_lists
from tests.core.fake_methods import install as install
from tests.core.fake_methods import project as project

from augury.errors import AuguryError, UsageError
from augury.listing import Found
from augury.register_file import Entry
from augury.registry import Register, default_user_file
from augury_cli.register_writing import add_entry, changes

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
