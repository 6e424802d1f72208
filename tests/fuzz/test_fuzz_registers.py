"""Registers, suites and recipes of packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tests.fuzz.hostile import (
    all_told,
    answer,
    cases,
    configs,
    encoded,
    files,
    texts,
    told,
    toml,
    toml_text,
    values,
)

from augury.register_file import NAME, Entry, read
from augury.registry import Register
from augury_cli.register_writing import add_entry, remove_entry
from augury_lab.experiment.suite import folder_of, make_suite, read_suite, save_suite
from augury_train.recipes import describe

names = st.sampled_from(["isda", "agmax", "evil", "a-b", "../../x"]) | texts
targets = st.sampled_from(["augury_isda:ISDA", "os:system", "evil:Evil", "a b"]) | texts
tables = st.fixed_dictionaries(
    {},
    optional={
        "distribution": st.sampled_from(["augury-isda", "evil"]) | values,
        "entry_point": targets | values,
        "versions": st.sampled_from([">=0.1", ">=99", "=="]) | values,
        "folder": st.sampled_from(["/", "/tmp/../x", "relative"]) | texts,
        "hooks": st.lists(texts, max_size=2) | values,
        "summary": texts,
        "method": names,
        "options": st.dictionaries(texts, values, max_size=2) | values,
        "trust": values,
    },
)
registers = st.fixed_dictionaries(
    {},
    optional={
        "methods": st.dictionaries(names, tables | values, max_size=3) | values,
        "aliases": st.dictionaries(names, tables | values, max_size=3),
        "defaults": st.dictionaries(names, st.dictionaries(texts, values, max_size=2) | values, max_size=3),
        "trust": st.lists(names, max_size=2),
    },
).map(lambda found: encoded(toml_text(found)))


@cases(20, users=files(registers), projects=files(registers))
def test_registers_let_nothing_run_that_is_not_installed_and_listed(
    tmp_path: Path, users: bytes, projects: bytes
) -> None:
    project, user_file = tmp_path / "project", tmp_path / "user" / "registry.toml"
    project.mkdir(exist_ok=True)
    user_file.parent.mkdir(exist_ok=True)
    (project / "registry.toml").write_bytes(projects)
    user_file.write_bytes(users)
    register = Register.load(project=project, user_file=user_file)
    all_told(register.notes)
    for found in register.methods():
        if found.problem:
            told(found.problem)
        if found.status == "ready":
            assert found.distribution.startswith("augury-")
            assert found.entry_point.startswith("augury_")
    for name in ("isda", "evil", *register.aliases):
        answer(lambda name=name: register.resolve(name))


entries = st.builds(
    Entry,
    name=st.from_regex(NAME, fullmatch=True).filter(lambda name: len(name) < 40),
    distribution=st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
    entry_point=st.just("a.b:C"),
    versions=st.sampled_from([">=1,<2", "==1.0"]),
    folder=st.sampled_from(["", "/somewhere/else"]),
    title=st.text(max_size=20).filter(lambda text: text.isprintable()),
    hooks=st.lists(st.sampled_from(["compute_loss", "post_epoch"]), max_size=2).map(tuple),
)


@cases(8, entry=entries, other=entries)
def test_an_entry_is_read_as_it_was_written(tmp_path: Path, entry: Entry, other: Entry) -> None:
    path = tmp_path / "registry.toml"
    path.unlink(missing_ok=True)
    add_entry(path, entry)
    add_entry(path, other)
    found = read(path, "user")
    assert not found.notes
    assert found.methods == {entry.name: entry} | {other.name: other}
    assert remove_entry(path, other.name)
    assert other.name not in read(path, "user").methods


@cases(12, content=files(registers), entry=entries)
def test_writing_an_entry_into_any_file_keeps_what_it_says_or_is_refused(
    tmp_path: Path, content: bytes, entry: Entry
) -> None:
    path = tmp_path / "registry.toml"
    path.write_bytes(content)
    before = read(path, "user")
    all_told(before.notes)
    answer(lambda: add_entry(path, entry))
    after = read(path, "user")
    for name, kept in before.methods.items():
        assert name == entry.name or after.methods[name] == kept
    answer(lambda: remove_entry(path, entry.name))


@cases(8, content=files(configs().map(lambda found: encoded(toml_text(found)))))
def test_a_packages_recipe_is_described_in_a_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    found = describe("m/recipe", path)
    if found.problem:
        all_told([found.problem])
    assert all(text.isprintable() for text in (found.title, found.source))


compositions = st.dictionaries(
    texts | st.sampled_from(["baseline", "BASELINE", "isda", "a/../../b", "..", "x.json"]),
    st.sampled_from(["isda", "isda+agmax", "dcutmix:k=3", ""])
    | texts
    | st.fixed_dictionaries({"methods": texts}, optional={"settings": configs(methods=False), "odd": values}),
    max_size=4,
)
suites = st.builds(
    lambda base, section: encoded(toml_text({**base, "suite": section})),
    configs(methods=False),
    st.fixed_dictionaries(
        {"compositions": compositions | st.lists(texts, max_size=4) | values},
        optional={"base": texts, "seeds": st.integers(0, 3) | values, "equal": st.sampled_from(["compute"]) | values},
    )
    | values,
)


@cases(22, content=files(suites), ending=st.sampled_from([".toml", ".json"]))
def test_suites_are_read_or_refused_and_stay_in_their_folder(tmp_path: Path, content: bytes, ending: str) -> None:
    from augury_train.config import read_config

    path, folder = tmp_path / f"suite{ending}", tmp_path / "suite"
    path.write_bytes(content)
    folder.mkdir(exist_ok=True)

    def whole() -> Any:
        values_read, said = read_suite(path)
        suite = make_suite(read_config(values_read), said.pop("compositions"), **said)
        save_suite(suite, folder)
        return suite

    suite = answer(whole)
    if suite is None:
        return
    places = set()
    for name in suite.compositions:
        place = folder_of(folder, name, 0)
        assert place.resolve().is_relative_to(folder.resolve())
        assert place.parent.parent == folder
        places.add(str(place).casefold())
        answer(lambda name=name, suite=suite: suite.run_config(name, 0))
    assert len(places) == len(suite.compositions)
    assert toml(name) if (name := next(iter(suite.compositions))) else True
