"""ReSmooth in a composition: the loss is the formula's, the stage makes what it needs, the state comes back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.plugins.resmooth.networks import (
    AUGMENTED,
    BASE,
    MIXTURE,
    SIDE,
    C,
    Network,
    composed,
    make_batch,
    pattern,
    trained,
    with_builder,
)
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

import augury
from augury.composition import Composition
from augury_resmooth import ReSmooth
from augury_resmooth.functional import Mixture, fit_mixture


def formula(logits: Tensor, frozen: nn.Module, batch: augury.Batch, prob: float, org: float, aug: float) -> float:
    """The loss from the paper's formulas, row by row in Python's floats."""
    means: dict[int, list[float]] = {BASE: [], AUGMENTED: []}
    judged = frozen(batch.images).detach().double()
    for i, pipeline in enumerate(batch.pipeline.tolist()):
        label = int(batch.labels[i, 0])
        loss = math.log(sum(math.exp(z) for z in judged[i].tolist())) - float(judged[i, label])
        x = math.log(loss + 1e-10)
        density = [w * math.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(v) for w, m, v in zip(*MIXTURE, strict=True)]
        q = density[0] / sum(density)
        epsilon = org if pipeline == BASE else (1 - q) * aug
        log_p = logits[i].double().log_softmax(0)
        means[pipeline].append(float(-(1 - epsilon) * log_p[label] - epsilon * log_p.mean()))
    average = {part: sum(values) / len(values) for part, values in means.items() if values}
    if len(average) == 1:
        return next(iter(average.values()))
    return prob * average[BASE] + (1 - prob) * average[AUGMENTED]


@pytest.mark.parametrize("prob", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("rows", "base_rows"), [(10, 2), (7, 3), (13, 1), (5, 0), (5, 5), (1, 0), (64, 40)])
def test_loss_is_the_formula(rows: int, base_rows: int, prob: float) -> None:
    network, options = trained(), {"prob": prob, "smooth_org": 0.05, "smooth_aug": 0.7}
    methods = composed(network=network, **options)
    batch, logits = make_batch(methods, pattern(rows, base_rows)), 2 * torch.randn(rows, C)
    expected = formula(logits, network, batch, prob, 0.05, 0.7)
    methods.augment_batch(batch)
    loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(rows, 1), logits))
    assert float(loss) == pytest.approx(expected, abs=1e-6)
    assert batch.smoothing.shape == (rows, 1)
    assert batch.smoothing.dtype == batch.row_weights.dtype == torch.float32


def test_loss_of_two_views_is_the_formula() -> None:
    class TwoViews(augury.Method):
        views = 2

        @augury.hookimpl
        def post_epoch(self) -> None:
            return None

    network = trained()
    methods = composed(TwoViews, network=network, prob=0.3)
    batch, logits = make_batch(methods, pattern(14, 4)), torch.randn(14, C)
    expected = formula(logits, network, batch, 0.3, 0.0, 0.4)
    methods.augment_batch(batch)
    loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(14, 1), logits))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_smoothing_that_was_there_is_kept() -> None:
    methods = composed(smooth_org=0.2, smooth_aug=1.0)
    alone, together = (make_batch(methods, pattern(12, 5)) for _ in range(2))
    together.pipeline = alone.pipeline
    together.smoothing += 0.1
    together.row_weights *= 3
    for batch in (alone, together):
        methods.augment_batch(batch)
    torch.testing.assert_close(together.smoothing, 1 - 0.9 * (1 - alone.smoothing))
    torch.testing.assert_close(together.row_weights, 3 * alone.row_weights)
    assert float((together.smoothing - alone.smoothing).min()) >= 0


def test_images_on_which_the_frozen_network_overflows_are_out_of_distribution() -> None:
    methods = composed(smooth_aug=0.4)
    batch = make_batch(methods, [AUGMENTED] * 4)
    batch.images[1], batch.images[2] = math.inf, math.nan
    methods.augment_batch(batch)
    assert batch.smoothing[1:3, 0].tolist() == pytest.approx([0.4, 0.4])
    assert batch.smoothing.isfinite().all()


def test_pipelines_are_asked_for_by_prob() -> None:
    assert composed(prob=0.25).pipeline_shares == {"base": 0.25, "augmented": 0.75}
    assert composed(prob=0.0).pipeline_shares == {"base": 0.0, "augmented": 1.0}


def test_autocast_changes_nothing_that_it_measures() -> None:
    methods = composed()
    plain, cast = (make_batch(methods, [AUGMENTED] * 8) for _ in range(2))
    methods.augment_batch(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        methods.augment_batch(cast)
    assert torch.equal(plain.smoothing, cast.smoothing)


def test_frozen_network_is_never_trained() -> None:
    given = trained()
    methods, network = composed(network=given), Network()
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    optimizer = torch.optim.SGD([*network.parameters(), *methods.parameters()], lr=1.0)
    assert list(methods.parameters()) == []
    for step in range(3):
        methods.train()
        assert not any(m.training for m in methods["resmooth"].frozen.modules())
        batch = make_batch(methods, pattern(10, 3), seed=step)
        methods.augment_batch(batch)
        logits = network(batch.images)
        methods.compute_loss(batch, augury.ModelOutput(batch.images.flatten(1), logits)).backward()
        optimizer.step()
        methods.step()
    frozen = methods["resmooth"].frozen.module.state_dict()
    for name, tensor in before.items():
        assert torch.equal(frozen[name], tensor), name
        assert not frozen[name].requires_grad
    assert not any("frozen" in name for name in network.state_dict())
    # A copy: training the network that was given changes nothing here.
    given.fc.weight.data.zero_()
    assert methods["resmooth"].frozen.module.fc.weight.abs().sum() > 0


class Host:
    """Lends what a trainer lends, from memory: base images, and augmented ones of more contrast."""

    folder = None

    def __init__(self, rows: slice = slice(None), seed: int = 5) -> None:
        images, labels = 2 + 3 * torch.randn(90, 1, SIDE, SIDE, generator=torch.manual_seed(2)), torch.arange(90) % C
        self.whole, self.rows = {"base": images, "augmented": 2 * images.flip(3)}, torch.arange(90)[rows]
        self.images = {name: both[rows] for name, both in self.whole.items()}
        self.all_labels, self.labels = labels, labels[rows]
        self.network, self.asked, self.figures = trained(seed), [], {}

    def loader(self, pipeline: str, images: Tensor | None = None) -> Iterable[augury.Batch]:
        for part in (self.rows if images is None else images).split(20):
            yield augury.Batch.of(self.whole[pipeline][part], self.all_labels[part])

    def train_network(self, pipeline: str, key: str) -> nn.Module:
        self.asked.append((pipeline, key))
        return self.network

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        self.figures[name] = figure

    def log_images(self, name: str, images: Tensor, captions: Sequence[str], step: int) -> None:
        self.figures[name] = (images, captions)

    def log_losses(self, pipeline: str) -> Tensor:
        with torch.no_grad():
            logits = self.network(self.images[pipeline]).double()
        return (nn.functional.cross_entropy(logits, self.labels, reduction="none") + 1e-10).log()


def fitted(methods: Composition) -> Mixture:
    method = methods["resmooth"]
    return Mixture(*(tuple(getattr(method, name).tolist()) for name in Mixture._fields))  # type: ignore[arg-type]


def equal_states(one: Composition, other: Composition) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def seed_of(methods: Composition) -> int:
    """The seed of the fit: the method's own first draw on the host at step 0."""
    return augury.Run(methods.run, "resmooth").random.getrandbits(32)


