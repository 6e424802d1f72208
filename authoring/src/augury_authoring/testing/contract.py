"""The contract suite as a class of pytest's tests. docs/testing.md tells of each what it asks, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from augury_authoring.testing.bench import Bench, NotApplicable
from augury_authoring.testing.candidate import installed_others
from augury_authoring.testing.checks import basics, declared, draws, network, processes, recipes, state, training
from augury_authoring.testing.checks import options as given
from augury_authoring.testing.workers import Workers


class MethodContract:
    """Checks a method against the whole contract: derive from it and name the method.

    Class attributes:
        method: the name of an installed method, which no register has to list, or a `Method` class.
        options: to test with; the defaults where there are none.
        rejects: options that must be refused, beside those that their types and bounds exclude.
    """

    method: ClassVar[object] = None
    options: ClassVar[Mapping[str, Any]] = {}
    rejects: ClassVar[Sequence[Mapping[str, Any]]] = ()

    def test_hooks_and_declarations(self, augury_bench: Bench) -> None:
        """The class is one whose hooks can be called as meant."""
        _ask(basics.hooks, augury_bench)

    def test_options(self, augury_bench: Bench) -> None:
        """Options refuse what they say they refuse, and each is described."""
        _ask(given.options, augury_bench, self.rejects)

    def test_declarations(self, augury_bench: Bench) -> None:
        """What the class declares of views, and what its options declare."""
        _ask(declared.declarations, augury_bench)

    def test_recipes(self, augury_bench: Bench) -> None:
        """Its package's recipes are settings that can be run."""
        _ask(recipes.readable, augury_bench)

    def test_pre_train_stage(self, augury_bench: Bench) -> None:
        """The stage runs, and makes the same again."""
        _ask(basics.stage, augury_bench)

    def test_a_step_works(self, augury_bench: Bench) -> None:
        """Ordinary steps raise nothing."""
        _ask(basics.a_step, augury_bench)

    def test_batch_keeps_its_form(self, augury_bench: Bench) -> None:
        """Shapes, dtypes and devices of the batch."""
        _ask(basics.batch_form, augury_bench)

    def test_labels_stay_shares(self, augury_bench: Bench) -> None:
        """Labels, their shares and smoothing, and the weights of rows."""
        _ask(basics.labels, augury_bench)

    def test_settings_of_rows_are_kept(self, augury_bench: Bench) -> None:
        """The weights and the smoothing that rows come with."""
        _ask(basics.kept, augury_bench)

    def test_loss_is_one_number(self, augury_bench: Bench) -> None:
        """A finite float32 scalar."""
        _ask(basics.loss, augury_bench)

    def test_own_criterion_heeds_the_batch(self, augury_bench: Bench) -> None:
        """The shares of labels and the weights of rows, where the method replaces the criterion."""
        _ask(basics.criterion, augury_bench)

    def test_images_are_declared(self, augury_bench: Bench) -> None:
        """Whether `compute_loss` looks at the batch's images."""
        _ask(declared.images, augury_bench)

    def test_class_logits_are_declared(self, augury_bench: Bench) -> None:
        """Whether the method's own criterion reads them."""
        _ask(declared.class_logits, augury_bench)

    def test_more_views_than_asked_for(self, augury_bench: Bench) -> None:
        """As another method may need."""
        _ask(declared.more_views, augury_bench)

    def test_a_loss_computed_again(self, augury_bench: Bench) -> None:
        """Of one batch, with the same draws; no state moves."""
        _ask(declared.again, augury_bench)

    def test_gradients_arrive(self, augury_bench: Bench) -> None:
        """At every parameter of the network and of the method, finite, and the loss's alone."""
        _ask(basics.gradients, augury_bench)

    def test_same_seed_same_draws(self, augury_bench: Bench) -> None:
        """Whatever the global generators hold."""
        _ask(draws.same_seed, augury_bench)

    def test_other_seed_other_draws(self, augury_bench: Bench) -> None:
        """The draws follow the run's seed."""
        _ask(draws.other_seed, augury_bench)

    def test_draws_of_others_are_left_alone(self, augury_bench: Bench) -> None:
        """Another method's, and those of the global generators."""
        _ask(draws.others_draws, augury_bench)

    def test_state_survives(self, augury_bench: Bench) -> None:
        """Saved, loaded and gone on with: the same to the last bit."""
        _ask(state.survives, augury_bench)

    def test_network_is_left_alone(self, augury_bench: Bench) -> None:
        """No hook leaves other weights, or other statistics of BatchNorm."""
        _ask(network.left_alone, augury_bench)

    def test_evaluation_is_untouched(self, augury_bench: Bench) -> None:
        """The network is what its weights are."""
        _ask(network.evaluation, augury_bench)

    @pytest.mark.parametrize(
        ("images", "what"),
        [
            pytest.param((7, 9), "odd numbers of images", id="odd"),
            pytest.param((1, 1), "a single image", id="single"),
            pytest.param((0, 0, 5, 0), "a short batch among others", id="short"),
        ],
    )
    def test_batches_of_any_size(self, augury_bench: Bench, images: tuple[int, ...], what: str) -> None:
        """Odd, single-image and short batches."""
        _ask(training.sizes, augury_bench, images, what)

    @pytest.mark.parametrize("number", [1, 3])
    def test_channels(self, augury_bench: Bench, number: int) -> None:
        """Grey and colour images."""
        _ask(training.channels, augury_bench, number)

    def test_bfloat16(self, augury_bench: Bench) -> None:
        """Under autocast."""
        _ask(training.bfloat16, augury_bench)

    def test_gpu(self, augury_bench: Bench) -> None:
        """Where there is one."""
        _ask(training.gpu, augury_bench)

    def test_trains(self, augury_bench: Bench) -> None:
        """In augury's own loop."""
        _ask(training.own_loop, augury_bench)

    def test_composes(self, augury_bench: Bench, other: str, first: bool) -> None:
        """With each installed method, before it and behind it."""
        _ask(_composes, augury_bench, other, first)

    def test_two_processes_agree(self, augury_bench: Bench, augury_workers: Workers) -> None:
        """With each other, and with one."""
        _ask(processes.agree, augury_bench, augury_workers)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each installed method and order."""
        if "other" in metafunc.fixturenames:
            names = installed_others(self.method)
            cases = [(name, first) for name in names for first in (True, False)]
            ids = [f"before {name}" if first else f"behind {name}" for name, first in cases]
            metafunc.parametrize(("other", "first"), cases or [("", True)], ids=ids or ["nothing"])


def _composes(bench: Bench, other: str, first: bool) -> None:
    if not other:
        raise NotApplicable("no other method is installed.")
    training.composes(bench, other, first=first)


def _ask(check: Callable[..., None], bench: Bench, *arguments: Any) -> None:
    """Run a check; what it says is a test's outcome, without a traceback of the suite."""
    __tracebackhide__ = True
    failed, skipped = bench.verdict(check, *arguments)
    if failed:
        pytest.fail(failed, pytrace=False)
    if skipped:
        pytest.skip(skipped)
