"""Batch: what it holds, its views, and how everything that belongs to a row travels when rows are mixed."""

from __future__ import annotations

import copy

import pytest
import torch

from augury.batch import Batch, ModelOutput

FIELDS = ("images", "labels", "shares", "label_weights", "smoothing", "row_weights", "pipeline", "indices")


def random_batch(n: int = 4, views: int = 1, k: int = 2, classes: int = 3) -> Batch:
    """A batch in which every field differs from row to row."""
    rows = n * views
    batch = Batch.of(torch.randn(rows, 2, 3, 3), torch.zeros(rows), views=views)
    batch.labels = torch.randint(classes, (rows, k))
    batch.shares = torch.rand(rows, k).softmax(1)
    batch.label_weights = torch.rand(rows, k) + 0.5
    batch.smoothing = torch.rand(rows, k)
    batch.row_weights = torch.rand(rows) + 0.5
    batch.pipeline = torch.arange(rows) % 2
    batch.indices = 100 + torch.arange(n).repeat(views)
    return batch


def test_of_makes_an_unmixed_unsmoothed_batch() -> None:
    images = torch.randn(6, 3, 4, 5)
    batch = Batch.of(images, torch.tensor([2, 0, 1, 2, 0, 1], dtype=torch.int32), views=2)
    assert batch.images is images
    assert len(batch) == 6
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [[2], [0], [1], [2], [0], [1]]
    for field, shape, value in [
        ("shares", (6, 1), 1),
        ("label_weights", (6, 1), 1),
        ("smoothing", (6, 1), 0),
        ("row_weights", (6,), 1),
    ]:
        tensor = getattr(batch, field)
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, torch.full(shape, float(value)))
    assert batch.pipeline.dtype == batch.indices.dtype == torch.int64
    assert batch.pipelines == ("base", "augmented")
    assert batch.made_by("augmented").all()
    assert not batch.made_by("base").any()
    assert batch.indices.tolist() == [0, 1, 2, 0, 1, 2]
    assert not batch.mixed
    assert batch.device == images.device


def test_of_takes_pipelines_and_indices() -> None:
    batch = Batch.of(
        torch.zeros(3, 1, 2, 2),
        torch.zeros(3),
        pipeline=torch.tensor([1, 0, 2]),
        indices=torch.tensor([7, 8, 9]),
        pipelines=("base", "augmented", "severe"),
    )
    assert batch.made_by("base").tolist() == [False, True, False]
    assert batch.made_by("severe").tolist() == [False, False, True]
    assert batch.indices.tolist() == [7, 8, 9]


def test_a_view_is_a_batch_that_shares_memory() -> None:
    batch = random_batch(n=4, views=3)
    assert batch.view_slices() == [slice(0, 4), slice(4, 8), slice(8, 12)]
    second = batch.view(1)
    assert (len(second), second.views, second.pipelines) == (4, 1, batch.pipelines)
    for field in FIELDS:
        assert torch.equal(getattr(second, field), getattr(batch, field)[4:8]), field
    second.images.zero_()
    assert not batch.images[4:8].any()
    assert batch.images[:4].any()


