"""A composition: order, draws, errors, needs and conflicts, state."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

import augury
from augury import hookspecs
from augury.run import RunState

CALLS: list[str] = []


class Recorder(augury.Method):
    """Notes every call of its hooks."""

    class Options(augury.Options):
        scale: float = Field(1.0, gt=0)

    @augury.hookimpl
    def pre_train_stage(self) -> None:
        CALLS.append(f"{type(self).__name__} stage")

    @augury.hookimpl
    def augment_batch(self, run: augury.Run) -> None:
        CALLS.append(f"{type(self).__name__} augment")
        self.drawn = (torch.rand(3, generator=run.generator), run.random.random())

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, run: augury.Run) -> Any:
        CALLS.append(f"{type(self).__name__} before")
        loss = yield
        CALLS.append(f"{type(self).__name__} after")
        run.log("loss", loss)
        return loss * self.options.scale

    @augury.hookimpl
    def post_epoch(self, metrics: dict[str, Any]) -> dict[str, float]:
        CALLS.append(f"{type(self).__name__} epoch")
        return {"seen": metrics["epoch"]}


class First(Recorder):
    pass


class Second(Recorder):
    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.factor = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.zeros(()))
        self.aid = self.freeze(nn.Linear(2, 2))


class Replacing(augury.Method):
    @augury.hookimpl
    def compute_loss(self, output: augury.ModelOutput) -> Tensor:
        return output.logits.square().mean(1)


class Other(Replacing):
    pass


class Base(augury.Method):
    @classmethod
    def pipelines(cls, options: Any) -> dict[str, float]:
        return {"base": 1.0, "augmented": 0.0}

    @augury.hookimpl
    def post_epoch(self) -> None:
        return None


class Mostly(Base):
    @classmethod
    def pipelines(cls, options: Any) -> dict[str, float]:
        return {"base": 0.5, "augmented": 0.5}


class Mixing(Base):
    mixes = True
    pipelines = augury.Method.pipelines


class Unmixed(Base):
    unmixed = True
    views: ClassVar[int] = 2
    pipelines = augury.Method.pipelines


class ThreeViews(Unmixed):
    views = 3
    unmixed = False


class Needy(augury.Method):
    facts = ("total_steps",)
    linear_classifier = True
    made = 0

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        type(self).made += 1

    @augury.hookimpl
    def post_epoch(self) -> None:
        return None


def one_step(methods: augury.Composition) -> Tensor:
    logits = torch.arange(12.0).view(4, 3)
    batch = methods.batch(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]))
    methods.augment_batch(batch)
    return methods.compute_loss(batch, augury.ModelOutput(logits, logits))


@pytest.mark.parametrize("order", [(First, Second), (Second, First)])
def test_order_of_names_is_order_of_calls(order: tuple[type[augury.Method], ...]) -> None:
    CALLS.clear()
    methods = augury.compose(order, num_classes=3)
    methods.pre_train_stage()
    one_step(methods)
    methods.post_epoch({"epoch": 1})
    one, two = (cls.__name__ for cls in order)
    assert [
        *(f"{one} stage", f"{two} stage", f"{one} augment", f"{two} augment"),
        *(f"{one} before", f"{two} before", f"{two} after", f"{one} after"),
        *(f"{one} epoch", f"{two} epoch"),
    ] == CALLS


def draws(*composition: Any, seed: int = 0, steps: int = 0) -> tuple[Tensor, float]:
    methods = augury.compose(composition, num_classes=3, seed=seed)
    for _ in range(steps):
        one_step(methods)
        methods.step()
    one_step(methods)
    return methods["first"].drawn


def test_draws_are_the_methods_own() -> None:
    alone = draws(First)
    for same in (draws(First), draws(First, Second), draws(Second, First)):
        assert torch.equal(alone[0], same[0])
        assert alone[1] == same[1]
    for other in (draws(First, seed=1), draws(First, steps=1)):
        assert not torch.equal(alone[0], other[0])
        assert alone[1] != other[1]


def test_processes_draw_apart_and_decide_alike() -> None:
    found = []
    for rank in (0, 1):
        ranks = augury.Ranks()
        ranks.rank = rank
        methods = augury.compose([First], num_classes=3, ranks=ranks)
        one_step(methods)
        found.append(methods["first"].drawn)
    assert not torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_a_stages_draws_leave_the_first_steps_alone() -> None:
    class Stage(First):
        @augury.hookimpl
        def pre_train_stage(self, run: augury.Run) -> None:
            self.stage = torch.rand(3, generator=run.generator)

    methods = augury.compose([Stage], num_classes=3)
    methods.pre_train_stage()
    one_step(methods)
    alone = augury.compose([Stage], num_classes=3)
    one_step(alone)
    assert torch.equal(methods["stage"].drawn[0], alone["stage"].drawn[0])
    assert not torch.equal(methods["stage"].stage, methods["stage"].drawn[0])


def test_the_loss_is_float32_outside_autocast() -> None:
    seen = []

    class Look(augury.Method):
        @augury.hookimpl(wrapper=True)
        def compute_loss(self, output: augury.ModelOutput) -> Any:
            seen.append((output.logits.dtype, torch.is_autocast_enabled("cpu")))
            return (yield)

    methods = augury.compose([Look], num_classes=3)
    batch = methods.batch(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))
    with torch.autocast("cpu", torch.bfloat16):
        loss = methods.compute_loss(batch, augury.ModelOutput(*[torch.zeros(2, 3, dtype=torch.bfloat16)] * 2))
    assert seen == [(torch.float32, False)]
    assert loss.dtype == torch.float32


def test_what_methods_log_and_return_is_named_after_them() -> None:
    methods = augury.compose([First, (Second, {"scale": 2.0})], num_classes=3)
    losses = [float(one_step(methods)) for _ in range(3)]
    row = methods.post_epoch({"epoch": 7})
    assert row == pytest.approx(
        {"first/loss": losses[0], "second/loss": losses[0] / 2, "first/seen": 7.0, "second/seen": 7.0}
    )
    assert methods.post_epoch({"epoch": 8}).keys() == {"first/seen", "second/seen"}, "logs are forgotten once read"


def test_conflicts_needs_and_options_are_told_together_before_anything_is_made() -> None:
    with pytest.raises(augury.UsageError) as error:
        augury.compose(
            [Needy, Replacing, Other, Base, Mostly, Mixing, Unmixed, ThreeViews, (First, {"scale": 0}), Needy],
            num_classes=3,
        )
    told = str(error.value)
    for line in (
        "first: option `scale` must be > 0, got 0.",
        "needy is named 2 times",
        "replacing and other each replace the criterion",
        "different shares of the pipelines",
        "unmixed must see images before mixing mixes them. Name unmixed before mixing.",
        "needy: needs the network's classifier",
        "needy: needs `total_steps`",
    ):
        assert line in told
    assert Needy.made == 0


def test_a_replaced_criterion_can_still_be_wrapped() -> None:
    methods = augury.compose([(First, {"scale": 3.0}), Replacing], num_classes=3)
    assert float(one_step(methods)) == pytest.approx(3 * float(torch.arange(12.0).square().mean()))


@pytest.mark.parametrize("hook", hookspecs.HOOKS)
def test_an_error_names_method_and_hook(hook: str) -> None:
    def fail(self: Any) -> None:
        raise ZeroDivisionError("by nothing")

    broken = type("Broken", (augury.Method,), {hook: augury.hookimpl(fail)})
    methods = augury.compose([First, broken], num_classes=3)

    def everything() -> None:
        methods.pre_train_stage()
        one_step(methods)
        methods.step()
        methods.post_epoch({"epoch": 1})

    with pytest.raises(augury.MethodError, match=f"broken: `{hook}` raised ZeroDivisionError: by nothing") as error:
        everything()
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_state_is_parameters_buffers_and_the_step() -> None:
    methods = augury.compose([First, Second], num_classes=3)
    with torch.no_grad():
        methods["second"].factor.fill_(5)
    methods["second"].count.fill_(6)
    for _ in range(4):
        methods.step()
    fresh = augury.compose([First, Second], num_classes=3, seed=9)
    assert not torch.equal(fresh["second"].aid.module.weight, methods["second"].aid.module.weight)
    fresh.load_state_dict(methods.state_dict())
    assert fresh.run.step == 4
    assert (fresh["second"].factor.item(), fresh["second"].count.item()) == (5, 6)
    assert torch.equal(fresh["second"].aid.module.weight, methods["second"].aid.module.weight)


def test_a_frozen_network_is_in_nothing_that_trains() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
    frozen = augury.Method(augury.Options(), augury.Spec(3)).freeze(network)
    frozen.train()
    assert not any(part.training for part in frozen.modules())
    assert list(frozen.parameters()) == []
    inputs = torch.randn(5, 2)
    torch.testing.assert_close(frozen(inputs), network.eval()(inputs))
    with torch.no_grad():
        network[0].weight.add_(1)
    assert not torch.equal(frozen.module[0].weight, network[0].weight)
    frozen.copy_from(network)
    torch.testing.assert_close(frozen(inputs), network(inputs))


def test_bad_batches_are_refused() -> None:
    methods = augury.compose([First], num_classes=3)
    images = torch.zeros(4, 1, 2, 2)
    with pytest.raises(augury.UsageError, match=r"needs 1 view\(s\) of each image, got 2"):
        methods.batch((images, images), torch.zeros(4).long())
    with pytest.raises(augury.UsageError, match="do not fit images"):
        methods.batch(images, torch.zeros(3).long())
    with pytest.raises(augury.UsageError, match=r"labels must be in 0 to 2 \(num_classes=3\), got 0 to 3"):
        methods.batch(images, torch.tensor([0, 1, 2, 3]))


def test_run_reaches_nothing_but_what_is_told() -> None:
    public = {name for name in dir(augury.Run) if not name.startswith("_")}
    assert public == {
        *("step", "total_steps", "progress", "epoch", "epochs", "num_classes", "network", "classifier", "device"),
        *("ranks", "generator", "random", "folder", "log", "log_figure", "log_images", "loader"),
        *("train_network", "keep", "read_network", "again"),
    }
    run = augury.Run(RunState(augury.Spec(3), 0, torch.device("cpu"), augury.Ranks()), "mine")
    with pytest.raises(augury.UsageError, match="mine: needs `total_steps`"):
        _ = run.progress
    with pytest.raises(augury.UsageError, match="mine: needs a trainer, and this loop lends none"):
        run.train_network()


def wrapped(body: str) -> type[augury.Method]:
    """A method whose wrapper of compute_loss has this body."""
    names: dict[str, Any] = {}
    exec(f"def compute_loss(self):\n    {body}", names)
    return type("Odd", (augury.Method,), {"compute_loss": augury.hookimpl(wrapper=True)(names["compute_loss"])})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("if False: yield", "odd: `compute_loss` is a wrapper and must yield once; it never did."),
        ("yield; yield", "odd: `compute_loss` is a wrapper and must yield once; it yielded again."),
        ("yield", "odd: `compute_loss` returned no loss. End it with `return loss`."),
        ("yield; 1 / 0", "odd: `compute_loss` raised ZeroDivisionError: division by zero"),
        ("1 / 0; yield", "odd: `compute_loss` raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_wrapper_that_does_not_wrap_is_named(body: str, told: str) -> None:
    with pytest.raises(augury.MethodError) as error:
        one_step(augury.compose([First, wrapped(body)], num_classes=3))
    assert str(error.value) == told


def test_an_error_of_the_criterion_is_not_blamed_on_a_wrapper() -> None:
    methods = augury.compose([First], num_classes=3)
    batch = methods.batch(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(RuntimeError) as error:
        methods.compute_loss(batch, augury.ModelOutput(torch.zeros(4, 3), torch.zeros(4, 2)))
    assert not isinstance(error.value, augury.MethodError)


def test_every_method_gets_metrics_of_its_own_and_must_return_numbers() -> None:
    class Changes(augury.Method):
        @augury.hookimpl
        def post_epoch(self, metrics: dict[str, Any]) -> None:
            metrics["epoch"] = -1

    class Texts(augury.Method):
        @augury.hookimpl
        def post_epoch(self) -> dict[str, str]:
            return {"what": "text"}

    row = {"epoch": 4}
    assert augury.compose([Changes, First], num_classes=3).post_epoch(row)["first/seen"] == 4
    assert row == {"epoch": 4}
    with pytest.raises(augury.MethodError, match="texts: `post_epoch` raised ValueError"):
        augury.compose([Texts], num_classes=3).post_epoch(row)


def test_a_hook_that_is_not_marked_and_a_bare_name_are_refused() -> None:
    class Unmarked(First):
        def augment_batch(self, batch: augury.Batch) -> None:
            return None

    with pytest.raises(augury.UsageError, match="unmarked: `augment_batch` is not marked"):
        augury.compose([Unmarked], num_classes=3)
    with pytest.raises(augury.UsageError, match="methods must be a list, got 'isda'"):
        augury.compose("isda", num_classes=3)


# What methods get wrong is told with their name and their line.


class Shrinks(augury.Method):
    """Leaves images out, and nothing else of their rows."""

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        batch.images = batch.images[:2]


class Flat(augury.Method):
    """Mixes with shares of another shape."""

    mixes = True

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        own = torch.arange(len(batch))
        batch.mix(batch.images, torch.stack([own, own.flip(0)], 1), torch.full((len(batch),), 0.5))


class Bare(augury.Method):
    """Forgets the base class."""

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        self.scale = 1.0

    @augury.hookimpl
    def augment_batch(self) -> None:
        pass


class Sets(augury.Method):
    """Sets conditional logits."""

    sets_class_logits = True

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput) -> Any:
        output.class_logits = 2 * output.logits[:, None]
        return (yield)


class Tempers(augury.Method):
    """Changes the logits, and the conditional ones too where asked to."""

    class Options(augury.Options):
        both: bool = False

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput) -> Any:
        output.logits = output.logits / 3
        if self.options.both and output.class_logits is not None:
            output.class_logits = output.class_logits / 3
        return (yield)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            Shrinks,
            "shrinks: `augment_batch` raised ValueError: the batch's fields have other numbers of rows: images 2, "
            "labels 4, shares 4, label_weights 4, smoothing 4, row_weights 4, pipeline 4, indices 4. "
            "Leave rows out by batch.take.",
        ),
        (
            Flat,
            "flat: `augment_batch` raised ValueError: batch.mix takes sources and shares of one shape, M x S with M = 4"
            ", and images of M rows; got (4, 2), (4,) and (4, 1, 2, 2). (test_composition.py:",
        ),
    ],
)
def test_rows_that_do_not_fit_are_told(method: type[augury.Method], message: str) -> None:
    methods = augury.compose([method], num_classes=3)
    with pytest.raises(augury.MethodError) as refused:
        methods.augment_batch(methods.batch(torch.zeros(4, 1, 2, 2), torch.zeros(4)))
    assert str(refused.value).startswith(message)


def test_a_forgotten_base_class_is_told() -> None:
    with pytest.raises(
        augury.MethodError, match=r"^bare: its `__init__` must begin with super\(\)\.__init__\(options, "
    ):
        augury.compose([Bare], num_classes=3)


def test_logits_changed_where_the_criterion_does_not_look_are_refused() -> None:
    output = augury.ModelOutput(torch.zeros(4, 2), torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    losses = []
    for composition in ([Sets, (Tempers, {"both": True})], [Tempers, Sets]):
        methods = augury.compose(composition, num_classes=3)
        batch = methods.batch(torch.zeros(4, 1, 2, 2), torch.zeros(4))
        losses.append(methods.compute_loss(batch, output))
    torch.testing.assert_close(losses[0], losses[1])
    methods = augury.compose([Sets, Tempers], num_classes=3)
    with pytest.raises(
        augury.MethodError, match=r"^tempers: `compute_loss` changed `output.logits`.*Name tempers before"
    ):
        methods.compute_loss(methods.batch(torch.zeros(4, 1, 2, 2), torch.zeros(4)), output)


def test_each_view_of_an_image_has_its_label_and_its_number() -> None:
    class Twice(augury.Method):
        views = 2

        @augury.hookimpl
        def post_epoch(self) -> None:
            pass

    methods = augury.compose([Twice], num_classes=10)
    images = torch.zeros(3, 1, 4, 4)
    batch = methods.batch((images, images + 1), torch.tensor([7, 2, 5]), indices=torch.tensor([30, 10, 20]))
    assert batch.labels.flatten().tolist() == [7, 2, 5, 7, 2, 5]
    assert batch.indices.tolist() == [30, 10, 20, 30, 10, 20]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
