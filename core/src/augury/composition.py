"""The methods of one run, checked together and then made: the only thing that a training loop needs of augury."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from augury.adapters import named, plugin_manager
from augury.batch import PIPELINES, Batch, ModelOutput
from augury.choice import Chosen, MethodLike, check, choose
from augury.distributed import Ranks
from augury.errors import AuguryError, MethodError, UsageError, refuse_all
from augury.frozen import Frozen
from augury.method import Method, Spec, declared
from augury.randomness import derive
from augury.registry import Register
from augury.run import NETWORK, OWN_DRAWS, Host, RunState


def compose(
    methods: Iterable[MethodLike],
    *,
    num_classes: int,
    classifier: nn.Module | None = None,
    network: nn.Module | None = None,
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    image_size: tuple[int, int, int] | None = None,
    num_images: int | None = None,
    class_counts: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    build_network: Callable[[], nn.Module] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    ranks: Ranks | None = None,
    register: Register | None = None,
) -> Composition:
    """Compose methods for a training loop.

    Args:
        methods: names, (name, options) pairs, `Method` classes or objects; their order is the order of calls.
        num_classes: C.
        classifier: the network's last layer, features M x A -> logits M x C.
        network: the network itself, for methods that use it.
        total_steps: optimiser steps of the whole training, for methods with a schedule.
        steps_per_epoch: optimiser steps of an epoch, for methods that count epochs.
        image_size: (channels, height, width).
        num_images: images of the training split, for methods that keep something of each.
        class_counts: training images of each class, C numbers.
        mean, std: of each channel on the scale of [0, 1], with which the images are normalised.
        build_network: makes a network like the one in training, for methods that keep weights of it.
        seed: what every draw of the methods derives from.
        device: where the training runs; the classifier's device when None, else the CPU.
        ranks: the processes that train together; the default process group when None.
        register: what a name may mean; the built-in and the user's register when None.

    Raises:
        UsageError: every unknown name, bad option, missing need and conflict, a line each.
    """
    chosen, problems = choose(methods, register)
    # A tensor or an array is as good as a list.
    counts = [] if class_counts is None else [int(count) for count in class_counts]
    if class_counts is not None and (len(counts) != num_classes or min(counts) < 0 or not sum(counts)):
        told = f"class_counts must be {num_classes} numbers >= 0, the images of each class, got {counts[:20]}."
        problems.append(told)
    linear = classifier if isinstance(classifier, nn.Linear) else None
    spec = Spec(
        num_classes=num_classes,
        num_features=linear.in_features if linear is not None else None,
        image_size=image_size,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        num_images=num_images,
        class_counts=None if class_counts is None else tuple(counts),
        mean=None if mean is None else tuple(map(float, mean)),
        std=None if std is None else tuple(map(float, std)),
        build_network=build_network,
    )
    refuse_all(problems + check(chosen, spec, classifier))
    if device is None:
        device = next(iter(classifier.parameters())).device if classifier is not None else "cpu"
    return Composition(chosen, spec, seed=seed, device=device, ranks=ranks, network=network, classifier=classifier)


class Composition(nn.Module):
    """Methods made ready to train with.

    A module: its parameters are the methods' (give them to the optimiser), its state dict holds all that a method must
    not lose, under `methods.<name>.`, and the step. `composition["name"]` is the method of that name.

    Attributes:
        views: versions of each image that a batch needs.
        pipelines: names of the ways in which images are made; a batch's `pipeline` counts them.
        pipeline_shares: of the rows that each pipeline is to make, by name.
        view_pipelines: the pipeline that is to make each view, by name; empty where rows are made by their shares.
        run: what methods see of the run (`augury.Run`); `run.step` counts optimiser steps.
    """

    def __init__(
        self,
        chosen: Sequence[Chosen],
        spec: Spec,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
        network: nn.Module | None = None,
        classifier: nn.Module | None = None,
        host: Host | None = None,
        pipelines: tuple[str, ...] = PIPELINES,
    ) -> None:
        """Make the methods of a choice that `check` has passed; users call `compose`."""
        super().__init__()
        self.pipelines = pipelines
        self.views = max((c.cls.views for c in chosen), default=1)
        self.pipeline_shares = pipeline_shares(chosen, pipelines)
        self.view_pipelines = view_pipelines(chosen, pipelines)
        self.run = RunState(spec, seed, torch.device(device), ranks or Ranks(), network, classifier, host)
        self._ranks_given = ranks is not None
        self.methods = nn.ModuleDict({c.name: _make(c, spec, seed) for c in chosen})
        self.to(self.run.device)
        self._manager = plugin_manager(self._members(), self.run)

    def __getitem__(self, name: str) -> Method:
        """The method of that name."""
        return self.methods[name]  # type: ignore[return-value]

    @property
    def frozen_passes(self) -> int:
        """Rows that went through networks that methods froze, in this process."""
        return sum(part.passes for part in (*self.modules(), *self.run.networks.values()) if isinstance(part, Frozen))

    @property
    def keeps_last(self) -> str:
        """The name of a method for which the network after the last step is the one that counts; "" for none."""
        members = self._members()
        return next((name for name, made in members if declared(type(made), made.options, "keeps_last")), "")

    def _members(self) -> Iterator[tuple[str, Method]]:
        return iter(self.methods.items())  # type: ignore[arg-type]

    def batch(
        self,
        images: Tensor | Sequence[Tensor],
        labels: Tensor,
        *,
        pipeline: Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Batch:
        """Make a batch of the images that a loop has loaded.

        Args:
            images: N x ch x H x W float, or one such tensor a view.
            labels: N int64.
            pipeline: M int64 indices into `self.pipelines`, view-major: which one made each row, by
                `self.pipeline_shares`. When None, by `self.view_pipelines`, else all `augmented`.
            indices: N int64 positions in the training split; 0 to N-1 when None.

        Raises:
            UsageError: another number of views than the methods need, too few rows, labels that do not fit the images,
                or no `pipeline` where a method asks for rows of several.
        """
        views = [images] if isinstance(images, Tensor) else list(images)
        problems, classes = [], self.run.spec.num_classes
        if len(views) != self.views:
            needy = [name for name, method in self._members() if method.views > 1] or ["this composition"]
            problems.append(
                f"{needy[0]}: needs {self.views} view(s) of each image, got {len(views)}. Pass a tuple of {self.views}."
            )
        if labels.ndim != 1 or any(len(v) != len(labels) for v in views):
            sizes = ", ".join(str(tuple(v.shape)) for v in views)
            problems.append(
                f"labels of shape {tuple(labels.shape)} do not fit images of {sizes}: one class for each image."
            )
        # Reading labels on another device would make the host wait for it.
        elif labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            found = f"{int(labels.min())} to {int(labels.max())}"
            problems.append(f"labels must be in 0 to {classes - 1} (num_classes={classes}), got {found}.")
        for name, method in self._members():
            if len(labels) * len(views) < method.min_rows:
                problems.append(
                    f"{name}: needs at least {method.min_rows} rows in a batch, got {len(labels) * len(views)}."
                )
            if pipeline is None and (asked := method.pipelines(method.options)) is not None:
                problems += _unmade(name, asked, self.pipelines)
        refuse_all(problems)
        n = len(views)
        if pipeline is None and self.view_pipelines:
            made = torch.tensor([self.pipelines.index(name) for name in self.view_pipelines])
            pipeline = made.repeat_interleave(len(labels)).to(views[0].device)
        return Batch.of(
            views[0] if n == 1 else torch.cat(views),
            labels.repeat(n),
            views=n,
            pipeline=pipeline,
            indices=None if indices is None else indices.repeat(n),
            pipelines=self.pipelines,
        )

    def pre_train_stage(self, host: Host | None = None) -> None:
        """Let the methods prepare, once, before a fresh training; `host` lends what the stages need, if the run has
        none yet."""
        self.run.host = host or self.run.host
        self.run.in_stage = True
        try:
            self._call("pre_train_stage")
        finally:
            self.run.in_stage = False

    @torch.no_grad()
    def augment_batch(self, batch: Batch) -> None:
        """Let the methods change the batch in place, in full precision whatever autocast the loop is under.

        Raises:
            MethodError: what a method raised.
            UsageError: the methods were composed before the processes knew of each other.
        """
        if not self._ranks_given and Ranks().size != self.run.ranks.size:
            raise UsageError(
                "the methods were composed for one process, and torch.distributed has been started since. Call "
                "augury.compose after it, or tell compose which processes train together: ranks=augury.Ranks(group)."
            )
        with torch.autocast(batch.device.type, enabled=False):
            self._call("augment_batch", batch=batch)

    def compute_loss(self, batch: Batch, output: ModelOutput) -> Tensor:
        """Return the scalar loss of what the network made of the batch, in float32 whatever autocast the loop is under.

        Raises:
            MethodError: what a method raised, or a method mixes inside the network and the output was made without it.
        """
        if batch.hidden is not None and not batch.hidden.done:
            raise MethodError(
                f"rows of this batch are to be mixed at layer `{batch.hidden.layer}`, inside the network, and its "
                "output was made without that. Make it with augury.forward(model, batch)."
            )
        with torch.autocast(batch.device.type, enabled=False):
            output = output.float()
            if self.run.trail is not None:
                self.run.trail.output(NETWORK, output)
            return self._call("compute_loss", batch=batch, output=output)

    def post_epoch(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Let the methods look at an epoch's row; returns what they logged and returned, as `<method>/<key>`."""
        found = self._call("post_epoch", metrics=dict(metrics))
        return self.run.scalars.flush(self.run.ranks, self.run.device) | {
            key: value for part in found for key, value in part.items()
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Composition:
        """What moves the methods moves what they draw with."""
        super()._apply(fn, *args, **kwargs)
        if hasattr(self, "run"):
            self.run.device = fn(torch.empty(0, device=self.run.device)).device
            for network in self.run.networks.values():
                network._apply(fn)
        return self

    @torch.no_grad()
    def step(self, changed: bool = True) -> None:
        """Let the methods look at the network after an optimiser step, and count it: call it once after each
        `optimizer.step()`; with `changed=False` where that was left out. After the training's last step they always
        look, since some finish their work there."""
        if changed or self.run.step + 1 == self.run.spec.total_steps:
            self._call("post_step")
        self.run.step += 1

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """While this is open, losses are computed once more, with the draws of the step that were made already."""
        self.run.again = True
        try:
            yield
        finally:
            self.run.again = False

    def _call(self, hook: str, **given: Any) -> Any:
        self.run.hook = hook if hook in OWN_DRAWS else ""
        try:
            return getattr(self._manager.hook, hook)(run=self.run, **given)
        finally:
            self.run.hook = ""

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "step"] = torch.tensor(self.run.step)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.run.step = int(state_dict.pop(prefix + "step", self.run.step))
        super()._load_from_state_dict(state_dict, prefix, *args)


