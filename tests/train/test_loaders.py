"""Two loaders behind one interface: counted randomness, exact shares, the same statistics, and errors said plainly."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from augury.batch import Batch
from augury.distributed import Ranks
from augury.errors import UsageError
from augury_train.config import DataConfig
from augury_train.data.datasets import open_dataset
from augury_train.data.loader import Feed, Loader, Order
from augury_train.data.memory import MemoryFeed
from augury_train.data.pipeline import Pipeline, parse
from augury_train.data.source import ArraySource
from augury_train.data.splits import Split, Splits
from augury_train.data.stream import StreamFeed
from augury_train.data.view import DataSet, ImageFormat, decode

CPU = torch.device("cpu")
BOTH = ["memory", "stream"]
WORKERS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
SHARES = {"base": 0.0, "augmented": 1.0}
WORDINGS = {"base": ["crop:1", "flip"], "augmented": ["random_resized_crop:0.5", "flip", "cutout:2"]}
COUNT = 43


def data(channels: int = 3, side: int = 6, kept: int = 6, count: int = COUNT, seed: int = 0) -> DataSet:
    """Noise: `count` images to train on, 11 to test on, none to choose on."""
    drawn = np.random.default_rng(seed)
    images = drawn.integers(1, 256, (count + 11, channels, kept, kept), dtype=np.uint8)
    source = ArraySource(images, drawn.integers(0, 3, count + 11))
    order = torch.from_numpy(drawn.permutation(count + 11))
    form = ImageFormat(channels, side, kept, "bilinear", (0.5,) * channels, (0.25,) * channels)
    splits = Splits(Split(source, order[:count]), None, Split(source, order[count:]))
    return DataSet(splits, ["a", "b", "c"], form, [])


def feed(kind: str, images: DataSet, workers: int = 0) -> Feed:
    return MemoryFeed(images, CPU) if kind == "memory" else StreamFeed(images, CPU, workers)


def pipelines(images: DataSet, words: Mapping[str, list[str]] = WORDINGS) -> dict[str, Pipeline]:
    frame = images.format.frame
    return {name: Pipeline(parse(text, name, frame), frame, images.format.std, CPU) for name, text in words.items()}


def loader(
    kind: str,
    *,
    images: DataSet | None = None,
    words: Mapping[str, list[str]] = WORDINGS,
    shares: Mapping[str, float] = SHARES,
    views: int = 1,
    size: int = 8,
    seed: int = 4,
    parts: int = 1,
    rank: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Loader:
    images, ranks = images or data(), Ranks()
    ranks.rank, ranks.size = rank
    order = Order(len(images.splits.train), size, views, shares, seed, ranks, parts)
    return feed(kind, images, workers).training(order, pipelines(images, words))


def rows(source: Loader, epoch: int = 0, view: int = 0) -> dict[int, Tensor]:
    """The images of a view, by their number."""
    found = {}
    for batch in source.epoch(epoch):
        part = batch.view(view)
        found |= dict(zip(part.indices.tolist(), part.images, strict=True))
    return found


def same(one: Batch, other: Batch) -> bool:
    names = ("images", "labels", "pipeline", "indices", "shares", "label_weights", "smoothing", "row_weights")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names) and one.views == other.views


@pytest.mark.parametrize("kind", BOTH)
def test_an_epoch_takes_each_image_at_most_once(kind: str) -> None:
    images = data()
    source = loader(kind, images=images)
    batches = list(source.epoch(0))
    indices = torch.cat([batch.indices for batch in batches])
    assert len(batches) == source.steps == 5
    assert len(indices.unique()) == len(indices) == 40
    assert torch.equal(torch.cat([b.labels[:, 0] for b in batches]), images.splits.train.labels[indices])
    assert not torch.equal(indices, torch.cat([batch.indices for batch in source.epoch(1)]))
    assert len({int(i) for epoch in range(4) for b in source.epoch(epoch) for i in b.indices}) == COUNT


@pytest.mark.parametrize("kind", BOTH)
def test_two_views_are_of_the_same_images(kind: str) -> None:
    images = data()
    for batch in loader(kind, images=images, views=2).epoch(0):
        first, second = batch.view(0), batch.view(1)
        assert len(batch) == 16
        assert torch.equal(first.indices, second.indices)
        assert torch.equal(batch.labels[:, 0], images.splits.train.labels[batch.indices])
        assert not torch.equal(first.images, second.images)


# What workers do, and what is left to the device.
@pytest.mark.parametrize("word", ["random_resized_crop:0.5", "cutout:2"])
@pytest.mark.parametrize("kind", BOTH)
def test_a_row_depends_on_seed_epoch_view_and_image_alone(kind: str, word: str) -> None:
    words = {"base": ["flip"], "augmented": [word]}
    alone, beside = rows(loader(kind, words=words)), rows(loader(kind, words=words, views=2, size=5))
    common = alone.keys() & beside.keys()
    assert len(common) > 30
    assert all(torch.equal(alone[i], beside[i]) for i in common)
    again = loader(kind, words=words, views=2)
    for other in (rows(again, epoch=1), rows(again, view=1), rows(loader(kind, words=words, seed=5))):
        common = alone.keys() & other.keys()
        changed = [not torch.equal(alone[i], other[i]) for i in common]
        assert sum(changed) > 0.8 * len(changed)


@pytest.mark.parametrize("kind", BOTH)
def test_what_was_loaded_before_does_not_matter(kind: str) -> None:
    fresh, used = loader(kind, views=2), loader(kind, views=2)
    list(used.epoch(0))
    next(used.epoch(1))
    list(used.one_pass("base"))
    torch.manual_seed(123)
    assert all(map(same, fresh.epoch(3), used.epoch(3)))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("parts", [1, 2])
def test_an_epoch_can_be_entered_anywhere(kind: str, parts: int) -> None:
    source = loader(kind, views=2, parts=parts, shares={"base": 0.3, "augmented": 0.7})
    whole = list(source.epoch(3))
    assert len(whole) == 5 * parts
    for start in (0, 2, 4):
        rest = list(source.epoch(3, start))
        assert len(rest) == (5 - start) * parts
        assert all(map(same, whole[start * parts :], rest))
    assert list(source.epoch(3, 5)) == []


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("views", [1, 2])
def test_pipelines_make_exactly_their_share(kind: str, share: float, views: int) -> None:
    words = {"base": ["crop:1"], "augmented": ["flip", "cutout:2"]}
    images = data()
    shares = {"base": share, "augmented": 1 - share}
    for batch in loader(kind, images=images, words=words, shares=shares, views=views, size=7).epoch(0):
        assert int(batch.made_by("base").sum()) == round(share * 7 * views)
        # Only a cutout leaves the mean, which no grey level is.
        blank = (batch.images == 0).flatten(1).any(1)
        assert torch.equal(blank, batch.made_by("augmented"))


@pytest.mark.parametrize("kind", BOTH)
def test_rows_of_a_pipeline_are_the_ones_it_makes_alone(kind: str) -> None:
    mixed = loader(kind, views=2, shares={"base": 0.4, "augmented": 0.6})
    alone = {name: loader(kind, views=2, shares={"base": 0.0, "augmented": 0.0, name: 1.0}) for name in WORDINGS}
    for batch, base, augmented in zip(mixed.epoch(2), *(a.epoch(2) for a in alone.values()), strict=True):
        expected = torch.where(batch.made_by("base")[:, None, None, None], base.images, augmented.images)
        assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("kind", BOTH)
def test_the_parts_of_a_step_are_its_batch(kind: str) -> None:
    whole, parts = list(loader(kind).epoch(0)), list(loader(kind, parts=4).epoch(0))
    assert [len(part) for part in parts] == [2] * 20
    for step, batch in enumerate(whole):
        for name in ("images", "labels", "indices"):
            joined = torch.cat([getattr(part, name) for part in parts[4 * step : 4 * step + 4]])
            assert torch.equal(joined, getattr(batch, name))


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_together_make_the_batch_of_one(kind: str, parts: int) -> None:
    one = loader(kind, parts=parts)
    two = [loader(kind, parts=parts, rank=(rank, 2)) for rank in range(2)]
    for batch, *halves in zip(one.epoch(1), *(half.epoch(1) for half in two), strict=True):
        for name in ("images", "labels", "indices"):
            assert torch.equal(torch.cat([getattr(half, name) for half in halves]), getattr(batch, name))


def test_each_process_holds_the_share_of_a_pipeline() -> None:
    for rank in range(2):
        for batch in loader("memory", views=2, shares={"base": 0.25, "augmented": 0.75}, rank=(rank, 2)).epoch(0):
            assert int(batch.made_by("base").sum()) == 2


@pytest.mark.parametrize("kind", BOTH)
def test_one_pass_is_every_image_in_order(kind: str) -> None:
    images = data()
    source = loader(kind, images=images, views=2)
    passes = {name: list(source.one_pass(name)) for name in WORDINGS}
    for name, batches in passes.items():
        assert torch.equal(torch.cat([b.indices for b in batches]), torch.arange(COUNT))
        assert torch.equal(torch.cat([b.labels[:, 0] for b in batches]), images.splits.train.labels)
        assert all(b.made_by(name).all() and b.views == 1 for b in batches)
        assert all(map(same, batches, source.one_pass(name)))
    together = [torch.cat([row.images for row in batches]) for batches in passes.values()]
    assert not torch.equal(*together)
    size_does_not_matter = torch.cat([b.images for b in loader(kind, images=images, size=5).one_pass("base")])
    assert torch.equal(size_does_not_matter, together[0])


def test_two_processes_share_one_pass() -> None:
    halves = [torch.cat([b.indices for b in loader("memory", rank=(r, 2)).one_pass("base")]) for r in range(2)]
    assert len(halves[0]) == len(halves[1]), "both hold as many"
    assert torch.equal(torch.cat(halves), torch.cat([torch.arange(COUNT), torch.tensor([COUNT - 1])]))


def test_a_batch_that_processes_and_parts_cannot_share_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^optim\.batch_size=8 must be a multiple of 3 processes times optim\.acc"):
        loader("memory", rank=(0, 3))
    with pytest.raises(UsageError, match=r"1 processes times optim\.accumulation=5\."):
        loader("memory", parts=5)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=WORKERS)])
def test_held_out_images_are_counted_once(kind: str, channels: int, workers: int) -> None:
    images = data(channels)
    test = images.splits.test
    assert test is not None
    batches = list(feed(kind, images, workers).held_out(test, 4))
    assert [len(pixels) for pixels, _ in batches] == [4, 4, 3]
    pixels, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    assert pixels.dtype == torch.uint8
    source = test.source
    assert isinstance(source, ArraySource)
    assert torch.equal(pixels, torch.from_numpy(source.images)[test.rows])
    assert torch.equal(labels, test.labels)


@WORKERS
@pytest.mark.parametrize("channels", [1, 3])
def test_the_number_of_workers_does_not_matter(channels: int) -> None:
    images = data(channels)
    made = []
    for workers in (0, 1, 4):
        source = loader(
            "stream", images=images, views=2, workers=workers, shares={"base": 0.25, "augmented": 0.75}, parts=2
        )
        next(iter(source.epoch(5)))  # Left behind half-way.
        made.append([*source.epoch(0), *source.epoch(1, 2), *source.one_pass("augmented")])
        source.close()
        made[-1] += source.epoch(2)
        source.close()
    assert len(made[0]) == 10 + 6 + 6 + 10
    for others in made[1:]:
        assert all(map(same, made[0], others))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=WORKERS)])
def test_torchs_own_generators_are_not_touched(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("dropout draws from the device's generator")

    if workers == 0:  # A worker has generators of its own.
        monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    state = torch.get_rng_state()
    images = data()
    source = loader("stream", images=images, workers=workers)
    held_out = feed("stream", images, workers).held_out(images.splits.train)
    for batches in (source.epoch(0), source.one_pass("base"), held_out):
        for _ in batches:
            assert torch.equal(torch.get_rng_state(), state), "dropout draws between batches"
    source.close()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))


def photographs(root: Path, count: int = 12) -> Path:
    """A flat tree of JPEGs of two classes, wider than high."""
    drawn = np.random.default_rng(3)
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(drawn.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize((40, 30), Image.Resampling.BICUBIC).save(path)
    return root


def from_folder(root: Path) -> DataSet:
    collection = open_dataset(DataConfig(dataset=str(root)))
    split = Split(collection.splits["all"], torch.arange(12))
    form = ImageFormat(3, 16, 20, "bicubic", (0.5,) * 3, (0.25,) * 3)
    return DataSet(Splits(split, None, split), ["a", "b"], form, [])


def damaged(tmp_path: Path) -> tuple[DataSet, Path]:
    """A data set of which one image was cut short after the folder was looked through, and that image's path."""
    images = from_folder(photographs(tmp_path / "pets"))
    path = tmp_path / "pets" / "b" / "5.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return images, path


