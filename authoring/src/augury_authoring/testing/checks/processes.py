"""Two processes on halves of a batch do what one does on the whole."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from augury.batch import Batch
from augury.choice import Chosen
from augury.distributed import Ranks
from augury.hidden import HiddenMix
from augury.method import hook_implementations
from augury.run import Host
from augury_authoring.testing import globals as world
from augury_authoring.testing.bench import Bench, CheckFailed, NotApplicable, attempt
from augury_authoring.testing.checks.draws import other_seed
from augury_authoring.testing.checks.network import left_alone
from augury_authoring.testing.checks.state import survives
from augury_authoring.testing.faults import mixing_matrix
from augury_authoring.testing.harness import IMAGES, Trial, clone, gradients, same, tensors_of
from augury_authoring.testing.workers import SIZE, Home, ProcessesApart, ReportingRanks, Reports, Workers, WorkersFailed

STEPS = 4
LOOKS = 8
"""Steps of a whole training whose batches are only augmented, to see whether the processes decide alike."""
ADVICE = (
    "What is summed or averaged over a batch is summed over all processes: run.ranks.mean (differentiable), "
    "run.ranks.sum, run.ranks.gather_rows. The network's BatchNorm statistics differ from process to process: state "
    "that is made of them takes their run.ranks.mean."
)

COLLECTIVES = (
    "A collective (run.ranks) must be called by all processes or none: what decides about it comes from run.random, "
    "which decides alike in all."
)


@dataclass
class Record:
    """What one process saw of one step.

    Attributes:
        before, augmented, after: the methods' state before the step, after `augment_batch` and after `compute_loss`.
        network: the weights before the step.
        fields: the batch after `augment_batch`.
        handed: attributes of the method that are no state: what `augment_batch` may hand to `compute_loss`.
        layer, mixing: where rows are mixed inside the network, and how, M x M; None where that is not linear.
        drew: whether something was drawn in `augment_batch`.
        drew_later: whether in `compute_loss`: then one process would draw otherwise, and there is nothing to compare.
        loss, gradients: averaged over the processes; None where no image was left.
        stepped: the weights and statistics behind `post_step`.
    """

    before: dict[str, Any]
    network: dict[str, Tensor]
    fields: dict[str, Tensor]
    augmented: dict[str, Any]
    handed: dict[str, Any]
    layer: str
    mixing: Tensor | None
    drew: bool
    drew_later: bool = False
    loss: Tensor | None = None
    gradients: dict[str, Tensor] | None = None
    after: dict[str, Any] | None = None
    stepped: dict[str, Tensor] = field(default_factory=dict)


class _Lent:
    """Lends the images of some batches, each process its part, as a trainer does."""

    folder: Path | None = None

    def __init__(self, trial: Trial, rank: int) -> None:
        self._trial, self._rank = trial, rank

    def loader(self, pipeline: str, images: Tensor | None = None) -> Iterable[Batch]:
        """Two batches of one view."""
        return (part(self._trial.batch(number), self._rank).view(0) for number in range(2))


def agree(bench: Bench, workers: Workers) -> None:
    """Two processes decide alike; loss, gradients and state are those of one process on the joined rows."""
    bench.ready()
    before = {
        survives: "test_state_survives",
        other_seed: "test_other_seed_other_draws",
        left_alone: "test_network_is_left_alone",
    }
    for check, test in before.items():
        if bench.verdict(check)[0]:
            raise NotApplicable(f"two processes cannot agree with one; see {test}.")
    if bench.ordinary.leaves_gradients:
        raise NotApplicable("its gradients are not the loss's alone; see test_gradients_arrive.")
    if "<locals>" in bench.cls.__qualname__:
        raise NotApplicable("its class is defined inside a function, where another process cannot find it.")
    chosen = bench.candidate.chosen
    try:
        sent = pickle.dumps((chosen.name, chosen.cls, chosen.options))
    except Exception as error:
        raise NotApplicable(f"its class or options cannot be sent to another process: {error}") from None
    made = bench.chosen().made
    state = None if made is None else clone(made.state_dict())
    try:
        records = workers.run(Home.of(bench.cls), work, sent, state)
    except ProcessesApart as error:
        raise CheckFailed(f"{bench.name}: of two processes, {error} {COLLECTIVES}") from None
    except WorkersFailed as error:
        raise CheckFailed(f"{bench.name}: two processes: {error}") from None
    _alike(bench.name, records)
    attempt(lambda: _Joined(bench, records).compare(), f"{bench.name}: one process on what two had augmented")


def work(
    rank: int, reports: Reports, sent: bytes, state: dict[str, Any] | None
) -> tuple[list[tuple[int, int]], list[Record]]:
    """What a process does: shapes (M, K) of some augmented batches, then some steps."""
    name, cls, options = pickle.loads(sent)
    ranks = ReportingRanks(reports)
    looks = _trial(Chosen(name, cls, options), state, ranks)
    looks.methods.run.host = cast(Host, _Lent(looks, rank))
    shapes = []
    for number in range(LOOKS):
        reports.begin(f"augment_batch of step {number}")
        batch = part(looks.batch(number), rank)
        looks.augment(batch)
        shapes.append((len(batch), batch.labels.shape[1]))
        reports.begin(f"post_step of step {number}")
        looks.methods.step()
    reports.begin("the suite's comparison of shapes")
    if len(set(map(str, ranks.gather_objects(shapes)))) > 1:
        return shapes, []
    trial = _trial(Chosen(name, cls, options), state, ranks)
    trial.methods.run.host = cast(Host, _Lent(trial, rank))
    records = [_step(trial, name, rank, reports) for _ in range(STEPS)]
    # Behind the last step of a training, where a method may finish its work.
    records[-1].stepped |= {f"{key} at the end": value for key, value in clone(looks.network.state_dict()).items()}
    return shapes, records


def _trial(chosen: Chosen, state: dict[str, Any] | None, ranks: Ranks | None = None) -> Trial:
    trial = Trial([chosen], ranks=ranks)
    # Each process must have the rows that the method needs.
    trial.images = SIZE * max(IMAGES // SIZE, math.ceil(chosen.cls.min_rows / trial.methods.views))
    if state is not None:
        trial.methods[chosen.name].load_state_dict(state)
    # Masks are drawn by each process; a batch normalisation takes the statistics of its own rows, as a network's does.
    for module in trial.methods.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm):
            module.eval()
    return trial


def part(batch: Batch, rank: int) -> Batch:
    """A process's images of a batch, in every view."""
    n = len(batch) // batch.views // SIZE
    batch.take(torch.arange(rank * n, (rank + 1) * n))
    return batch


