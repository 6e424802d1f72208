"""What a loop of one's own may get wrong, each told before it trains on something else than was meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import augury
from augury.distributed import Ranks


class Noise(augury.Method):
    """Draws on the device, and notes in which precision it multiplies."""

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        self.drawn = torch.randn(3, generator=run.generator, device=run.device)
        self.product = batch.images.flatten(1) @ batch.images.flatten(1).t()


class Shares(augury.Method):
    """Asks for rows of the base pipeline."""

    class Options(augury.Options):
        base: float = 0.25

    @classmethod
    def pipelines(cls, options: Any) -> dict[str, float]:
        return {"base": options.base, "augmented": 1 - options.base}

    @augury.hookimpl
    def augment_batch(self) -> None:
        pass


class Staged(augury.Method):
    """Needs what its options say from the host."""

    class Options(augury.Options):
        what: str = "loader"

    @augury.hookimpl
    def pre_train_stage(self, run: augury.Run) -> None:
        run.log_figure("nothing", None)
        run.log_images("nothing", torch.zeros(1, 1, 2, 2), ["none"])
        assert run.folder is None
        getattr(run, self.options.what)("base")


def images(n: int = 4) -> Tensor:
    return torch.randn(n, 1, 3, 3, generator=torch.Generator().manual_seed(0))


def test_composing_before_the_processes_know_of_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    early, alone = (augury.compose([Noise], num_classes=2, ranks=ranks) for ranks in (None, Ranks()))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda group=None: 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group=None: 2)
    with pytest.raises(augury.UsageError, match=r"composed for one process.*Call augury\.compose after it"):
        early.augment_batch(early.batch(images(), torch.zeros(4)))
    # Whoever says which processes train together is believed.
    alone.augment_batch(alone.batch(images(), torch.zeros(4)))


def test_rows_of_several_pipelines_are_not_all_made_by_one_without_a_word() -> None:
    methods = augury.compose([Shares], num_classes=2)
    with pytest.raises(augury.UsageError) as refused:
        methods.batch(images(), torch.zeros(4))
    assert str(refused.value) == (
        "shares: asks for rows of several pipelines, 0.25 of them from `base`. Pass pipeline=…, for each row the "
        "number of its pipeline in ('base', 'augmented')."
    )
    made = methods.batch(images(), torch.zeros(4), pipeline=torch.tensor([0, 1, 1, 1]))
    assert made.made_by("base").tolist() == [True, False, False, False]
    none = augury.compose([(Shares, {"base": 0.0})], num_classes=2)
    assert not none.batch(images(), torch.zeros(4)).made_by("base").any()


def test_methods_are_moved_with_what_they_draw_with() -> None:
    methods = augury.compose([Noise], num_classes=2)
    assert methods.run.device == torch.device("cpu")
    methods.double()
    assert methods.run.device == torch.device("cpu")
    methods.augment_batch(methods.batch(images(), torch.zeros(4)))
    assert methods["noise"].drawn.device.type == "cpu"
    methods.to("meta")
    assert methods.run.device == torch.device("meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_draws_follow_the_methods_to_the_gpu() -> None:
    methods = augury.compose([Noise], num_classes=2).cuda()
    methods.augment_batch(methods.batch(images().cuda(), torch.zeros(4, device="cuda")))
    assert methods["noise"].drawn.device.type == "cuda"


def test_autocast_reaches_no_hook() -> None:
    methods = augury.compose([Noise], num_classes=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        methods.augment_batch(methods.batch(images(), torch.zeros(4)))
    assert methods["noise"].product.dtype == torch.float32


class Bare:
    """A host that lends nothing."""


@pytest.mark.parametrize("host", [None, Bare()])
@pytest.mark.parametrize("what", ["loader", "train_network"])
def test_what_a_stage_needs_and_the_loop_does_not_lend_is_told(what: str, host: Any) -> None:
    methods = augury.compose([(Staged, {"what": what})], num_classes=2, network=nn.Linear(2, 2))
    with pytest.raises(augury.UsageError, match=rf"^staged: needs .* \(`augury.Host.{what}`"):
        methods.pre_train_stage(host)
