"""Losses and gradients that are not finite: who made them is told, and a skipped step leaves no trace."""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.breaking import PLACES, Breaks, Normed, Passing
from tests.train.small_runs import StopsAfter, assert_same_run, rows_of, small
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

import augury
from augury.choice import Chosen
from augury.composition import Composition
from augury.registry import Register
from augury.run import NETWORK
from augury_train.config import RunConfig
from augury_train.training.checkpoint import load_checkpoint
from augury_train.training.finite import NotFinite
from augury_train.training.plan import make_plan
from augury_train.training.processes import join
from augury_train.training.state import _Loop
from augury_train.training.trail import Trail, norms_of
from augury_train.training.trainer import Trainer
from augury_train.training.watch import Interrupted, Silent


class Heard(Silent):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


class InPlace(augury.Method):
    """Breaks what it was given in place, in a step of one's choice (from 1)."""

    class Options(augury.Options):
        what: str
        step: int = 3

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.own = nn.Parameter(torch.ones(()))

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput, run: augury.Run) -> Generator[None, Tensor, Tensor]:
        what = self.options.what if run.step + 1 == self.options.step else ""
        if what == "logits":
            output.logits.mul_(math.nan)
        if what == "logits' gradient":
            output.logits.add_((output.features.mean() * 0).sqrt())
        loss = yield
        loss += 0.01 * self.own.square()
        if what == "loss":
            loss += math.nan
        if what == "loss's gradient":
            loss += (self.own - self.own).sqrt()
        return loss


class Dropping(augury.Method):
    """Draws from torch's own generator."""

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.drop = nn.Dropout(0.5)

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput) -> Generator[None, Tensor, Tensor]:
        loss = yield
        return loss + 0.1 * self.drop(output.features).square().mean()


class Heavy(augury.Method):
    """Row weights whose squares are beyond float32."""

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        batch.row_weights = torch.full_like(batch.row_weights, 1e25)


class Wide(augury.Method):
    """A buffer whose numbers are all one in memory, which a step replaces, and a second that changes through the first
    that it is a view of."""

    base: Tensor
    seen: Tensor
    wide: Tensor

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.register_buffer("base", torch.ones(1))
        self.register_buffer("seen", self.base.expand(2))
        self.register_buffer("wide", torch.ones(1).expand(3))
        self.hidden = torch.ones(1)
        self.register_buffer("through", self.hidden.expand(2))

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        self.base += 1
        self.hidden += 1
        self.wide = (self.wide[:1] + 1).expand(3)


def register() -> Register:
    found = Register.load()
    for method in (Breaks, Passing, InPlace, Dropping, Heavy, Wide):
        found = found.offering(method.__name__.lower(), method)
    return found


def config_of(*methods: str | tuple[str, dict[str, Any]], on_nan: str = "stop", **optim: Any) -> RunConfig:
    train = {"on_nan": on_nan, "ema": 0.9, "trackers": []}
    return small(*methods, train=train, optim=optim)


def trainer_of(config: RunConfig, network: nn.Module | None = None, **how: Any) -> Trainer:
    """A trainer of a small network with BatchNorm, its methods from this file's register."""
    plan = make_plan(config, register())
    object.__setattr__(plan, "build_network", lambda: copy.deepcopy(network or Normed()))
    torch.manual_seed(5)
    trainer = Trainer(plan, **how)
    # A picture of the first batch takes longer than all the rest.
    trainer.loop.on_augmented = None
    return trainer


def error_of(trainer: Trainer) -> str:
    with pytest.raises(NotFinite) as caught:
        trainer.loop.run(lambda row: None)
    return str(caught.value)


# Stopping.


def _places(*quick: str) -> pytest.MarkDecorator:
    """All places, those that are not `quick` in the slow tests."""
    marks = {place: [] if place in quick else [pytest.mark.slow] for place in PLACES}
    return pytest.mark.parametrize("place", [pytest.param(place, marks=mark) for place, mark in marks.items()])


