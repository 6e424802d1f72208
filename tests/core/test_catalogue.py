"""The catalogue of networks: what timm says, kept for the next time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm

import augury.backbones  # noqa: F401  ours join timm's registry
from augury import catalogue
from augury.catalogue import Backbone, Size, absent, backbones
from augury.errors import UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setattr(catalogue, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def kept(folder: Path) -> Path:
    """The one file of the cache."""
    (file,) = folder.iterdir()
    return file


def refuse(*_: object) -> None:
    raise AssertionError("asked again")


def test_it_says_what_timm_says() -> None:
    found = {backbone.name: backbone for backbone in backbones()}
    assert list(found) == timm.list_models()
    assert {f"resnet{depth}_cifar" for depth in (20, 32, 44, 56, 110)} <= found.keys()
    assert found["resnet20_cifar"] == Backbone("resnet20_cifar", (3, 32, 32))
    weights = {f"{b.name}.{tag}" if tag else b.name for b in found.values() for tag in b.tags}
    assert weights == set(timm.list_pretrained())
    for name in ("resnet18", "resnet50", "convnext_tiny", "test_vit"):
        cfg = timm.get_pretrained_cfg(name)
        assert found[name].input_size == cfg.input_size
        assert found[name].tags[0] == cfg.tag, "the weights that --pretrained takes come first"


def test_patterns() -> None:
    assert [b.name for b in backbones("resnet*_cifar")] == timm.list_models("resnet*_cifar")
    assert [b.name for b in backbones("resnet18")] == ["resnet18"]
    (chosen,) = backbones("resnet18.fb_*")
    assert chosen.tags
    assert all(tag.startswith("fb_") for tag in chosen.tags)
    assert set(chosen.tags) < set(backbones("resnet18")[0].tags)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("resnt20_cifar", "no model matches `resnt20_cifar`. Did you mean `resnet20_cifar`"),
        ("cifar", f"no model matches `cifar`. `*cifar*` matches {len(timm.list_models('*cifar*'))}."),
        ("*20_cifar?", "no model matches `*20_cifar?`. `*20_cifar*` matches 1."),
        ("resnet20_cifar.none", "no model matches `resnet20_cifar.none`."),
        ("qqqqqq", "no model matches `qqqqqq`. See them all: `augury backbones`."),
        ("", "no model matches ``. See them all"),
    ],
)
def test_what_matches_nothing(pattern: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        backbones(pattern)
    assert str(caught.value).startswith(told)


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["resnet20_cifar", "resnet18.fb_ssl", "resnt18"]
    assert absent(names, ask=False) == {}, "nothing is kept, and timm is not asked"
    told = absent(names)
    assert list(told) == ["resnt18"]
    assert told["resnt18"].startswith(f"needs the model `resnt18`, which timm {timm.__version__} and augury-core ")
    monkeypatch.setattr(catalogue, "_collect", refuse)
    assert absent(names, ask=False) == absent(names) == told
    assert absent([]) == {}


def test_sizes() -> None:
    assert backbones("resnet20_cifar")[0].size is None
    sizes = {b.name: b.size for b in backbones("resnet*_cifar", measure=True)}
    # 3x3 convolutions of 1 + 2n layers a stage, two numbers a channel of each norm, a linear classifier for 10 classes.
    for depth in (20, 110):
        n = (depth - 2) // 6
        weights = 9 * (3 * 16 + 2 * n * 16**2 + 16 * 32 + (2 * n - 1) * 32**2 + 32 * 64 + (2 * n - 1) * 64**2)
        norms = 2 * (16 + 2 * n * (16 + 32 + 64))
        assert sizes[f"resnet{depth}_cifar"] == Size(weights + norms + 64 * 10 + 10, 64, True)
    assert backbones("resnet20_cifar")[0].size is None, "told only when it is asked for"


def test_sizes_are_kept_and_those_of_many_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = backbones("resnet?[02]_cifar", measure=True)
    monkeypatch.setattr(catalogue, "_measure", refuse)
    assert backbones("resnet?[02]_cifar", measure=True) == sizes
    with pytest.raises(UsageError, match=r"`resnet\*` matches \d+ models; at most 30 are measured at once. Narrow"):
        backbones("resnet*", measure=True)


def test_a_network_that_cannot_be_built_has_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    build = timm.create_model

    def create(name: str) -> object:
        if name == "resnet20_cifar":
            raise KeyError(name)
        return build(name)

    monkeypatch.setattr(timm, "create_model", create)
    sizes = {b.name: b.size is not None for b in backbones("resnet[23][02]_cifar", measure=True)}
    assert sizes == {"resnet20_cifar": False, "resnet32_cifar": True}


def test_the_second_time_reads_what_was_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = backbones()
    assert timm.__version__ in kept(folder).name
    monkeypatch.setattr(catalogue, "_collect", refuse)
    assert backbones() == first


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"stamp": "old", "models": []}', '{"stamp": STAMP, "models": [{"name": "x"}]}'],
)
def test_a_cache_that_is_damaged_or_old_is_made_anew(folder: Path, text: str) -> None:
    first = backbones("*_cifar")
    good = kept(folder).read_text()
    kept(folder).write_text(text.replace("STAMP", json.dumps(json.loads(good)["stamp"])))
    assert backbones("*_cifar") == first
    assert kept(folder).read_text() == good


def test_it_is_made_anew_when_our_networks_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbones("*_cifar")
    monkeypatch.setattr(catalogue, "_stamp", lambda: "other")
    monkeypatch.setattr(catalogue, "_collect", lambda: {"new": Backbone("new", None)})
    assert backbones() == [Backbone("new", None)]
    assert backbones() == [Backbone("new", None)]


def test_a_cache_that_cannot_be_written_does_not_matter(folder: Path) -> None:
    folder.write_text("a file")
    assert len(backbones("*_cifar")) == len(timm.list_models("*_cifar"))


def test_the_second_answer_imports_no_torch(tmp_path: Path) -> None:
    program = """
import sys
from augury.catalogue import backbones
assert [b.name for b in backbones("resnet2?_cifar")] == ["resnet20_cifar"]
print("torch" in sys.modules)
"""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
        for _ in range(2)
    ]
    assert [run.stdout.strip() for run in runs] == ["True", "False"]