def _step(trial: Trial, name: str, rank: int, reports: Reports) -> Record:
    step = trial.step_number
    before, network = clone(trial.methods.state_dict()), clone(trial.network.state_dict())
    batch = part(trial.batch(), rank)
    reports.begin(f"augment_batch of step {step}")
    drew = _draws(trial, name, "augment", lambda: trial.methods.augment_batch(batch))
    method, hidden = trial.methods[name], batch.hidden
    record = Record(
        before,
        network,
        tensors_of(batch),
        clone(trial.methods.state_dict()),
        _plain_attributes(method),
        "" if hidden is None else hidden.layer,
        None if hidden is None else mixing_matrix(hidden.mix, len(batch)),
        drew,
    )
    if len(batch):
        losses: list[Tensor] = []
        reports.begin(f"compute_loss of step {step}")
        record.drew_later = _draws(trial, name, "loss", lambda: losses.append(trial.loss(batch)))
        loss = losses[0]
        reports.begin(f"the backward pass of step {step}")
        if loss.requires_grad:
            loss.backward()
        reports.begin(f"the suite's mean of the gradients of step {step}")
        for parameter in (*trial.network.parameters(), *trial.methods.parameters()):
            if parameter.grad is not None:
                parameter.grad = trial.methods.run.ranks.mean(parameter.grad)
        record.loss = trial.methods.run.ranks.mean(loss.detach())
        record.gradients = gradients(trial.network, trial.methods)
    record.after = clone(trial.methods.state_dict())
    if record.gradients is not None:
        trial.optimizer.step()
        trial.optimizer.zero_grad()
    reports.begin(f"post_step of step {step}")
    trial.methods.step()
    if "post_step" in hook_implementations(type(method)):
        # The network's own statistics are of each process's rows in a loop without a trainer.
        record.stepped = clone(dict(trial.network.named_parameters()))
    return record


def _draws(trial: Trial, name: str, what: str, call: Callable[[], object]) -> bool:
    """Whether a call draws: from the method's generators, or from a global one."""
    trial.seed(what)
    fresh = world.state()
    with world.asked() as names:
        call()
    return name in names or world.state() != fresh


_OF_MODULES = {*vars(nn.Module()), "options", "spec"}


def _plain_attributes(method: nn.Module) -> dict[str, Any]:
    """Tensors, numbers and text that a method keeps beside its state."""
    plain = (Tensor, int, float, str, bool, type(None))
    return {k: v for k, v in vars(method).items() if k not in _OF_MODULES and isinstance(v, plain)}


def _alike(name: str, found: list[tuple[list[tuple[int, int]], list[Record]]]) -> None:
    (shapes, records), (others, other_records) = found
    for number, (one, other) in enumerate(zip(shapes, others, strict=True)):
        if one != other:
            what = f"{one[0]} rows of {one[1]} labels, the other {other[0]} of {other[1]}"
            raise CheckFailed(
                f"{name}: the processes decide apart: of batch {number} one made {what}. What decides about a whole "
                "batch comes from run.random, which is alike in all processes."
            )
    for step, (mine, theirs) in enumerate(zip(records, other_records, strict=True)):
        assert mine.after is not None
        assert theirs.after is not None
        if apart := _apart(mine.after, theirs.after):
            raise CheckFailed(f"{name}: after step {step} the processes hold different states: {apart}. {ADVICE}")
        if apart := _apart(mine.stepped, theirs.stepped):
            raise CheckFailed(
                f"{name}: post_step of step {step} leaves the processes with different networks: {apart}. {ADVICE}"
            )


