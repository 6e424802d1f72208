"""The method under other conditions than the ordinary: sizes, channels, precision, a GPU, augury's own loop, others."""

from __future__ import annotations

import torch

from augury.choice import Chosen
from augury.errors import UsageError
from augury_authoring.testing import runs
from augury_authoring.testing.bench import Bench, CheckFailed, NotApplicable, RealRun, attempt, told
from augury_authoring.testing.candidate import Candidate, find
from augury_authoring.testing.checks.state import ADVICE, survives
from augury_authoring.testing.harness import Facts, differing
from augury_authoring.testing.network import NAME

PAIRED = (
    "Other methods may change the rows, their labels (K classes a row) and the outputs before this one sees them; what "
    "cannot be combined is refused before training, by what the class declares: views, mixes, mixes_hidden, unmixed, "
    "pipelines."
)
NEAR = 0.05
"""How far a loss under bfloat16 may be from the one in float32, relatively: it has 8 bits."""


def sizes(bench: Bench, images: tuple[int, ...], what: str) -> None:
    """It works on batches of those sizes (0: the ordinary one), or declares how many rows it needs."""
    bench.ready()
    trial = bench.trial()
    steps = [size or trial.images for size in images]
    if (rows := min(steps) * trial.methods.views) < bench.cls.min_rows:
        raise NotApplicable(f"it declares min_rows = {bench.cls.min_rows}, and that batch has {rows}.")
    advice = "A method that cannot work on fewer rows declares it: min_rows = 2 in the class, say."
    bench.expect(bench.walk(sizes=steps), f"{bench.name}: {what}", advice if rows < trial.images else "")


def channels(bench: Bench, number: int) -> None:
    """It works on images of so many channels."""
    bench.ready()
    if number == 3:
        return
    advice = "Take the number of channels from the images, or from spec.image_size."
    bench.expect(bench.walk(Facts(channels=number)), f"{bench.name}: images of {number} channel", advice)


def bfloat16(bench: Bench) -> None:
    """Under bfloat16 autocast the loss is finite float32 and near that in float32."""
    bench.ready()
    facts = Facts(autocast=True)
    advice = "compute_loss gets float32 and runs outside autocast: leave dtypes as they come."
    walk = bench.walk(facts)
    bench.expect(walk, f"{bench.name}: under bfloat16 autocast", advice)
    if walk.broken - bench.ordinary.broken:
        raise CheckFailed(f"{bench.name}: under bfloat16 autocast, gradients are not finite. {advice}")
    pairs = zip(walk.losses, bench.ordinary.losses, strict=False)
    for step, (low, full) in enumerate(pairs):
        gap = abs(float(low) - float(full))
        if gap > NEAR * max(1.0, abs(float(full))):
            raise CheckFailed(
                f"{bench.name}: under bfloat16 autocast the loss of step {step} is {float(low):.4g} instead of "
                f"{float(full):.4g}. {advice}"
            )


def gpu(bench: Bench) -> None:
    """It works on a GPU: nothing is left on the host."""
    bench.ready()
    if not torch.cuda.is_available():
        raise NotApplicable("there is no GPU here.")
    advice = "Make tensors with device=batch.device, buffers with register_buffer, draws with run.generator."
    bench.expect(bench.walk(Facts(device="cuda:0")), f"{bench.name}: on a GPU", advice)


def own_loop(bench: Bench) -> None:
    """It trains in augury's own loop, on digits, its stage included."""
    bench.ready(gradient=True)
    chosen = [bench.candidate.chosen]
    where = f"{bench.name}: in augury's own loop, on digits and the model `{NAME}`"
    if refused := runs.refusals(chosen, 3, bench.images):
        raise CheckFailed(f"{where}, it is refused: {_lines(refused)}")
    run, known = _run(bench, chosen), {fault.kind for fault in bench.ordinary.faults}
    lines = [run.raised] if run.raised else [fault.text for fault in run.faults if fault.kind not in known]
    if lines:
        raise CheckFailed(f"{where}: {_lines(lines)}")
    trained = run.trained
    # What a training by hand loses already, test_state_survives tells.
    if trained is not None and not bench.verdict(survives)[0]:
        end = attempt(lambda: runs.resume(chosen, 3, bench.images, trained.saved), f"{where}, resumed")
        if found := differing(end, trained.end):
            raise CheckFailed(
                f"{where}: interrupted after a step and resumed, it ends with another `{found[0]}` than unbroken. "
                f"{ADVICE}"
            )


def composes(bench: Bench, other: str, *, first: bool) -> None:
    """With another installed method, before it or behind it, it trains, or is refused before training."""
    bench.ready(gradient=True)
    if any(fault.kind == "form mixes" for fault in bench.ordinary.faults):
        raise NotApplicable("it does not declare that it mixes; see test_batch_keeps_its_form.")
    beside = _other(other)
    pair = [bench.candidate, beside] if first else [beside, bench.candidate]
    if beside.cls is bench.cls:
        raise NotApplicable("it is the same method.")
    chosen = [candidate.chosen for candidate in pair]
    if runs.refusals(chosen, 3, bench.images):
        return
    known: set[str] = set()
    for alone in chosen:
        run = _run(bench, [alone])
        if run.raised:
            whose = "it" if alone.name == bench.name else f"`{other}`"
            raise NotApplicable(f"{whose} does not train alone: {run.raised.splitlines()[0]}")
        known |= {fault.kind for fault in run.faults}
    run = _run(bench, chosen)
    lines = [run.raised] if run.raised else [fault.text for fault in run.faults if fault.kind not in known]
    if lines:
        raise CheckFailed(f"{bench.name}: composed as {'+'.join(c.name for c in chosen)}: {_lines(lines)}\n{PAIRED}")


def _other(name: str) -> Candidate:
    try:
        return find(name, {})
    except UsageError as error:
        raise NotApplicable(f"`{name}` cannot be had: {error}") from None


def _run(bench: Bench, chosen: list[Chosen]) -> RealRun:
    """A short real run. Remembered, since every pair asks for each alone."""
    key = tuple(c.name for c in chosen)
    if key not in bench.trained:
        try:
            bench.trained[key] = RealRun("", runs.train(chosen, 3, bench.images))
        except Exception as error:
            bench.trained[key] = RealRun(told(error))
    return bench.trained[key]


def _lines(lines: list[str]) -> str:
    return "\n".join(dict.fromkeys(lines))