def test_a_permutation_stays_within_each_view_and_follows_the_generator() -> None:
    batch = random_batch(n=20, views=2)
    drawn = batch.permutation(torch.Generator().manual_seed(3))
    assert sorted(drawn[:20].tolist()) == list(range(20))
    assert sorted(drawn[20:].tolist()) == list(range(20, 40))
    assert not torch.equal(drawn[:20], drawn[20:] - 20), "each view has its own"
    assert torch.equal(drawn, batch.permutation(torch.Generator().manual_seed(3)))
    assert not torch.equal(drawn, batch.permutation(torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("sources_each", [1, 2, 3])
def test_labels_with_their_weights_and_smoothing_and_row_weights_travel_with_the_images(
    views: int, sources_each: int
) -> None:
    before = random_batch(n=5, views=views, k=2)
    batch = copy.deepcopy(before)
    rows = len(batch)
    others = [before.permutation(torch.Generator().manual_seed(s)) for s in range(sources_each - 1)]
    sources = torch.stack([torch.arange(rows), *others], 1)
    shares = torch.rand(rows, sources_each).softmax(1)
    images = torch.randn_like(before.images)

    batch.mix(images, sources, shares)

    assert batch.images is images
    assert batch.labels.shape == (rows, 2 * sources_each)
    for row in range(rows):
        expected = [
            (
                float(before.labels[source, k]),
                float(share) * float(before.shares[source, k]),
                float(before.smoothing[source, k]),
                float(before.label_weights[source, k]),
            )
            for source, share in zip(sources[row].tolist(), shares[row], strict=True)
            for k in range(2)
        ]
        fields = batch.labels[row].float(), batch.shares[row], batch.smoothing[row], batch.label_weights[row]
        found = torch.stack(fields, 1)
        torch.testing.assert_close(found, torch.tensor(expected))
        weight = sum(
            float(s) * float(before.row_weights[r]) for r, s in zip(sources[row].tolist(), shares[row], strict=True)
        )
        assert float(batch.row_weights[row]) == pytest.approx(weight, rel=1e-6)
    torch.testing.assert_close(batch.shares.sum(1), torch.ones(rows))
    assert torch.equal(batch.pipeline, before.pipeline)
    assert torch.equal(batch.indices, before.indices)
    assert (batch.views, batch.mixed) == (views, True)


def test_mixing_twice_is_the_mixture_of_the_mixtures() -> None:
    batch = random_batch(n=6, k=1)
    targets = batch.soft_targets(3).double()
    for seed in (1, 2):
        draw = torch.Generator().manual_seed(seed)
        sources = torch.stack([torch.arange(6), batch.permutation(draw)], 1)
        shares = torch.rand(6, 2, generator=draw).softmax(1)
        batch.mix(batch.images, sources, shares)
        targets = (shares.double()[:, :, None] * targets[sources]).sum(1)
    assert batch.labels.shape == (6, 4)
    torch.testing.assert_close(batch.soft_targets(3).double(), targets, rtol=1e-6, atol=1e-7)


def dense(batch: Batch, values: torch.Tensor, classes: int = 3) -> torch.Tensor:
    """M x C float64: values M x K of the labels, times their shares, summed by class."""
    found = torch.zeros(len(batch), classes, dtype=torch.float64)
    return found.scatter_add_(1, batch.labels, (batch.shares * values).double())


@pytest.mark.parametrize("last", ["mix", "mix_hidden", "take"])
def test_what_is_of_a_label_stays_with_it_through_a_mixture_of_mixtures(last: str) -> None:
    batch = random_batch(n=6, views=2, k=2)
    rows, names = len(batch), ("label_weights", "smoothing")
    expected = {name: dense(batch, getattr(batch, name)) for name in names}
    for seed in (1, 2):
        draw = torch.Generator().manual_seed(seed)
        sources = torch.stack([torch.arange(rows), batch.permutation(draw), batch.permutation(draw)], 1)
        shares = torch.rand(rows, 3, generator=draw).softmax(1)
        if seed == 2 and last == "mix_hidden":
            batch.mix_hidden("layer", lambda hidden: hidden, sources, shares)
        else:
            batch.mix(batch.images, sources, shares)
        expected = {name: (shares.double()[:, :, None] * values[sources]).sum(1) for name, values in expected.items()}
    if last == "take":
        batch.take(torch.tensor([4, 1]))
        expected = {name: values[[4, 1, 10, 7]] for name, values in expected.items()}
    for name, values in expected.items():
        torch.testing.assert_close(dense(batch, getattr(batch, name)), values, rtol=1e-6, atol=1e-7)
    assert batch.labels.shape == batch.shares.shape == batch.label_weights.shape == batch.smoothing.shape


def test_soft_targets_add_up_where_a_label_comes_twice() -> None:
    batch = random_batch(n=1, k=3, classes=4)
    batch.labels = torch.tensor([[2, 0, 2]])
    batch.shares = torch.tensor([[0.5, 0.25, 0.25]])
    batch.smoothing = torch.ones(1, 3)
    assert batch.soft_targets(4).tolist() == [[0.25, 0.0, 0.75, 0.0]]


@pytest.mark.parametrize(
    ("given", "made"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_an_output_in_float_has_at_least_float32_and_keeps_gradients(given: torch.dtype, made: torch.dtype) -> None:
    logits = torch.randn(2, 3, dtype=given, requires_grad=True)
    output = ModelOutput(torch.randn(2, 4, dtype=given), logits).float()
    assert (output.features.dtype, output.logits.dtype, output.class_logits) == (made, made, None)
    output.logits.sum().backward()
    assert torch.equal(logits.grad, torch.ones(2, 3, dtype=given))
    assert ModelOutput(logits, logits, logits[:, None]).float().class_logits.dtype == made


@pytest.mark.parametrize("chosen", [[2, 0], [3], [], [0, 1, 2, 3]])
def test_images_that_are_taken_keep_all_their_rows(chosen: list[int]) -> None:
    batch = random_batch(views=3)
    before = copy.deepcopy(batch)
    batch.take(torch.tensor(chosen, dtype=torch.int64))
    assert (len(batch), batch.views, batch.mixed) == (3 * len(chosen), 3, True)
    for view in range(3):
        for place, image in enumerate(chosen):
            for name in FIELDS:
                assert torch.equal(getattr(batch.view(view), name)[place], getattr(before.view(view), name)[image]), (
                    name
                )
