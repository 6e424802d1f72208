"""Parts of the contract suite on their own: options and their violations, global generators, worker processes."""

from __future__ import annotations

import io
import multiprocessing
import random
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pytest
import torch
from pydantic import Field, field_validator, model_validator
from tests.authoring import faulty_in_runs as later
from tests.authoring import faulty_methods as planted

import augury
from augury_authoring.testing import globals as world
from augury_authoring.testing.bench import Bench, CheckFailed, NotApplicable
from augury_authoring.testing.candidate import find
from augury_authoring.testing.checks.draws import other_seed
from augury_authoring.testing.checks.options import options
from augury_authoring.testing.checks.processes import agree
from augury_authoring.testing.checks.recipes import readable
from augury_authoring.testing.checks.training import composes
from augury_authoring.testing.faults import mixing_matrix
from augury_authoring.testing.harness import clone, same
from augury_authoring.testing.workers import LIMIT, POLL, Home, ProcessesApart, Reports, Workers, WorkersFailed, _send
from augury_train.recipes import describe


def method(annotation: Any, field: Any) -> type[augury.Method]:
    """A method with one option `x` of that type."""
    made = type("Options", (augury.Options,), {"__annotations__": {"x": annotation}, "x": field})
    return type("M", (augury.Method,), {"Options": made, "augment_batch": planted.Noise.augment_batch})


@pytest.mark.parametrize(
    ("annotation", "field"),
    [
        (float, Field(0.5, ge=0, le=1, description="share")),
        (float, Field(0.5, gt=0, lt=1, description="share")),
        (int, Field(3, ge=1, description="count; must be >= 1")),
        (int, Field(4, multiple_of=2, description="even")),
        (float | None, Field(None, ge=0, description="weight")),
        (Annotated[float, Field(gt=0)], Field(1.0, description="width")),
        (Literal["a", "b"], Field("a", description="kind")),
        (bool, Field(False, description="whether")),
        (str | None, Field(None, description="name")),
        (list[int], Field([1], min_length=1, description="sizes")),
        (tuple[float, float] | None, Field(None, description="range")),
        (float, Field(1.0, description="weight. Paper: 0.5 in the best run, at least 4 in others")),
        (float, Field(1.0, allow_inf_nan=True, description="bound; infinity for none")),
    ],
)
def test_options_that_keep_their_word_pass(annotation: Any, field: Any) -> None:
    assert Bench(find(method(annotation, field), {})).verdict(options, []) == ("", "")


@pytest.mark.parametrize(
    ("annotation", "field", "said"),
    [
        (Any, Field(1, description="anything"), "must have a type"),
        (float, Field(0.5, description="share in [0, 1]"), r"`x` = -0.5 is accepted; it must be in \[0, 1\]"),
        (float, Field(0.5, description="share in (0, 1)"), r"`x` = 0.0 is accepted"),
        (int, Field(2, description="layers; must be at least 1"), "`x` = 0.0 is accepted; it must be at least 1"),
        (float, Field(0.5, description="width; must be positive"), "`x` = 0.0 is accepted; it must be positive"),
        (int, Field(0, ge=1, description="count"), "its own default 0 is refused"),
        (int, Field(1, description=" "), "has no description"),
    ],
)
def test_options_that_do_not_are_named(annotation: Any, field: Any, said: str) -> None:
    given = {"x": 1} if "own default" in said else {}
    made = method(annotation, field)
    with pytest.raises(CheckFailed, match=said):
        options(Bench(find(made, given)), [])


def together(share: Any, **given: Any) -> type[augury.Method]:
    """A method whose option `rate` goes with the kind `free` alone."""

    class Together(augury.Method):
        class Options(augury.Options):
            kind: str = Field(description="of what", **given)
            rate: float = share

            @model_validator(mode="after")
            def _fit(self) -> Self:
                if self.kind != "free" and self.rate != 0.5:
                    raise ValueError("rate only with the kind free")
                return self

        augment_batch = planted.Noise.augment_batch

    return Together


BOUNDED, IN_WORDS = Field(0.5, ge=0, description="share"), Field(0.5, description="share; must be >= 0")


def test_a_required_option_and_two_that_must_fit_are_no_fault() -> None:
    for given in ({"kind": "free", "rate": 0.7}, {"kind": "fixed"}):
        assert Bench(find(together(BOUNDED), given)).verdict(options, []) == ("", "")


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ({"default": "fixed"}, {}, r"`rate` = -0.5 is refused only together with others .*rate only with the kind"),
        ({}, {"kind": "free"}, "`rate` = -0.5 is accepted"),
    ],
)
def test_a_neighbour_does_not_hide_a_bound_that_is_not_enforced(
    kind: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckFailed, match=said):
        options(Bench(find(together(IN_WORDS, **kind), given)), [])