@_places("in place", "term", "term's gradient", "class_logits' gradient")
def test_the_step_the_method_and_the_last_finite_values_are_told(place: str) -> None:
    broken = ("breaks", {"step": 6, "place": place, "infinite": place == "weights"})
    trainer, seen = trainer_of(config_of("passing", broken, "isda", lr=0.01)), []
    judge = trainer.loop.guard._judge

    def spying(found: Any, loss: float, norm: float, **how: Any) -> bool:
        total = torch.stack([p.grad.norm() for p in trainer.loop.step_module.parameters()]).norm()
        seen.append((loss, float(total)))
        return judge(found, loss, norm, **how)

    trainer.loop.guard._judge = spying  # type: ignore[method-assign]
    losses: list[float] = []
    trainer.loop.step_module.register_forward_hook(lambda _, __, output: losses.append(float(output[0].detach())))
    weights = [p.detach().clone() for p in trainer.network.parameters()]
    said = error_of(trainer)
    what = "gradient" if "gradient" in place else "loss"
    assert said.startswith(f"training: the {what} is no longer finite"), said
    assert "in epoch 2, step 6." in said
    assert PLACES[place] in said, said
    assert f"Last finite: loss {losses[4]:.4g}, gradient norm {seen[4][1]:.4g}, in step 5." in said, said
    assert "Change breaks's options, or leave it out. Lower optim.lr" in said
    assert said.count("\n") == 1
    assert all(p.isfinite().all() for p in trainer.network.parameters()), "the step was not made"
    assert not torch.equal(weights[0], next(trainer.network.parameters()))


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        ("features", "It begins with the network's own `features` and `logits`."),
        # Of what is below, three layers.
        ("gradient", "the gradients of 4 of 8 parameters are not, that of the network's `norm.bias` first"),
    ],
)
def test_a_networks_own_fault_is_told_as_such(breaks: str, told: str) -> None:
    said = error_of(trainer_of(config_of("passing"), Normed(breaks, 3)))
    assert told in said, said
    assert "in epoch 1, step 3." in said
    assert "passing" not in said


def test_images_that_the_loader_breaks_are_none_of_a_methods() -> None:
    trainer = trainer_of(config_of("passing"))
    epoch = trainer.loop.loader.epoch

    def broken(number: int, start: int = 0) -> Any:
        for count, batch in enumerate(epoch(number, start)):
            batch.images = batch.images * (math.inf if count == 1 else 1)
            yield batch

    trainer.loop.loader.epoch = broken  # type: ignore[method-assign]
    assert "It begins with the images, before any method" in error_of(trainer)


def test_weights_that_a_step_took_beyond_float32_are_told() -> None:
    config = small(optim={"lr": 1e38}, schedule={"name": "constant"})
    said = error_of(trainer_of(config, Normed()))
    assert "in epoch 1, step 2. It begins with the network's own `features` and `logits`. Its weights are" in said, said
    assert float(re.search(r"finite, the largest (\S+)\. Last", said)[1]) > 1e35  # type: ignore[index]
    trainer = trainer_of(config, Normed())
    step = trainer.loop.optimizer.step

    def overflowing() -> None:
        step()
        trainer.network.stem.weight.data[3, 5] = math.inf

    trainer.loop.optimizer.step = overflowing
    told = "It begins with 1 parameter(s), the network's `stem.weight` the first: finite gradients took them beyond"
    assert told in error_of(trainer)
    said = error_of(trainer_of(config_of(), Normed("features", 1)))
    assert "No step was finite before." in said


def test_a_criterion_is_blamed_alone_where_all_that_it_was_given_is_finite() -> None:
    class Criterionless(augury.Method):
        @augury.hookimpl
        def compute_loss(self, output: augury.ModelOutput) -> Tensor:
            return (output.logits - output.logits).sum(1) / 0.0 * output.logits.sum(1)

    trainer = trainer_of(config_of())
    chosen = [Chosen("criterionless", Criterionless, Criterionless.Options())]
    methods = Composition(chosen, trainer.plan.spec, seed=3, host=trainer)
    trainer.methods = trainer.loop.methods = trainer.loop.step_module.methods = methods
    assert "It begins with criterionless: what its `compute_loss` returned" in error_of(trainer)
    trainer = trainer_of(config_of())
    trainer.loop.labels.prepare = lambda batch: batch.row_weights.fill_(math.inf)  # type: ignore[method-assign]
    assert "It begins with the criterion" in error_of(trainer)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("loss", "what its `compute_loss` returned, of a finite loss."),
        ("loss's gradient", "the gradient of what its `compute_loss` returned."),
        ("logits", "its `compute_loss` set `logits` that are not finite."),
        ("logits' gradient", "the gradient of the `logits` that its `compute_loss` set."),
    ],
)
def test_changes_in_place_are_the_ones_of_whoever_makes_them(what: str, told: str) -> None:
    said = error_of(trainer_of(config_of("passing", ("inplace", {"what": what}), "dropping")))
    assert f"epoch 1, step 3. It begins with inplace: {told}" in said, said


def test_what_the_network_made_is_kept_as_it_was() -> None:
    output, trail = augury.ModelOutput(torch.ones(2, 3), torch.ones(2, 4)), Trail(keep_output=True)
    trail.output(NETWORK, output)
    output.logits.mul_(2)
    assert trail.made is not None
    assert torch.equal(trail.made[1], torch.ones(2, 4))


