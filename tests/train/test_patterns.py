"""Patterns of shards: as a shell reads them, and never more than a limit of paths or entries."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

from augury.errors import UsageError
from augury_train.config import DataConfig
from augury_train.data import patterns
from augury_train.data.datasets import open_dataset
from augury_train.data.patterns import MOST_PATHS, expand
from augury_train.data.readers import open_reader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/t-000.tar", "a/t-001.tar", "b/t-000.tar", "b/.t-009.tar", "b/[x].tar", ".c/t-000.tar", "{1..2}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a/t-{000..001}.tar", ["a/t-000.tar", "a/t-001.tar"]),
        ("{b,a}/t-000.tar", ["b/t-000.tar", "a/t-000.tar"]),
        ("{a,b}/t-00{0..0}.tar", ["a/t-000.tar", "b/t-000.tar"]),
        ("a/t-0{00,01}.tar", ["a/t-000.tar", "a/t-001.tar"]),
        ("a/t-{5..2}.tar", []),
        ("{1..2}", None),
        ("b/[x].tar", ["b/[x].tar"]),
    ],
)
def test_braces_are_written_out_in_order(folder: Path, pattern: str, found: list[str] | None) -> None:
    if found is None:
        with pytest.raises(UsageError, match=r"^p: .*/1 does not exist\. Give a folder of shards"):
            list(expand(f"{folder}/{pattern}", "p"))
    else:
        assert list(expand(f"{folder}/{pattern}", "p")) == [f"{folder}/{name}" for name in found]


@pytest.mark.parametrize("pattern", ["*/*.tar", "a/t-00?.tar", "?/t-00[01].tar", "*/t-000.tar", "b/.*", "**/*.tar"])
def test_wildcards_find_what_glob_finds(folder: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(expand(f"{folder}/{pattern}", "p")) == sorted(glob.glob(f"{folder}/{pattern}"))
    monkeypatch.chdir(folder)
    assert list(expand(pattern, "p")) == sorted(glob.glob(pattern))


@pytest.mark.parametrize(
    "pattern",
    [
        "x-{0..9999999999}.tar",
        "x-{0..999999999999999999}.tar",
        "x-{" + "0" * 17 + "0.." + "9" * 18 + "}.tar",
        "x-" + "{0..9}" * 40 + ".tar",
        "x-" + "{a,b}" * 700 + ".tar",
        "x-{" + "," * MOST_PATHS + "}.tar",
        "{" * 100 + "0..999999" + "}" * 100,
    ],
    ids=["range", "long range", "padded range", "ranges", "texts", "commas", "nested"],
)
@pytest.mark.timeout(120)
def test_braces_for_too_many_paths_are_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UsageError, match="the braces stand for more than 100,000 paths, which is the limit. Name") as e:
        open_reader(f"wds/{tmp_path}/{pattern}", skip_bad=False)
    assert str(e.value).startswith(f"wds/{tmp_path}/{pattern}"[:100])
    assert "\n" not in str(e.value)


def test_the_first_path_that_is_missing_ends_it(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"t-002\.tar does not exist"):
        open_reader(f"wds/{folder}/a/t-{{000..099999}}.tar", skip_bad=False)
    with pytest.raises(UsageError, match=r"does not exist"):
        open_reader("wds/x-{" + "0" * 4000 + "..1}.tar", skip_bad=False)


def test_wildcards_stop_at_a_limit_of_entries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MOST_ENTRIES", 6)
    assert len(list(expand(f"{folder}/a/*.tar", "p"))) == 2
    for pattern in ("*/*.tar", "*/{0,1,2,t}*.tar", "**/**/**"):
        with pytest.raises(UsageError, match=r"^p: its wildcards look at more than 6 files and folders.*Write more"):
            list(expand(f"{folder}/{pattern}", "p"))


@pytest.mark.timeout(300)
def test_wildcards_from_the_root_end() -> None:
    with pytest.raises(UsageError, match="wildcards look at more than 100,000 files|does not exist"):
        open_reader("wds//*/*/*/*/*.no-such-tar", skip_bad=False)


@pytest.mark.parametrize("name", ["/", "//", "/..", "hfds//", "hfids//.."])
def test_the_whole_disk_is_no_data_set(name: str) -> None:
    with pytest.raises(UsageError, match="the whole disk would be looked through. Give the folder"):
        open_dataset(DataConfig(dataset=name))


def test_a_shard_named_twice_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"t-000\.tar is named twice\. Name each shard once"):
        open_reader(f"wds/{folder}/a/t-{{000,000}}.tar", skip_bad=False)