def told(batches: Iterator[object]) -> str:
    with pytest.raises(UsageError) as caught:
        list(batches)
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=WORKERS)])
def test_an_unreadable_image_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    images, path = damaged(tmp_path)
    with pytest.raises(UsageError) as caught:
        MemoryFeed(images, CPU)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a readable image")
    assert "--skip-bad-images" in message
    assert "\n" not in message
    source = loader("stream", images=images, workers=workers, size=12)
    assert told(source.epoch(0)) == message
    assert told(source.epoch(1)) == message, "the workers are still there"
    assert told(source.one_pass("base")) == message
    source.close()
    assert told(feed("stream", images, workers).held_out(images.splits.train)) == message


@WORKERS
def test_no_worker_outlives_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images, _ = damaged(tmp_path)
    source = loader("stream", images=images, workers=2, size=12)
    # The contract suite keeps two processes for all its tests, which may run in this process too.
    others = set(multiprocessing.active_children())
    gc.disable()  # Nothing is left for the collector: it may run in another worker, which cannot end these.
    try:
        caught = []
        held_out = feed("stream", images, 2).held_out(images.splits.train)
        for batches in (source.epoch(0), source.one_pass("base"), held_out):
            with pytest.raises(UsageError) as error:
                list(batches)
            caught.append(error)
            source.close()
            assert set(multiprocessing.active_children()) == others
    finally:
        gc.enable()
    assert capfd.readouterr().err == ""