def test_what_must_be_refused_is_put_among_the_options_of_the_test() -> None:
    bench = Bench(find(together(BOUNDED), {"kind": "free"}))
    options(bench, [{"kind": "fixed", "rate": 0.7}])
    with pytest.raises(CheckFailed, match="`rate` = 0.7 is accepted; it must be refused, as `rejects` says"):
        options(bench, [{"rate": 0.7}])


def test_a_state_that_holds_more_than_tensors_is_copied_and_compared() -> None:
    state = {"mean": torch.zeros(2), "extra": {"seen": [1, torch.ones(2)]}}
    copied = clone(state)
    assert same(copied, state)
    copied["extra"]["seen"][1] += 1
    assert not same(copied, state)


def test_a_schedule_is_no_draw_and_a_generator_of_ones_own_is_one() -> None:
    with world.kept():
        with pytest.raises(NotApplicable, match="no draws that show"):
            other_seed(Bench(find(later.Curriculum, {})))
        with pytest.raises(CheckFailed, match="changes from step to step"):
            other_seed(Bench(find(later.OwnDice, {})))


def test_a_process_whose_master_has_given_up_says_nothing() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    assert _send(theirs, ("done", None)) is None, "no BrokenPipeError"
    theirs.close()


def test_a_validator_that_raises_otherwise_is_named() -> None:
    class Odd(augury.Method):
        class Options(augury.Options):
            x: float = Field(1.0, description="weight")

            @field_validator("x")
            @classmethod
            def _known(cls, value: float) -> float:
                return {1.0: 1.0, 2.0: 1.0}[value]

        augment_batch = planted.Noise.augment_batch

    with pytest.raises(CheckFailed, match="`x` = 3.0 must be refused, as `rejects` says, and raises KeyError instead"):
        options(Bench(find(Odd, {})), [{"x": 3.0}])


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda: None, {}),
        (lambda: torch.rand(2), {"torch": "draws"}),
        (lambda: torch.manual_seed(5), {"torch": "reseeds"}),
        (lambda: np.random.rand(2), {"numpy": "draws"}),
        (lambda: np.random.seed(1), {"numpy": "reseeds"}),
        (lambda: (random.random(), torch.rand(1)), {"torch": "draws", "Python": "draws"}),
        (lambda: random.seed(1), {"Python": "reseeds"}),
    ],
)
def test_what_a_call_does_to_the_global_generators_is_seen(call: Any, found: dict[str, str]) -> None:
    with world.kept():
        assert world.touched(call) == found


def test_the_global_generators_are_as_before() -> None:
    before = world.state()
    with world.kept():
        world.seed("other")
        assert world.state() != before
    assert world.state() == before


def test_a_class_that_cannot_be_imported_by_name_is_loaded_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "here.py"
    path.write_text("class M: pass\n")
    name = "no_such_package.tests.here"
    try:
        Home(name, str(path)).load()
        assert sys.modules[name].M.__module__ == name
    finally:
        sys.modules.pop(name, None)
    with pytest.raises(ImportError):
        Home("no_such_module_at_all", "").load()


def test_a_class_inside_a_function_is_not_sent_to_processes() -> None:
    class Local(planted.Noise):
        pass

    with world.kept(), pytest.raises(NotApplicable, match="inside a function"):
        agree(Bench(find(Local, {})), Workers())


def test_a_pair_that_is_refused_before_training_passes() -> None:
    class Views(planted.Noise):
        views = 2
        views_alike = True

    bench = Bench(find(Views, {}))
    with world.kept():
        composes(bench, "dcutmix", first=True)
    assert not bench.trained


def test_another_method_that_cannot_be_imported_is_not_this_ones_fault() -> None:
    bench = Bench(find(planted.Noise, {}))
    with world.kept(), pytest.raises(NotApplicable, match="cannot be had"):
        composes(bench, "no_such_method", first=True)


def test_a_mixing_inside_the_network_is_told_as_a_matrix() -> None:
    rows = torch.tensor([2, 0, 1])
    matrix = mixing_matrix(lambda hidden: 0.25 * hidden + 0.75 * hidden[rows], 3)
    assert matrix is not None
    assert matrix.tolist() == [[0.25, 0.0, 0.75], [0.75, 0.25, 0.0], [0.0, 0.75, 0.25]]
    for other in (lambda hidden: hidden.flip(3), lambda hidden: hidden.square()):
        assert mixing_matrix(other, 3) is None


def double(rank: int, reports: Reports, number: int) -> int:
    """A job."""
    return 2 * number + rank


def fail(rank: int, reports: Reports) -> None:
    """A job that one of the processes fails at, while the other waits for it."""
    from torch import distributed as dist

    if rank == 1:
        raise ValueError("no such thing")
    dist.barrier()


