"""The catalogue of networks: the table that is shipped, and what timm of another version is asked and keeps."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from augury.errors import UsageError
from augury_train import catalogue
from augury_train.backbones import inspect_model
from augury_train.catalogue import Backbone, Size, absent, asked, backbones, parameters_in, select, table
from augury_train.config import ModelConfig

ROOT = Path(__file__).parents[2]
LINEAR, SOME = ("Linear",), (3, 224, 224)
# What timm says, asked once for all tests.
collected = cache(asked.collect)
# Of many families; heads of one layer, of several, of none, inside a module, and made for a run's classes alone.
SAMPLE = (
    "levit_128s",
    "resnet18",
    "test_byobnet",
    "test_convnext",
    "test_efficientnet",
    "test_resnet",
    "test_vit",
)
LARGE = ("samvit_base_patch16_224", "vit_small_patch14_dinov2", "volo_d1_224")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setattr(asked, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def other_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that was made with another version of timm, and has resnet18 and resnet20_cifar alone."""
    models = {
        "resnet18": Backbone("resnet18", (3, 9, 9), ("gone",), Size(18, 1, LINEAR)),
        "resnet20_cifar": Backbone("resnet20_cifar", (3, 9, 9), (), Size(20, 2, ("Conv2d",))),
        "removed": Backbone("removed", (3, 9, 9), (), Size(1, 1, LINEAR)),
    }
    monkeypatch.setattr(table, "shipped", lambda: table.Table("0.0.1", models))
    monkeypatch.setattr(asked, "collect", lambda: dict(collected()))


def kept(folder: Path) -> Path:
    """The one file of the cache."""
    (file,) = folder.iterdir()
    return file


def refuse(*_: object) -> Any:
    raise AssertionError("asked again")


def built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(name)


def as_built(name: str) -> Size:
    """What a network is once it is built, and what a run's plan makes of it."""
    network = built(name)
    parameters = sum(p.numel() for p in network.parameters())
    told = table.shipped().models[name].size.classifiers
    cfg = timm.get_pretrained_cfg(name)
    config, images = ModelConfig(name=name), cfg.input_size if cfg else (3, 224, 224)
    if len(told) != 1:
        why = "classifiers; augury trains models with one" if told else "does not tell its classifier"
        with pytest.raises(UsageError, match=why):
            inspect_model(config, 7, images)
        return Size(parameters, network.num_features, told)
    facts = inspect_model(config, 7, images)
    linear = isinstance(facts.classifier, nn.Linear)
    return Size(parameters, facts.num_features, LINEAR if linear else (type(facts.classifier).__name__,))


def same_timm() -> None:
    """Leave out what can only be compared with the timm that the table was made with."""
    if table.shipped().timm != timm.__version__:
        pytest.skip(f"the table is of timm {table.shipped().timm}")


# The table.