class _Joined:
    """One process that is given what two had."""

    def __init__(self, bench: Bench, found: list[tuple[Any, list[Record]]]) -> None:
        self.bench, self.name = bench, bench.name
        self.steps = list(zip(*(records for _, records in found), strict=True))

    def compare(self) -> None:
        """Go through the steps, each from where the two processes were."""
        made = self.bench.chosen().made
        trial = _trial(self.bench.candidate.chosen, None if made is None else made.state_dict())
        for step, records in enumerate(self.steps):
            self._step(trial, step, records)

    def _step(self, trial: Trial, step: int, records: tuple[Record, ...]) -> None:
        first = records[0]
        trial.network.load_state_dict(first.network)
        batch = self._batch(trial, step, records)
        if batch is None or any(r.drew_later for r in records):
            return
        loss = trial.loss(batch)
        if loss.requires_grad:
            loss.backward()
        where = f"{self.name}: in step {step}, two processes and one on the joined rows differ"
        assert first.loss is not None
        assert first.gradients is not None
        assert first.after is not None
        for what, one, other in (
            ("the loss", {"loss": first.loss}, {"loss": loss.detach()}),
            ("the gradients", first.gradients, gradients(trial.network, trial.methods)),
            ("the state", first.after, trial.methods.state_dict()),
        ):
            if apart := _apart(one, other):
                raise CheckFailed(f"{where} in {what}: {apart}. {ADVICE}")
        trial.optimizer.zero_grad()
        # Without `post_step`: the network is not trained here, each step begins from the two's.
        trial.methods.run.step += 1

    def _batch(self, trial: Trial, step: int, records: tuple[Record, ...]) -> Batch | None:
        """The joined rows after `augment_batch`, and the method in the state it then had."""
        first, batch = records[0], trial.batch(step)
        joined = {name: _join([r.fields[name] for r in records], batch.views) for name in first.fields}
        if not any(r.drew for r in records):
            trial.methods.load_state_dict(first.before)
            trial.augment(batch)
            if not _apart(joined, tensors_of(batch)):
                return batch if len(batch) else None
        # One process would draw otherwise, or choose otherwise among more rows: it is given what the two made.
        batch = trial.batch(step)
        trial.methods.load_state_dict(first.augmented)
        rows = len(first.fields["labels"])
        for key, value in first.handed.items():
            setattr(trial.methods[self.name], key, _handed(key, value, records, rows, batch.views))
        for name, value in joined.items():
            setattr(batch, name, value)
        return batch if len(batch) and (not first.layer or self._mix_inside(batch, records)) else None

    @staticmethod
    def _mix_inside(batch: Batch, records: tuple[Record, ...]) -> bool:
        matrices = [r.mixing for r in records if r.mixing is not None]
        if len(matrices) < len(records) or len({r.layer for r in records}) > 1:
            return False

        def mix(hidden: Tensor) -> Tensor:
            by_rank = hidden.unflatten(0, (batch.views, len(records), -1)).transpose(0, 1)
            mixed = [
                torch.einsum("ij,j...->i...", m, rows.flatten(0, 1)) for m, rows in zip(matrices, by_rank, strict=True)
            ]
            return _join(mixed, batch.views)

        batch.hidden = HiddenMix(records[0].layer, mix, len(batch))
        return True


def _join(parts: list[Tensor], views: int) -> Tensor:
    """The processes' rows as one batch, view-major."""
    return torch.cat([rows.unflatten(0, (views, -1)) for rows in parts], 1).flatten(0, 1)


def _handed(key: str, value: Any, records: tuple[Record, ...], rows: int, views: int) -> Any:
    """An attribute as one process would have it: joined where it has a row for each of the batch's."""
    if isinstance(value, Tensor) and value.ndim and len(value) in (rows, rows // views):
        return _join([r.handed[key] for r in records], views if len(value) == rows else 1)
    return value


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where two states, or sets of tensors, are apart by more than the order of sums explains; "" for nowhere."""
    for name in {**one, **other}:
        if name not in one or name not in other:
            return f"`{name}` is on one side only"
        a, b = one[name], other[name]
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            if not same(a, b):
                return f"`{name}` is {a!r} in two, {b!r} in one"
            continue
        if a.shape != b.shape:
            return f"`{name}` has the shapes {tuple(a.shape)} and {tuple(b.shape)}"
        if not a.numel():
            continue
        a, b = a.double(), b.double()
        scale = float(b.abs().nan_to_num(0, 0, 0).max())
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale + 1e-6, equal_nan=True):
            place = int((a - b).abs().nan_to_num(torch.inf).argmax())
            return f"`{name}` is {float(a.flatten()[place]):.6g} in two, {float(b.flatten()[place]):.6g} in one"
    return ""