class Script:
    """A process's pipe as `Workers` reads it: messages, and how many looks in vain come before each."""

    exitcode = -9

    def __init__(self, *messages: tuple[int, tuple[str, Any] | None]) -> None:
        self._messages = list(messages)

    def poll(self, seconds: float = 0.0) -> bool:
        if not self._messages:
            return False
        waits, message = self._messages[0]
        self._messages[0] = (waits - 1, message)
        return waits < 1

    def recv_bytes(self) -> bytes:
        _, message = self._messages.pop(0)
        if message is None:
            raise EOFError
        file = io.BytesIO()
        torch.save(message, file)
        return file.getvalue()

    def join(self, seconds: float) -> None:
        pass


def heard(*scripts: Script) -> list[Any]:
    """What `Workers` makes of what two processes say."""
    workers: Any = Workers()
    workers._connections = workers._processes = list(scripts)
    return workers._answers()


LONG = int(0.45 * LIMIT / POLL)
"""Looks in vain that come near the limit where both processes are silent."""


def begins(what: str) -> tuple[str, str]:
    return "begin", what


def collective(name: str) -> tuple[str, str]:
    return "collective", name


def test_slow_processes_are_waited_for_as_long_as_they_report() -> None:
    steps = [(LONG, begins(f"compute_loss of step {step}")) for step in range(5)]
    assert heard(Script(*steps, (LONG, ("done", 8))), Script(*steps, (LONG, ("done", 9)))) == [8, 9]


def test_a_process_that_says_nothing_for_long_is_told_with_its_last_call() -> None:
    with pytest.raises(WorkersFailed) as failure:
        heard(Script((0, ("done", 8))), Script((0, begins("compute_loss of step 3"))))
    assert str(failure.value) == (
        "Process 0 has finished. Process 1 has not answered for 600 s; its last call was compute_loss of step 3."
    )
    assert not isinstance(failure.value, ProcessesApart), "nothing says that the processes disagree"


def test_a_process_that_ends_is_told_with_its_exit_code() -> None:
    with pytest.raises(WorkersFailed, match=r"^process 0 ended with exit code -9; its last call was the start\.$"):
        heard(Script((0, begins("the start")), (0, None)), Script())


def test_collectives_that_differ_are_told_at_once() -> None:
    step = begins("compute_loss of step 2")
    with pytest.raises(ProcessesApart) as failure:
        heard(Script((0, step), (0, collective("run.ranks.sum or mean"))), Script((0, ("done", None))))
    assert str(failure.value) == (
        "process 0 calls run.ranks.sum or mean in compute_loss of step 2, and process 1 finished without that call."
    )
    # Process 0 fails in a collective; what process 1 reported before is read first.
    failed = (0, ("failed", "RuntimeError: sizes differ"))
    with pytest.raises(ProcessesApart, match="while process 1 calls run.ranks.gather_rows in the end"):
        heard(
            Script((0, step), (0, collective("run.ranks.sum or mean")), failed),
            Script((2, begins("the end")), (0, collective("run.ranks.gather_rows"))),
        )
    both = (0, step), (0, collective("run.ranks.gather_rows"))
    with pytest.raises(WorkersFailed, match="^process 0: RuntimeError: sizes differ$") as failure:
        heard(Script(*both, failed), Script(*both))
    assert not isinstance(failure.value, ProcessesApart)


@pytest.mark.slow
def test_workers_work_after_a_job_that_failed() -> None:
    workers, home = Workers(), Home.of(planted.Noise)
    try:
        assert workers.run(home, double, 4) == [8, 9]
        with pytest.raises(WorkersFailed, match="process 1: ValueError: no such thing"):
            workers.run(home, fail)
        assert workers.run(home, double, 5) == [10, 11]
    finally:
        workers.stop()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[methods]]\nname = "dcutmix"\n', ""),
        (
            '[[methods]]\nname = "dcutmix"\n[methods.options]\nkk = 2\n',
            "recipe dcutmix/mine: dcutmix: unknown option `kk`",
        ),
        ("[optim]\nepoch = 3\n", "recipe dcutmix/mine: optim: unknown key `epoch`"),
        ("[optim\n", "recipe dcutmix/mine: cannot be read"),
        ('[[methods]]\nname = "not_here"\n[methods.options]\na = 2\n', ""),
    ],
)
def test_recipes_that_cannot_be_run_are_told(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    monkeypatch.setattr("augury_authoring.testing.checks.recipes.recipes", lambda _: [describe("dcutmix/mine", path)])
    bench = Bench(find("dcutmix", {}))
    if not told:
        readable(bench)
        return
    with pytest.raises(CheckFailed, match=f"^{re.escape(told)}"):
        readable(bench)