def test_the_table_is_of_the_timm_that_augury_is_tested_with() -> None:
    pinned = re.search(r"^timm==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert table.shipped().timm == pinned[1], "make networks"


def test_the_table_says_what_timm_says() -> None:
    same_timm()
    found = {backbone.name: backbone for backbone in backbones()}
    # Tests of methods bring a network of their own.
    there = [name for name in timm.list_models() if ".testing." not in timm.models.model_entrypoint(name).__module__]
    assert list(found) == there
    weights = {f"{b.name}.{tag}" if tag else b.name for b in found.values() for tag in b.tags}
    assert weights == set(timm.list_pretrained())
    for name, backbone in found.items():
        cfg = timm.get_pretrained_cfg(name)
        assert backbone.input_size == (cfg.input_size if cfg else None)
        if backbone.tags:
            assert backbone.tags[0] == cfg.tag, "the weights that --pretrained takes come first"
    assert all(backbone.size is not None for backbone in found.values())


@pytest.mark.parametrize("name", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_the_table_says_what_a_run_finds(name: str) -> None:
    size = table.shipped().models[name].size
    assert size == as_built(name), "make networks"


@pytest.mark.parametrize("name", timm.list_models("*_cifar"))
def test_the_table_knows_our_networks_as_they_are(name: str) -> None:
    network = built(name)
    width = network.get_classifier().in_features
    size = Size(sum(p.numel() for p in network.parameters()), width, LINEAR)
    assert table.shipped().models[name].size == size, "make networks"


@pytest.mark.slow
def test_the_table_has_the_size_of_any_network() -> None:
    """Of fifty; `make networks` takes half an hour for all of them, and changes nothing."""
    same_timm()
    models = table.shipped().models
    drawn = random.Random(7).sample(sorted(models), 50)
    assert [name for name in drawn if models[name].size != as_built(name)] == [], "make networks"


def test_heads() -> None:
    """What timm's sources say of some networks."""
    others = ("crossvit_tiny_240", "dla46_c", "efficientnet_b0", "gemma4_vit_167m_enc", "repvit_m0_9", "sequencer2d_s")
    heads = {name: table.shipped().models[name].size.classifiers for name in (*SAMPLE, *LARGE, *others)}
    assert {name: head for name, head in heads.items() if head != LINEAR} == {
        "crossvit_tiny_240": ("Linear", "Linear"),
        "dla46_c": ("Conv2d",),
        "gemma4_vit_167m_enc": (),
        "levit_128s": ("NormLinear", "NormLinear"),
        "repvit_m0_9": ("RepVitClassifier",),
        # Its logits are the sum of two classifiers'.
        "volo_d1_224": ("VOLO",),
    }
    dino = table.shipped().models["vit_small_patch14_dinov2"].size
    assert dino == Size(22056192, 384, LINEAR), "counted without the classifier that a run adds"
    assert [Size(1, 1, head).linear for head in (LINEAR, LINEAR * 2, (), ("VOLO",))] == [True, False, False, False]
    assert [Size(1, 1, head).trainable for head in (LINEAR, LINEAR * 2, (), ("VOLO",))] == [True, False, False, True]


def test_a_table_is_written_as_it_is_read() -> None:
    odd = [
        Backbone("bare", None),
        Backbone("unnamed", (1, 2, 3), ("", "tag.of_more"), Size(5, 0, ())),
        Backbone("two", SOME, (), Size(10**10, 7, ("Linear", "Conv2d"))),
    ]
    read = table.parse(table.render("1.2.3", odd))
    assert (read.timm, list(read.models.values())) == ("1.2.3", odd)
    file = ROOT / "train/src/augury_train/catalogue/networks.csv"
    shipped = table.shipped()
    assert table.render(shipped.timm, shipped.models.values()) == file.read_text()


def test_the_guide_has_our_networks_and_their_size() -> None:
    text = (ROOT / "docs/networks.md").read_text()
    rows = re.findall(r"^\| `(\w+_cifar)` \| ([\d,]+) \| (\d+) \|", text, re.MULTILINE)
    told = {name: (int(parameters.replace(",", "")), int(width)) for name, parameters, width in rows}
    sizes = {backbone.name: backbone.size for backbone in backbones("*_cifar")}
    assert told == {name: (size.parameters, size.num_features) for name, size in sizes.items() if size is not None}


def test_patterns() -> None:
    assert [b.name for b in backbones("resnet*_cifar")] == timm.list_models("resnet*_cifar")
    assert [b.name for b in backbones("resnet18")] == ["resnet18"]
    (chosen,) = backbones("resnet18.fb_*")
    assert chosen.tags
    assert all(tag.startswith("fb_") for tag in chosen.tags)
    assert set(chosen.tags) < set(backbones("resnet18")[0].tags)
    assert chosen.size == backbones("resnet18")[0].size


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("resnt20_cifar", "no model matches `resnt20_cifar`. Did you mean `resnet20_cifar`"),
        ("cifar", f"no model matches `cifar`. `*cifar*` matches {len(timm.list_models('*cifar*'))}."),
        ("*20_cifar?", "no model matches `*20_cifar?`. `*20_cifar*` matches 1."),
        (
            "resnet20_cifar.none",
            "no model matches `resnet20_cifar.none`. Weights of `resnet20_cifar`: none with a name.",
        ),
        (
            "resnet34.in12k",
            "no model matches `resnet34.in12k`. Weights of `resnet34`: a1_in1k, a2_in1k, a3_in1k, bt_in1k, ",
        ),
        ("resnt34.in12k", "no model matches `resnt34.in12k`. Did you mean `resnet34`"),
        ("qqqqqq", "no model matches `qqqqqq`. See them all: `augury backbones`."),
        ("", "no model matches ``. See them all"),
    ],
)
def test_what_matches_nothing(pattern: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        backbones(pattern)
    assert str(caught.value).startswith(told)


def test_the_first_answer_imports_no_torch_and_writes_nothing(tmp_path: Path) -> None:
    program = """
import sys
from augury_train.catalogue import absent, backbones, select
assert [b.name for b in backbones("resnet2?_cifar")] == ["resnet20_cifar"]
assert select(backbones(), linear_head=True, max_params=10**6).backbones
assert list(absent(["resnt18", "resnet18"])) == ["resnt18"]
print(*{"torch", "timm", "numpy"} & sys.modules.keys())
"""
    same_timm()
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == ""
    assert list(tmp_path.iterdir()) == []


# Filters.

FOUND = [
    Backbone("small", SOME, (), Size(1_000, 8, LINEAR)),
    Backbone("conv", SOME, (), Size(2_000, 8, ("Conv2d",))),
    Backbone("two", SOME, (), Size(500, 8, ("Linear", "Linear"))),
    Backbone("none", SOME, (), Size(700, 8, ())),
    Backbone("large", SOME, (), Size(3_000_000, 8, LINEAR)),
    Backbone("new", SOME),
]


def left(**filters: Any) -> list[str]:
    selection = select(FOUND, **filters)
    assert selection.unknown == (("new",) if filters else ())
    return [backbone.name for backbone in selection.backbones]


def test_filters() -> None:
    assert left() == [backbone.name for backbone in FOUND]
    assert left(max_params=1_000) == ["small", "two", "none"], "at most"
    assert left(linear_head=True) == ["small", "large"]
    assert left(methods={"any": False}) == ["small", "conv", "large"]
    assert left(methods={"any": False, "strict": True}) == ["small", "large"]
    assert left(methods={"any": False}, max_params=2_500) == ["small", "conv"]


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({"max_params": 499}, "--max-params 499 leaves none of 5 models. The smallest is two, 500 parameters."),
        (
            {"max_params": 800, "linear_head": True},
            "--linear-head leaves none of 2 models. They have 2 classifiers, no classifier. "
            "Widen the pattern, or leave the filter out.",
        ),
        ({"max_params": 600, "methods": {"a": True, "b": False}}, "--for a,b leaves none of 1 model. They have "),
    ],
)
def test_the_filter_that_leaves_none_is_told(filters: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(FOUND, **filters)
    assert str(caught.value).startswith(told)


def test_nothing_is_left_where_no_size_is_known() -> None:
    with pytest.raises(UsageError, match="nothing is left: the size of 1 model that match.* not known.*\\(new\\)"):
        select(FOUND[-1:], linear_head=True)


@pytest.mark.parametrize(
    ("text", "count"),
    [("30M", 30_000_000), ("1.5M", 1_500_000), ("270k", 270_000), ("26000000", 26_000_000), (" 1B ", 10**9)],
)
def test_counts(text: str, count: int) -> None:
    assert parameters_in(text) == count


@pytest.mark.parametrize(
    "text", ["", "M", "-1M", "30m", "30 M", "1e6", "0", "0.0k", "nan", "inf", "3,000", "1.M", "٣M"]
)
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(
        UsageError, match="--max-params must be a number of parameters above 0.*, got .*Write 30M, 1.5M"
    ):
        parameters_in(text)


# timm of another version than the table's.


def test_another_timm_is_asked(other_timm: None) -> None:
    found = {backbone.name: backbone for backbone in backbones()}
    assert list(found) == timm.list_models(), "and what it has no longer is not told"
    cfg = timm.get_pretrained_cfg("resnet18")
    assert found["resnet18"].tags[0] == cfg.tag
    assert found["resnet18"].input_size == cfg.input_size
    assert found["resnet18"].size == Size(18, 1, LINEAR), "what the table knows is not measured"
    assert {b.name for b in found.values() if b.size is not None} == {"resnet18", "resnet20_cifar"}


def test_what_the_table_does_not_have_is_measured_and_kept(other_timm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {b.name: b.size for b in backbones("resnet?[02]_cifar")}
    assert sizes == {
        "resnet20_cifar": Size(20, 2, ("Conv2d",)),
        "resnet32_cifar": Size(464154, 64, LINEAR),
        "resnet50_cifar": Size(23520842, 2048, LINEAR),
    }
    monkeypatch.setattr(asked, "collect", refuse)
    monkeypatch.setattr(asked, "measure", refuse)
    assert {b.name: b.size for b in backbones("resnet?[02]_cifar")} == sizes


def test_many_are_not_measured(other_timm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "measure", refuse)
    assert len(backbones("vit*")) > catalogue.MEASURABLE
    assert all(backbone.size is None for backbone in backbones("vit*"))


def test_a_network_that_cannot_be_built_has_no_size(other_timm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str, **_: Any) -> object:
        raise KeyError(name)

    monkeypatch.setattr(timm, "create_model", create)
    assert backbones("resnet32_cifar")[0].size is None
    monkeypatch.setattr(asked, "measure", refuse)
    assert backbones("resnet32_cifar")[0].size is None, "and is not tried again"


def test_absent(monkeypatch: pytest.MonkeyPatch, other_timm: None) -> None:
    names = ["resnet20_cifar", "resnet18.fb_ssl", "resnt18", "removed"]
    assert absent(names, ask=False) == {}, "nothing is kept, and timm is not asked"
    told = absent(names)
    assert list(told) == ["resnt18", "removed"]
    assert told["resnt18"].startswith(f"needs the model `resnt18`, which timm {timm.__version__} and augury-train ")
    monkeypatch.setattr(asked, "collect", refuse)
    assert absent(names, ask=False) == absent(names) == told
    assert absent([]) == {}


def test_the_second_time_reads_what_was_kept(other_timm: None, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = backbones()
    assert timm.__version__ in kept(folder).name
    monkeypatch.setattr(asked, "collect", refuse)
    assert backbones() == first


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", "{}", '{"stamp": "old", "models": []}'),
        '{"stamp": STAMP, "models": [{"name": "x"}], "sizes": {}}',
        '{"stamp": STAMP, "models": [], "sizes": []}',
        '{"stamp": STAMP, "models": [], "sizes": {"x": {"parameters": "y"}}}',
    ],
)
def test_a_cache_that_is_damaged_or_old_is_made_anew(other_timm: None, folder: Path, text: str) -> None:
    first = backbones("resnet20_cifar")
    good = kept(folder).read_text()
    kept(folder).write_text(text.replace("STAMP", json.dumps(json.loads(good)["stamp"])))
    assert backbones("resnet20_cifar") == first
    assert kept(folder).read_text() == good


def test_it_is_made_anew_when_our_networks_change(other_timm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    backbones("resnet20_cifar")
    monkeypatch.setattr(asked, "_stamp", lambda: "other")
    monkeypatch.setattr(asked, "collect", lambda: {"new": Backbone("new", None)})
    monkeypatch.setattr(asked, "measure", lambda names: dict.fromkeys(names))
    assert backbones() == [Backbone("new", None)]
    assert backbones() == [Backbone("new", None)]


def test_a_cache_that_cannot_be_written_does_not_matter(other_timm: None, folder: Path) -> None:
    folder.write_text("a file")
    assert len(backbones("resnet?8_cifar")) == len(timm.list_models("resnet?8_cifar"))