def pipeline_shares(chosen: Sequence[Chosen], pipelines: tuple[str, ...]) -> dict[str, float]:
    """The share of the rows that each pipeline makes: what a method asks for; else the last one makes all."""
    for c in chosen:
        wanted = c.cls.pipelines(c.options)
        if wanted is not None:
            return {name: wanted.get(name, 0.0) for name in pipelines}
    return {name: float(name == pipelines[-1]) for name in pipelines}


def view_pipelines(chosen: Sequence[Chosen], pipelines: tuple[str, ...]) -> tuple[str, ...]:
    """The pipeline that makes each view: what a method asks for, the last one for views beyond that; empty where none
    asks."""
    asked = max((c.cls.view_pipelines for c in chosen), key=len, default=())
    views = max((c.cls.views for c in chosen), default=1)
    return (*asked, *[pipelines[-1]] * (views - len(asked))) if asked else ()


def _unmade(name: str, asked: Mapping[str, float], pipelines: tuple[str, ...]) -> list[str]:
    """A line for a method that asks for rows of other pipelines than the last, where nobody says who made which."""
    others = [pipeline for pipeline in pipelines[:-1] if asked.get(pipeline, 0) > 0]
    shares = ", ".join(f"{asked[pipeline]:g} of them from `{pipeline}`" for pipeline in others)
    return (
        [
            f"{name}: asks for rows of several pipelines, {shares}. Pass pipeline=…, for each row the number of its "
            f"pipeline in {pipelines}."
        ]
        if others
        else []
    )


def _make(chosen: Chosen, spec: Spec, seed: int) -> Method:
    if chosen.made is not None:
        return chosen.made
    # Its initial weights depend on the seed and its name alone, and leave the network's draws as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, chosen.name, "init"))
        try:
            made = chosen.cls(chosen.options, spec)
        except AuguryError:
            raise
        except (Exception, SystemExit) as error:
            raise named(error, chosen.name, "__init__", chosen.cls) from error
    if "_modules" not in vars(made):
        raise MethodError(f"{chosen.name}: its `__init__` must begin with super().__init__(options, spec).")
    return made