def test_stage_trains_on_base_and_fits_both_pipelines() -> None:
    methods, host = with_builder(), Host()
    assert all(math.isnan(number) for pair in fitted(methods) for number in pair)
    methods.pre_train_stage(host)
    assert host.asked == [("base", "resmooth")]
    frozen = methods["resmooth"].frozen.module.state_dict()
    assert all(torch.equal(frozen[name], tensor) for name, tensor in host.network.state_dict().items())
    losses = torch.cat([host.log_losses("base"), host.log_losses("augmented")])
    np.testing.assert_allclose(fitted(methods), fit_mixture(losses, seed_of(methods)), rtol=1e-9)
    assert fitted(methods).fault() is None
    assert list(host.figures) == ["resmooth/losses", "resmooth/extremes"]


def test_stage_uses_what_is_given() -> None:
    given, host = trained(7), Host(seed=7)
    methods = augury.compose([(ReSmooth, {"frozen": given})], num_classes=C)
    methods.pre_train_stage(host)
    assert host.asked == []
    losses = torch.cat([host.log_losses("base"), host.log_losses("augmented")])
    np.testing.assert_allclose(fitted(methods), fit_mixture(losses, seed_of(methods)), rtol=1e-9)
    methods, host = composed(), Host()
    methods.pre_train_stage(host)
    assert (host.asked, host.figures, fitted(methods)) == ([], {}, MIXTURE)


