"""Subsets: what a run trains on, what is refused, and what a resumed run needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.small_runs import interrupted, rows_of, small

from augury.errors import UsageError
from augury_train.config import RunConfig
from augury_train.data.subset import FILE, own_subset, write_subset
from augury_train.training.facts import stage_facts
from augury_train.training.plan import lasting, make_plan
from augury_train.training.trainer import resume, train

WHOLE: dict[str, Any] = {"images_per_class": None}


def subset(path: Path, share: int = 3, **data: Any) -> Path:
    """A file that names each `share`-th training image of the digits."""
    plan = make_plan(small(data={**WHOLE, **data}))
    train = plan.data.splits.train
    write_subset(path, train.source, train.rows[::share], plan.data.classes, plan.config.data, {"by": "hand"})
    return path


def with_subset(path: Path, **data: Any) -> RunConfig:
    return small(data={**WHOLE, "subset": str(path), **data})


def changed(path: Path, **values: Any) -> Path:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_a_run_trains_on_the_named_images_alone(tmp_path: Path) -> None:
    whole = make_plan(small(data=WHOLE)).data.splits
    some = make_plan(with_subset(subset(tmp_path / "some.json"))).data.splits
    assert torch.equal(some.train.rows, whole.train.rows[::3])
    assert torch.equal(some.train.labels, whole.train.labels[::3])
    assert some.val is not None
    assert whole.val is not None
    assert torch.equal(some.val.rows, whole.val.rows)
    assert some.test is not None
    assert whole.test is not None
    assert torch.equal(some.test.rows, whole.test.rows)


def test_the_order_in_the_file_does_not_matter_and_images_per_class_comes_after(tmp_path: Path) -> None:
    path = subset(tmp_path / "some.json")
    before = make_plan(with_subset(path)).data.splits.train.rows
    changed(path, rows=json.loads(path.read_text())["rows"][::-1])
    assert torch.equal(make_plan(with_subset(path)).data.splits.train.rows, before)
    few = make_plan(with_subset(path, images_per_class=4)).data.splits.train
    assert torch.bincount(few.labels).tolist() == [4] * 10
    assert torch.isin(few.rows, before).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rows": []}, "at least one"),
        ({"rows": [1, 1]}, "different whole numbers"),
        ({"rows": [5000]}, "below `images`"),
        ({"rows": [True, 2]}, "whole numbers"),
        ({"rows": None}, "'rows' is missing"),
        ({"labels": None}, "'labels' is missing"),
        ({"classes": 5}, "its `classes` must be a list of texts, got 5"),
        ({"classes": [1, 2]}, "its `classes` must be a list of texts"),
        ({"images": True}, "its `images` must be a whole number, got true"),
        ({"split_seed": "0"}, "its `split_seed` must be a whole number, got"),
    ],
)
def test_damaged_files_are_refused(values: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = changed(subset(tmp_path / "some.json"), **values)
    with pytest.raises(UsageError, match=f"some.json: no subset can be read of it: .*{told}.*--keep 0.15"):
        make_plan(with_subset(path))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent.json: no such file. `augury uncertainty"):
        make_plan(with_subset(tmp_path / "absent.json"))
    (tmp_path / "text.json").write_text("half of")
    with pytest.raises(UsageError, match=r"text.json: no subset can be read of it"):
        make_plan(with_subset(tmp_path / "text.json"))
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(UsageError, match=r"list.json: no subset can be read of it"):
        make_plan(with_subset(tmp_path / "list.json"))


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    path = subset(tmp_path / "some.json")
    with pytest.raises(UsageError, match=r"images of `digits` \(1797 images in 10 classes\), and `synthetic:\S+` here"):
        make_plan(with_subset(path, dataset="synthetic:classes=4,images=400"))
    changed(path, labels="0" * 16)
    with pytest.raises(UsageError, match="`digits` here has as many, but the images' labels differ"):
        make_plan(with_subset(path))
    changed(path, classes=[*"012345678", "x"])
    with pytest.raises(UsageError, match=r"`digits` here has other classes \(`9` in the place of `x`\)"):
        make_plan(with_subset(path))


def test_null_is_no_list_of_classes(tmp_path: Path) -> None:
    path = subset(tmp_path / "some.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": None}))
    with pytest.raises(UsageError, match="its `classes` must be a list of texts, got null"):
        make_plan(with_subset(path))


def test_images_that_are_held_out_are_refused(tmp_path: Path) -> None:
    path = subset(tmp_path / "some.json")
    with pytest.raises(
        UsageError, match=r"of its 377 images are not in the training split, `\w+ \d+` first. .*data.split_seed=0"
    ):
        make_plan(with_subset(path, split_seed=1))


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    path = subset(tmp_path / "some.json", share=1)
    train = make_plan(small(data=WHOLE)).data.splits.train
    changed(path, rows=train.rows[train.labels != 4].tolist())
    with pytest.raises(UsageError, match="class `4`: no training image is left"):
        make_plan(with_subset(path))


def test_stages_are_kept_apart_by_images_not_by_path(tmp_path: Path) -> None:
    one, other = subset(tmp_path / "one.json"), subset(tmp_path / "other.json")
    facts = [stage_facts(make_plan(with_subset(path))) for path in (one, other)]
    assert facts[0] == facts[1]
    assert facts[0] != stage_facts(make_plan(with_subset(subset(tmp_path / "less.json", share=4))))
    assert "subset" not in stage_facts(make_plan(small(data=WHOLE)))["data"]


def test_settings_last_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subset(tmp_path / "some.json")
    monkeypatch.chdir(tmp_path)
    config = lasting(with_subset(Path("some.json")))
    assert config.data.subset == str((tmp_path / "some.json").resolve())
    assert own_subset(config, tmp_path / "nowhere") == config


def test_a_resumed_run_needs_no_file_but_its_own(tmp_path: Path) -> None:
    path = subset(tmp_path / "some.json", share=10)
    config = with_subset(path)
    whole = tmp_path / "whole"
    train(config, whole)
    assert (whole / FILE).read_bytes() == path.read_bytes()
    assert json.loads((whole / "config.json").read_text())["data"]["subset"] == str(path)
    assert json.loads((whole / "data.json").read_text())["images"]["train"] == 114
    broken = tmp_path / "broken"
    interrupted(config, broken, steps=5)
    path.unlink()
    resume(broken)
    assert rows_of(broken) == rows_of(whole)