def test_numbers_with_squares_beyond_float32_are_finite() -> None:
    trainer = trainer_of(config_of("heavy", ("breaks", {"step": 1})))
    assert "It begins with breaks: what its `compute_loss` returned" in error_of(trainer)
    finite = [torch.full((9,), 3e38), torch.tensor([0.0, 2.0]), torch.full((4,), 1e200, dtype=torch.float64)]
    expected = [9.0, 2.0, 2e200]
    found = [float(norm) for norm in norms_of([*finite, torch.empty(0)])]
    assert found == pytest.approx([3e38 * 3, *expected[1:], 0.0])
    for value in (math.nan, math.inf, -math.inf):
        one = torch.full((3,), 3e38)
        one[1] = value
        assert [math.isfinite(norm) for norm in norms_of([*finite, one])] == [True, True, True, False]


@pytest.mark.parametrize("late", [False, True])
def test_a_norm_beyond_float32_of_finite_gradients_ends_nothing(late: bool) -> None:
    heard, rows = Heard(), []
    trainer = trainer_of(config_of("heavy", lr=1e-27), reporter=heard)
    if late:
        _late(trainer)
    weight = trainer.network.fc.weight.detach().clone()
    trainer.loop.run(rows.append)
    trainer.loop.guard.settle()
    assert len(rows) == 2
    assert not torch.equal(trainer.network.fc.weight, weight)
    (told,) = [line for line in heard.lines if "float32" in line]
    assert re.match(r"training: the norm of the gradients in step 1 is \d\S+e\+2\d, its square beyond float32. ", told)
    assert "All of them are finite: the step is applied. Further" in told
    assert trainer.loop.guard.last_finite is not None
    assert 1e22 < trainer.loop.guard.last_finite[2] < 1e27


def test_a_resumed_run_knows_the_last_finite_step() -> None:
    config, states = config_of(("breaks", {"step": 5})), []
    trainer = trainer_of(config)
    with pytest.raises(NotFinite) as caught:
        trainer.loop.run(lambda row: None, save=lambda: states.append(copy.deepcopy(trainer.loop.state())))
    assert "Last finite: loss" in str(caught.value)
    assert "in step 4." in str(caught.value)
    _Loop.model_validate(states[-1])
    again = trainer_of(config)
    again.loop.restore(states[-1])
    assert again.loop.state()["last_finite"] == states[-1]["last_finite"]
    assert error_of(again) == str(caught.value)


@pytest.mark.slow
def test_a_pre_train_stage_is_named(tmp_path: Path) -> None:
    config = small("resmooth", optim={"lr": 1e38, "epochs": 1}, model={"name": "resnet20_cifar"})
    with pytest.raises(NotFinite, match="^resmooth: pre-train stage: the loss is no longer finite"):
        Trainer(make_plan(config)).run(tmp_path / "run")


class _Event:
    """A GPU's event, as the CPU has none: all that was asked for is done."""

    def record(self) -> None:
        return None

    def synchronize(self) -> None:
        return None


def _late(trainer: Trainer) -> None:
    """As on a GPU: what a step came to is known while the next one is under way."""
    guard = trainer.loop.guard
    guard._at_once = guard._keeps = False
    guard._arriving, guard._arrived = torch.empty(2, dtype=torch.float64), _Event()  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("step", "every", "newest"),
    [
        (3, 3, 0),
        pytest.param(4, None, 0, marks=pytest.mark.slow),
        (6, 1, 5),
        pytest.param(6, None, 4, marks=pytest.mark.slow),
    ],
)
def test_what_is_known_late_is_known_before_anything_is_saved(
    tmp_path: Path, step: int, every: int | None, newest: int
) -> None:
    trainer = trainer_of(small(("breaks", {"step": step}), train={"trackers": [], "save_every": every}))
    _late(trainer)
    with pytest.raises(NotFinite, match=f"step {step}. It begins with breaks.* Last finite: .* step {step - 1}."):
        trainer.run(tmp_path / "run")
    state = load_checkpoint(tmp_path / "run")
    assert state is not None
    assert int(state["loop"]["methods"]["step"]) == newest
    assert [row["step"] for row in rows_of(tmp_path / "run")] == list(range(4, newest + 1, 4))
    assert all(value.isfinite().all() for value in state["loop"]["network"].values())