def test_state_comes_back_into_a_method_built_anew() -> None:
    methods, host = with_builder(), Host()
    methods.pre_train_stage(host)
    methods.augment_batch(make_batch(methods, pattern(20, 4)))
    again = with_builder()
    assert not equal_states(again, methods)
    again.load_state_dict(methods.state_dict())
    assert equal_states(again, methods)
    method = methods["resmooth"]
    assert method.judged.sum() == method.losses.sum() == method.smoothings.sum() == 16
    batches = [make_batch(m, [AUGMENTED] * 10) for m in (methods, again)]
    for m, batch in zip((methods, again), batches, strict=True):
        m.augment_batch(batch)
    assert torch.equal(batches[0].smoothing, batches[1].smoothing)


def test_a_mixture_loaded_later_is_the_one_used() -> None:
    methods = composed()
    methods.augment_batch(make_batch(methods, [AUGMENTED] * 5))
    state = methods.state_dict()
    state["methods.resmooth.means"] = torch.tensor([-99.0, -50.0]).double()
    methods.load_state_dict(state)
    batch = make_batch(methods, [AUGMENTED] * 5)
    methods.augment_batch(batch)
    assert batch.smoothing[:, 0].tolist() == pytest.approx([0.4] * 5)


def test_epoch_tells_the_share_out_of_distribution() -> None:
    methods, host = composed(smooth_org=0.3, smooth_aug=0.5), Host()
    methods.run.host = host
    batches = [make_batch(methods, pattern(40, 10), seed=s) for s in range(3)]
    for batch in batches:
        methods.augment_batch(batch)
    smooth = torch.cat([b.smoothing[b.pipeline == AUGMENTED] for b in batches])
    row = methods.post_epoch({"epoch": 1})
    # P(ID) < 1/2 is a smoothing of more than half of smooth_aug.
    assert row["resmooth/ood_share"] == pytest.approx(float((smooth > 0.25).double().mean()))
    assert 0 < row["resmooth/ood_share"] < 1
    assert row["resmooth/smoothing"] == pytest.approx(float(torch.cat([b.smoothing for b in batches]).mean()))
    assert list(host.figures) == ["resmooth/epoch_losses", "resmooth/smoothing"]
    host.figures.clear()
    # The next epoch starts from nothing; one without augmented rows has no share to tell.
    methods.augment_batch(make_batch(methods, [BASE] * 4))
    assert methods.post_epoch({"epoch": 2}) == {"resmooth/smoothing": pytest.approx(0.3)}
    methods.augment_batch(make_batch(methods, [AUGMENTED] * 4))
    assert "resmooth/ood_share" in methods.post_epoch({"epoch": 3})
    assert host.figures == {}


class Mixing(augury.Method):
    """Blends each row with the next one of the batch."""

    mixes = True

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        sources = torch.stack([torch.arange(len(batch)), torch.arange(len(batch)).roll(-1)], 1)
        batch.mix(batch.images, sources, torch.tensor([[0.75, 0.25]]).expand(len(batch), 2))


