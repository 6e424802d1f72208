"""ReSmooth's stage in whole runs on digits: what it is given, what it keeps, what it shows, what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.small_runs import interrupted, rows_of, small

import augury
from augury_resmooth.functional import LOSS_BINS, Mixture, fit_mixture, histogram
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, resume, train


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "base"
    train(small(data={"augmented": "crop:1"}), folder)
    return folder


@pytest.mark.parametrize("file", ["", "best.safetensors"])
def test_a_pretrained_network_is_the_frozen_one(base_run: Path, file: str, tmp_path: Path) -> None:
    config = small(("resmooth", {"pretrained": str(base_run / file)}))
    trainer = Trainer(make_plan(config))
    trainer.train_network = None  # type: ignore[method-assign, assignment]
    trainer.run(tmp_path / "run")
    weights = load_file(base_run / "best.safetensors")
    frozen = trainer.methods["resmooth"].frozen.module.state_dict()
    assert weights.keys() == frozen.keys()
    assert all(torch.equal(weights[name], frozen[name]) for name in weights)
    assert {p.name for p in (tmp_path / "run" / "stages" / "resmooth").iterdir()} == {"mixture.safetensors"}
    assert "resmooth/ood_share" in rows_of(tmp_path / "run")[-1]


@pytest.mark.slow
def test_another_network_in_the_same_file_is_another_stage(base_run: Path, tmp_path: Path) -> None:
    config, file = small(("resmooth", {"pretrained": str(tmp_path / "w.pt")})), tmp_path / "w.pt"
    weights, kept = load_file(base_run / "best.safetensors"), []
    for number, scale in enumerate((1.0, 1.5, 1.0)):
        torch.save({**weights, "fc.weight": scale * weights["fc.weight"]}, file)
        others = [tmp_path / str(earlier) for earlier in range(number)]
        trainer = Trainer(make_plan(config), others=others)
        trainer.run(tmp_path / str(number))
        kept.append([t.clone() for t in trainer.methods["resmooth"].buffers() if t.dtype == torch.float64])
        frozen = trainer.methods["resmooth"].frozen.module.fc.weight
        assert torch.equal(frozen, scale * weights["fc.weight"])
    assert all(torch.equal(a, b) for a, b in zip(kept[0], kept[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(kept[0], kept[1], strict=True))


@pytest.mark.slow
def test_a_pretrained_network_may_be_gone_when_the_run_goes_on(tmp_path: Path) -> None:
    train(small(), tmp_path / "base")
    config = small(("resmooth", {"pretrained": str(tmp_path / "base")}))
    train(config, tmp_path / "whole")
    interrupted(config, tmp_path / "resumed", 3)
    (tmp_path / "base").rename(tmp_path / "away")
    resume(tmp_path / "resumed")
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "resumed")


def problems(*methods: Any, **sections: Any) -> str:
    with pytest.raises(augury.UsageError) as error:
        make_plan(small(*methods, **sections))
    return str(error.value)


def test_a_network_of_another_model_is_refused_before_training(base_run: Path) -> None:
    method = ("resmooth", {"pretrained": str(base_run)})
    told = problems(method, model={"name": "resnet32_cifar"})
    assert told == (
        f"resmooth: option `pretrained`: {base_run}/best.safetensors holds a `resnet20_cifar`, and this run trains a "
        "`resnet32_cifar`. Give one of that model."
    )


def test_a_network_of_other_classes_is_refused(base_run: Path) -> None:
    data = {"dataset": "synthetic:classes=3,size=8,channels=1", "images_per_class": None}
    told = problems(("resmooth", {"pretrained": str(base_run)}), data=data)
    assert "was trained on other classes than this run has: 10 (0, 1, 2, ...) and 3 (class 0, class 1, class 2)" in told


def test_a_network_of_other_normalisation_is_refused(base_run: Path) -> None:
    told = problems(("resmooth", {"pretrained": str(base_run)}), data={"std": [0.5]})
    assert "was trained on images normalised with std [0.3759], this run's have [0.5]" in told
    assert "Set it with --set 'data.std=[0.3759]'." in told


def test_a_file_that_says_nothing_is_judged_by_its_weights(base_run: Path, tmp_path: Path) -> None:
    weights = load_file(base_run / "best.safetensors")
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": weights}, path)
    make_plan(small(("resmooth", {"pretrained": str(path)})))
    weights["fc.weight"] = weights["fc.weight"][:7]
    del weights["bn1.bias"]
    torch.save(weights, path)
    told = problems(("resmooth", {"pretrained": str(path)}))
    assert "its weights are not those of a `resnet20_cifar` of 10 classes: `bn1.bias` is missing (and 1 more)" in told


@pytest.mark.parametrize(
    ("content", "told"), [(None, "no such file"), (b"PK", "cannot be read"), ("folder", "has no best.safetensors")]
)
def test_what_is_no_network_is_refused(content: bytes | str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    line = problems(("resmooth", {"pretrained": str(path)}))
    assert line.startswith(f"resmooth: option `pretrained`: {path}")
    assert told in line
    assert "\n" not in line


def test_a_network_that_tells_nothing_apart_is_told(base_run: Path, tmp_path: Path) -> None:
    weights = load_file(base_run / "best.safetensors")
    torch.save({**weights, "fc.weight": 0 * weights["fc.weight"], "fc.bias": 0 * weights["fc.bias"]}, tmp_path / "w.pt")
    trainer = Trainer(make_plan(small(("resmooth", {"pretrained": str(tmp_path / "w.pt")}))))
    with pytest.raises(
        augury.AuguryError, match=r"resmooth: one component .* is empty.*loss is 2.3 to 2.3.*loss=smooth"
    ):
        trainer.methods.pre_train_stage()


@pytest.mark.parametrize(
    "losses",
    [torch.full((50,), -3.0), torch.zeros(2), torch.cat([torch.full((999,), 0.5), torch.full((1,), 0.5 + 1e-9)])],
)
def test_losses_that_are_one_heap_make_a_useless_mixture(losses: torch.Tensor) -> None:
    mixture = fit_mixture(losses.double(), seed=0)
    assert mixture.useless(len(losses)) is not None


def test_a_mixture_of_one_component_twice_is_useless() -> None:
    assert "the same" in str(Mixture((0.5, 0.5), (-1.0, -1.0 + 1e-9), (1.0, 2.0)).useless(100))
    assert Mixture((0.5, 0.5), (-1.0, -0.5), (1.0, 2.0)).useless(100) is None


def test_losses_of_two_heaps_make_a_useful_one() -> None:
    torch.manual_seed(0)
    losses = torch.cat([torch.randn(300) - 6, 0.5 * torch.randn(100)]).double()
    assert fit_mixture(losses, seed=0).useless(len(losses)) is None


def test_what_is_kept_is_what_was_measured(tmp_path: Path) -> None:
    config = small("resmooth")
    train(config, tmp_path / "run")
    kept = load_file(tmp_path / "run" / "stages" / "resmooth" / "mixture.safetensors")
    # Eighty of the hundred images train.
    images = len(make_plan(config).data.splits.train)
    assert kept["base"].shape == kept["augmented"].shape == (images,)
    assert kept["base"].dtype == torch.float64
    assert kept["mixture"].shape == (3, 2)
    assert not torch.equal(kept["augmented"], kept["base"])
    assert {p.name for p in (tmp_path / "run" / "figures" / "resmooth").iterdir()} == {
        "losses.png",
        "extremes.png",
        "epoch_losses.png",
        "smoothing.png",
    }


def test_the_images_shown_are_the_most_and_the_least_in_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(
        Trainer, "log_images", lambda self, name, images, captions, step: shown.append((images, captions))
    )
    trainer = Trainer(make_plan(small("resmooth")))
    trainer.methods.pre_train_stage()
    ((images, captions),) = shown
    assert len(images) == len(captions) == 16
    method = trainer.methods["resmooth"]
    mixture, asked = method._mixture(), {}
    for batch in trainer.loader("augmented"):
        losses = method._log_losses(batch.images, batch.labels, batch.shares)
        for x, image in zip(losses.tolist(), batch.images, strict=True):
            id_, ood = (math.log(w / math.sqrt(v)) - (x - m) ** 2 / (2 * v) for w, m, v in zip(*mixture, strict=True))
            asked[id_ - ood] = image
    order = sorted(asked, reverse=True)
    for image, odds in zip(images, order[:8] + order[-8:], strict=True):
        assert torch.equal(image, asked[odds])
    probability = 100 / (1 + math.exp(-order[-1]))
    assert captions[-1].endswith(f"P(ID) {probability:.1f} %" if probability >= 0.1 else "P(ID) < 0.1 %")


def test_histograms_count_everything_once() -> None:
    losses = torch.tensor([-23.03, -1e9, 1e9, 0.1, torch.nan, torch.inf]).double()
    counts = histogram(losses)
    assert counts.sum() == 6
    assert counts[0] == 2
    assert counts[-1] == 3
    low, high, edges = LOSS_BINS
    assert int(counts[1:-1].nonzero()) + 1 == int((0.1 - low) / ((high - low) / (edges - 1)))
    assert histogram(losses, torch.zeros(6, dtype=torch.int64)).sum() == 0


def test_no_stage_is_run_where_none_is_needed(tmp_path: Path) -> None:
    for options in ({"loss": "smooth"}, {"weighting": "uniform"}):
        trainer = Trainer(make_plan(small(("resmooth", options))))
        trainer.train_network = None  # type: ignore[method-assign, assignment]
        trainer.run(tmp_path / next(iter(options)))
        assert not (tmp_path / next(iter(options)) / "stages").exists()


@pytest.mark.parametrize(
    "options", [{"loss": "distill", "top_k": 3}, {"fair_comparison": "mix", "prob": 0.0}, {"weighting": "random"}]
)
@pytest.mark.slow
def test_ablations_resume_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    config = small(("resmooth", options), "isda")
    train(config, tmp_path / "whole")
    interrupted(config, tmp_path / "resumed", 11)
    resume(tmp_path / "resumed")
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "resumed")