def test_a_run_says_how_it_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_draw_batch", lambda self, batch: None)
    with pytest.raises(NotFinite) as caught:
        augury.train(
            [(Breaks, {"step": 2})], settings=config_of().model_dump(), folder=tmp_path / "run", progress=False
        )
    said = str(caught.value)
    assert f"augury run --recipe {tmp_path / 'run' / 'config.json'} --output {tmp_path / 'run-2'} --set" in said, said


def test_a_loss_that_only_evaluation_loses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(config_of())
    monkeypatch.setattr(trainer, "_evaluate", lambda split, network: {"top1": 10.0, "loss": math.nan})
    with pytest.raises(NotFinite, match="the loss on the val images is no longer finite after epoch 1"):
        trainer.run(tmp_path / "run")


# Skipping.


def _state(trainer: Trainer) -> dict[str, Any]:
    """All that a step may change, copied; without what counts steps and draws."""
    loop = trainer.loop
    state = copy.deepcopy(loop.state())
    own = state["ranks"][0]
    tally = {key: value for key, value in own["tally"].items() if key not in ("seconds", "skipped")}
    return {
        "network": state["network"],
        "average": state["average"],
        "methods": {key: value for key, value in state["methods"].items() if key != "step"},
        "momentum": state["optimizer"]["state"],
        "tally": tally,
        "scalars": own["scalars"],
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one == other


def _leaves(state: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, dict):
            found |= {f"{key}/{inner}": leaf for inner, leaf in _leaves(value).items()}
        else:
            found[str(key)] = value
    return found


def _around(trainer: Trainer, steps: list[int]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The state before and after each of those steps (from 1)."""
    found, step = [], trainer.loop._step

    def watched(batches: Any) -> float:
        before = _state(trainer) if trainer.methods.run.step + 1 in steps else None
        seconds = step(batches)
        if before is not None:
            found.append((before, _state(trainer)))
        return seconds

    trainer.loop._step = watched  # type: ignore[method-assign]
    trainer.loop.run(lambda row: None)
    return found


@_places("images", "term's gradient")
def test_a_skipped_step_leaves_no_trace(place: str) -> None:
    methods = ["passing", ("breaks", {"step": 3, "place": place}), "isda"]
    trainer = trainer_of(config_of(*methods, on_nan="skip"))
    (before, after), (_, changed) = _around(trainer, [3, 4])
    assert _same(before, after)
    # All that was compared is what a step changes.
    still = [key for key, value in _leaves(after).items() if _same(value, _leaves(changed)[key])]
    assert all(key.startswith(("tally/unmixed", "tally/correct")) for key in still), still
    assert "methods/methods.isda.covariance" in _leaves(after)
    assert "methods/methods.breaks._extra_state/made" in _leaves(after)
    assert trainer.methods.run.step == 8, "it is counted"


def test_skipped_steps_are_counted_in_rows_and_told_once(tmp_path: Path) -> None:
    heard, rows = Heard(), []
    network = Normed("features", 2)
    trainer = trainer_of(config_of(("breaks", {"step": 4}), on_nan="skip"), network, reporter=heard)
    trainer.loop.run(rows.append)
    assert [row["skipped_steps"] for row in rows] == [2, 0]
    assert all(math.isfinite(row["train_loss"]) for row in rows)
    told = [line for line in heard.lines if "skipped" in line]
    assert len(told) == 1
    assert told[0].startswith("training: step 2 is skipped, its loss is not finite. It begins with the network's own")
    assert trainer.loop.passes == 8 * 25, "what a skipped step cost is counted"
    rows = []
    trainer_of(config_of()).loop.run(rows.append)
    assert "skipped_steps" not in rows[0]


def test_the_learning_rate_goes_on_over_a_skipped_step() -> None:
    rates: dict[str, list[float]] = {}
    for on_nan, step in (("skip", 3), ("stop", 0)):
        trainer = trainer_of(config_of(("breaks", {"step": step}), on_nan=on_nan))
        rates[on_nan] = []
        step_of, optimizer = trainer.loop._step, trainer.loop.optimizer

        def watched(batches: Any, step_of: Any = step_of, optimizer: Any = optimizer, name: str = on_nan) -> float:
            seconds = step_of(batches)
            rates[name].append(optimizer.param_groups[0]["lr"])
            return seconds

        trainer.loop._step = watched  # type: ignore[method-assign]
        trainer.loop.run(lambda row: None)
    assert rates["skip"] == rates["stop"]


@pytest.mark.parametrize("part", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)])
def test_one_bad_part_skips_the_whole_step(part: int) -> None:
    methods = ["passing", ("breaks", {"step": 3, "part": part})]
    trainer = trainer_of(config_of(*methods, on_nan="skip", accumulation=5))
    ((before, after),) = _around(trainer, [3])
    assert _same(before, after)
    trainer = trainer_of(config_of(*methods, accumulation=5))
    assert "in epoch 1, step 3. It begins with breaks" in error_of(trainer)


def test_an_epoch_of_which_all_steps_are_skipped_says_so() -> None:
    class Always(Breaks):
        def _now(self, run: Any, *places: str) -> float | None:
            return math.nan if "term" in places else None

    trainer = trainer_of(config_of(on_nan="skip"))
    chosen = [Chosen("always", Always, Always.Options())]
    methods = Composition(chosen, trainer.plan.spec, seed=3, host=trainer)
    trainer.methods = trainer.loop.methods = trainer.loop.step_module.methods = methods
    with pytest.raises(augury.AuguryError, match=r"all 4 steps with images of this epoch were skipped.*--on-nan stop"):
        trainer.loop.run(lambda row: None)


def test_buffers_that_cannot_be_written_to_are_put_back() -> None:
    trainer = trainer_of(config_of("wide", ("breaks", {"step": 3}), on_nan="skip"))
    ((before, after),) = _around(trainer, [3])
    assert _same(before, after)
    own = trainer.methods["wide"]
    assert (own.base, own.seen.tolist(), own.wide.tolist()) == (8, [8, 8], [8, 8, 8])


def test_saying_where_it_begins_draws_nothing() -> None:
    """A run that is resumed between two such steps says it twice."""
    found = []
    for told in (False, True):
        broken = ("breaks", {"step": 3, "place": "term's gradient"})
        trainer = trainer_of(config_of("dropping", broken, on_nan="skip"))
        trainer.loop.guard._told = told
        trainer.loop.run(lambda row: None)
        found.append(_state(trainer) | {"rng": torch.get_rng_state()})
    assert _same(*found)


def test_saying_where_it_begins_leaves_isdas_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is computed once more for that, of which methods are told."""
    trainer = trainer_of(config_of("isda", ("breaks", {"step": 3, "place": "term's gradient"})))
    states: list[dict[str, Tensor]] = []
    compute = trainer.methods.compute_loss

    def watched(batch: augury.Batch, output: augury.ModelOutput) -> Tensor:
        loss = compute(batch, output)
        state = trainer.methods["isda"].state_dict()
        states.append({name: value.clone() for name, value in state.items()})
        return loss

    monkeypatch.setattr(trainer.methods, "compute_loss", watched)
    error = error_of(trainer)
    assert "It begins with breaks: the gradient of what its `compute_loss` returned." in error
    assert len(states) == 4, "three steps, and the third once more"
    assert not _same(states[1], states[2])
    assert _same(states[2], states[3])
    assert not trainer.methods.run.again


@pytest.mark.parametrize("steps", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_that_skips_goes_on_exactly(tmp_path: Path, steps: int) -> None:
    config = config_of("passing", ("breaks", {"step": 3}), "isda", on_nan="skip")
    trainer_of(config).run(tmp_path / "whole")
    reporter = StopsAfter(steps)
    reporter.trainer = trainer_of(config, reporter=reporter)
    with pytest.raises(Interrupted):
        reporter.trainer.run(tmp_path / "parts")
    trainer_of(config).run(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [row["skipped_steps"] for row in rows_of(tmp_path / "parts")] == [1, 0]


# Two processes, of which one alone meets it.


def _in_one_of_two(rank: int, folder: Path) -> None:
    """Write what each way of going on came to in this process."""
    torch.set_num_threads(1)
    at = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({key: str(value) for key, value in at.items()})
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    broken = ("breaks", {"step": 3, "rank": 1})
    join(config_of())
    told = error_of(trainer_of(config_of("passing", broken, batch_size=24)))
    trainer = trainer_of(config_of("passing", broken, batch_size=24, on_nan="skip"))
    ((before, after),) = _around(trainer, [3])
    weights = [p.detach() for p in trainer.loop.step_module.parameters()]
    torch.save((told, _same(before, after), weights), folder / f"{rank}.pt")


@pytest.mark.slow
def test_what_one_process_meets_all_stop_at_or_skip(tmp_path: Path) -> None:
    mp.spawn(_in_one_of_two, args=(tmp_path,), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for told, undone, weights in found:
        assert "the loss is no longer finite (nan) in epoch 1, step 3." in told
        assert "what its `compute_loss` returned, of a finite loss (in process 1)." in told
        assert undone
        assert all(torch.equal(mine, other) for mine, other in zip(weights, found[0][2], strict=True))
        assert all(value.isfinite().all() for value in weights)