def test_photographs_of_any_shape_become_the_frame(tmp_path: Path) -> None:
    images = from_folder(photographs(tmp_path / "pets"))
    plain = {"plain": [], "wide": ["random_resized_crop:0.9"]}
    kept = decode(images.splits.train, images.format)
    assert kept.shape == (12, 3, 20, 20)
    middle = (kept[:, :, 2:18, 2:18].double() / 255 - 0.5) / 0.25
    for kind in BOTH:
        source = loader(kind, images=images, words=plain, shares={"plain": 1.0, "wide": 0.0}, size=4)
        found = torch.cat([b.images for b in source.one_pass("plain")])
        torch.testing.assert_close(found.double(), middle, rtol=1e-4, atol=1e-4)
        assert all(b.images.shape == (4, 3, 16, 16) for b in source.one_pass("wide"))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_kept_as_bytes(channels: int) -> None:
    images = data(channels, side=6, kept=8)
    held = MemoryFeed(images, CPU)
    kept = [images.pixels(images.splits.train)]
    assert images.splits.test is not None
    kept.append(images.pixels(images.splits.test))
    assert all(pixels.dtype == torch.uint8 and pixels.shape[1:] == (channels, 8, 8) for pixels in kept)
    assert sum(pixels.numel() for pixels in kept) == images.bytes == (COUNT + 11) * channels * 64
    assert images.pixels(images.splits.train) is kept[0], "decoded once"
    (whole,) = held.held_out(images.splits.train)
    assert torch.equal(whole[0], kept[0])