def test_it_must_be_named_before_a_method_that_mixes() -> None:
    with pytest.raises(
        augury.UsageError, match="resmooth must see images before mixing mixes them. Name resmooth before"
    ):
        augury.compose([Mixing, (ReSmooth, {"frozen": trained(), "mixture": MIXTURE})], num_classes=C)
    alone, mixed = composed(), composed(Mixing)
    batches = [make_batch(m, [1, 0, 1, 1, 0, 1, 1]) for m in (alone, mixed)]
    for methods, batch in zip((alone, mixed), batches, strict=True):
        methods.augment_batch(batch)
    one, two = batches
    torch.testing.assert_close(two.smoothing, torch.cat([one.smoothing, one.smoothing.roll(-1, 0)], 1))
    torch.testing.assert_close(two.row_weights, 0.75 * one.row_weights + 0.25 * one.row_weights.roll(-1))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prob": 1.5}, "option `prob` must be <= 1, got 1.5"),
        ({"prob": -0.1}, "option `prob` must be >= 0"),
        ({"prob": math.nan}, "option `prob` must be"),
        ({"smooth_org": 2}, "option `smooth_org` must be <= 1"),
        ({"smooth_aug": "much"}, "option `smooth_aug` must be a number, got 'much'"),
        ({"frozen": "resnet18"}, "option `frozen` must be an instance of Module"),
        ({"smooth_augg": 0.1}, "Did you mean `smooth_aug`"),
        ({"mixture": MIXTURE}, "option `mixture` must be given together with `frozen`"),
        ({"frozen": Network(), "mixture": ((0.5, 0.5), (1, 0), (1, 1))}, "must be a mixture whose first component"),
        ({"frozen": Network(), "mixture": [0.5, 0.5]}, "option `mixture"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(augury.UsageError, match=r"resmooth: ") as error:
        augury.compose([(ReSmooth, options)], num_classes=C)
    assert told in str(error.value)


def test_defaults_are_those_of_the_card() -> None:
    options = ReSmooth.Options()
    assert (options.prob, options.smooth_org, options.smooth_aug) == (0.2, 0.0, 0.4)
    assert (options.loss, options.weighting, options.variant) == ("sample_smooth", "regular", "paper")
    assert {"frozen", "mixture"} & set(ReSmooth.Options(frozen=Network(), mixture=MIXTURE).model_dump()) == set()


def test_what_is_missing_is_told() -> None:
    with pytest.raises(augury.UsageError, match='Pass \\("resmooth", {"frozen": model}\\)'):
        augury.compose([ReSmooth], num_classes=C)
    methods = augury.compose([(ReSmooth, {"frozen": trained()})], num_classes=C)
    with pytest.raises(augury.UsageError, match=r"resmooth: its mixture is not fitted. Call methods.pre_train_stage"):
        methods.augment_batch(make_batch(methods, [AUGMENTED] * 3))
    with pytest.raises(augury.UsageError, match="resmooth: needs the data"):
        methods.pre_train_stage()


def test_a_network_of_other_classes_is_told() -> None:
    methods = composed(network=Network(C + 1))
    with pytest.raises(augury.UsageError, match=r"`frozen` must give logits of 4 classes .* got the shape \(3, 5\)"):
        methods.augment_batch(make_batch(methods, [AUGMENTED] * 3))


def test_a_diverged_network_is_told() -> None:
    methods, host = with_builder(), Host()
    host.network.fc.bias.data.fill_(math.inf)
    with pytest.raises(augury.AuguryError, match="loss must be finite and is not on 180 of 180 images"):
        methods.pre_train_stage(host)


def join_and_step(rank: int, size: int, folder: Path) -> None:
    """The stage and one step, on this process's share of images and rows."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    methods = with_builder(prob=0.3)
    # Each process brings a network with statistics of its own; the first one's must be everyone's.
    methods.pre_train_stage(Host(slice(rank * 90 // size, (rank + 1) * 90 // size), seed=5 + rank))
    # Base rows are not shared evenly: 3 of the first half's, 1 of the second's.
    whole = make_batch(methods, [0, 0, 1, 0, 1, 1, 1, 1, 1, 0])
    rows = slice(rank * 10 // size, (rank + 1) * 10 // size)
    logits = torch.randn(10, C, generator=torch.manual_seed(3))[rows].requires_grad_()
    batch = augury.Batch(**{name: t[rows] for name, t in vars(whole).items() if isinstance(t, Tensor)})
    methods.augment_batch(batch)
    loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(len(logits), 1), logits))
    state = methods.state_dict()
    found = {"loss": methods.run.ranks.mean(loss.detach()), "weight": methods.run.ranks.gather_rows(batch.row_weights)}
    torch.save({**found, **state}, folder / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_on_half_batches_give_what_one_gives(tmp_path: Path) -> None:
    join_and_step(0, 1, tmp_path)
    mp.spawn(join_and_step, args=(2, tmp_path), nprocs=2)
    one, *both = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert one["methods.resmooth.judged"].sum() == 6
    for found in both:
        torch.testing.assert_close(found, one, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(both[0][name], both[1][name]) for name in one)