# What a word means is the same in both: each pixel of each image has the same mean and variance over many epochs.

PHRASES = [
    ["crop:2"],
    ["reflect_crop:2"],
    ["flip"],
    # At the end of a pipeline, these are the device's in both loaders.
    ["cutout:4", "crop:1"],
    ["random_erasing:0.5", "flip"],
    ["random_resized_crop:0.2"],
    ["cutout:3", "crop:2", "flip", "cutout:2"],
]
POLICIES = [
    ["autoaugment:cifar10"],
    ["randaugment:n=2,m=9"],
    ["trivialaugment"],
    ["augmix"],
    ["color_jitter:0.4"],
    ["randaugment:n=1,m=5", "crop:2", "cutout:3", "flip"],
]
EPOCHS, IMAGES = 250, 4


def moments(kind: str, words: list[str], images: DataSet) -> tuple[Tensor, Tensor]:
    """E x I x ch x H x W: the images of all epochs in the order of their numbers, and their squares."""
    source = loader(kind, images=images, words={"base": words}, shares={"base": 1.0}, size=IMAGES)
    made = [batch.images[batch.indices.argsort()] for epoch in range(EPOCHS) for batch in source.epoch(epoch)]
    stacked = torch.stack(made).double()
    return stacked, stacked.square()


def departures(one: Tensor, other: Tensor) -> Tensor:
    """By how many standard errors the means of two samples differ, for each pixel."""
    # Never less than rounding to grey levels makes, so that pixels that hardly change are not compared with nothing.
    error = ((one.var(0) + other.var(0) + 1e-3) / len(one)).sqrt()
    return (one.mean(0) - other.mean(0)) / error


def check_statistics(words: list[str], channels: int) -> None:
    # More is kept than the frame shows, as of photographs.
    images = data(channels, side=8, kept=10, count=IMAGES)
    for one, other in zip(moments("memory", words, images), moments("stream", words, images), strict=True):
        apart = departures(one, other)
        assert apart.abs().max() < 5
        assert apart.square().mean() < 2


@pytest.mark.parametrize("words", PHRASES, ids=" ".join)
def test_both_loaders_make_images_of_the_same_statistics(words: list[str]) -> None:
    check_statistics(words, 3)


def test_both_loaders_make_grey_images_of_the_same_statistics() -> None:
    check_statistics(["random_erasing:0.5", "cutout:3", "reflect_crop:2"], 1)


@pytest.mark.slow
@pytest.mark.parametrize("words", POLICIES, ids=" ".join)
@pytest.mark.parametrize("channels", [1, 3])
def test_policies_have_the_same_statistics_in_both_loaders(words: list[str], channels: int) -> None:
    check_statistics(words, channels)


# Views that are made by a pipeline each.

ASKED = ("base", "augmented", "base")


def viewed(
    kind: str, parts: int = 1, rank: tuple[int, int] = (0, 1), words: Mapping[str, list[str]] = WORDINGS
) -> Loader:
    """A loader of three views, each of which a pipeline of its own makes."""
    images, ranks = data(), Ranks()
    ranks.rank, ranks.size = rank
    order = Order(len(images.splits.train), 8, 3, SHARES, 4, ranks, parts, ASKED)
    return feed(kind, images).training(order, pipelines(images, words))


@pytest.mark.parametrize(("parts", "ranks"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("kind", BOTH)
def test_each_view_is_made_by_its_pipeline(kind: str, parts: int, ranks: int) -> None:
    shares = {name: {other: float(other == name) for other in SHARES} for name in SHARES}
    wanted = [rows(loader(kind, views=3, shares=shares[name]), 1, view) for view, name in enumerate(ASKED)]
    seen: list[int] = []
    for rank in range(ranks):
        for batch in viewed(kind, parts, (rank, ranks)).epoch(1):
            here = 8 // parts // ranks
            assert batch.pipeline.tolist() == [0] * here + [1] * here + [0] * here
            for view, name in enumerate(ASKED):
                part = batch.view(view)
                assert part.made_by(name).all()
                for number, image in zip(part.indices.tolist(), part.images, strict=True):
                    assert torch.equal(image, wanted[view][number]), (view, number)
            seen += batch.view(0).indices.tolist()
    assert len(set(seen)) == len(seen) == 40


@pytest.mark.parametrize("parts", [1, 2])
def test_both_loaders_make_the_same_views(parts: int) -> None:
    words = {"base": [], "augmented": ["flip"]}
    both = (viewed(kind, parts, words=words).epoch(2) for kind in BOTH)
    for one, other in zip(*both, strict=True):
        assert not torch.equal(one.view(1).images, one.view(2).images)
        assert torch.equal(one.pipeline, other.pipeline)
        assert torch.equal(one.indices, other.indices)
        # Each loader draws flips by itself.
        for number, name in enumerate(ASKED):
            mine, theirs = one.view(number).images, other.view(number).images
            kept = torch.isclose(mine, theirs).flatten(1).all(1)
            flipped = torch.isclose(mine, theirs.flip(-1)).flatten(1).all(1)
            assert bool(kept.all()) if name == "base" else bool((kept | flipped).all())
