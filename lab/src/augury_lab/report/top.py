"""The top of the page: the answer in words, the key facts, and what qualifies them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from augury_lab.report.gather import Facts, RunFacts
from augury_lab.report.parts import Header
from augury_lab.report.words import MANY, SPLITS, answer, duration, highest, is_number, listed, number, seeds_in_words


def header(facts: Facts) -> Header:
    """What a reader sees first."""
    folder = facts.folder.resolve()
    # Within a comparison, the folder above has the composition's name.
    name = f"{folder.parent.name}/{folder.name}" if folder.name.startswith("seed-") else folder.name
    kicker = {"run": "Run", "comparison": "Comparison", "evaluation": "Evaluation"}[facts.kind]
    headline, *lead = {"run": _of_run, "comparison": _of_comparison, "evaluation": _of_evaluation}[facts.kind](facts)
    return Header(
        title=f"{name}: augury {facts.kind}",
        kicker=f"{kicker} {name}",
        headline=headline,
        lead=lead,
        facts=_key_facts(facts) if facts.runs else [],
        unfinished=_unfinished(facts),
        notes=_notes(facts.runs),
    )


def _of_evaluation(facts: Facts) -> list[str]:
    names = [str(run.get("name")) for one in facts.evaluations for run in one.runs]
    return [f"What {listed(names)} came to" if names else "An evaluation without runs"]


def _of_comparison(facts: Facts) -> list[str]:
    if facts.comparison:
        return answer(facts.comparison) + highest(facts.comparison)
    finished = sum(run.result is not None for run in facts.runs)
    asked = len(facts.asked) or len(facts.runs)
    if finished < asked:
        return [f"Not finished: {finished} of {asked} runs are done.", "There is no table before all of them are."]
    return ["There is no table.", "All runs are done; the same `augury compare` writes it."]


def _of_run(facts: Facts) -> list[str]:
    (run,) = facts.runs
    result = run.result
    if result is None:
        return [f"Not finished: {_progress(run)}."]
    split = result.judged_on
    best, last = result.best.get(split), result.last.get(split)
    headline = f"{number(best and best.top1)} % {SPLITS.get(split, split)} top-1"
    if result.chosen_on == split:
        chosen = f"chosen on the same {SPLITS.get(split, split)} images, which flatters"
    else:
        chosen = f"chosen on the {SPLITS.get(result.chosen_on, result.chosen_on)} images"
    lead = f"Epoch {result.best_epoch} of {result.epochs}, {chosen}. The last epoch: {number(last and last.top1)} %."
    return [headline, lead + (" Of the averaged weights." if result.weights == "ema" else "")]


def _progress(run: RunFacts) -> str:
    epochs = run.epochs_asked
    return f"{run.epochs} of {epochs} epochs are done" if is_number(epochs) else f"{run.epochs} epochs are done"


def _key_facts(facts: Facts) -> list[tuple[str, str]]:
    first = facts.runs[0]
    found: list[tuple[str, str]] = []
    if facts.kind == "comparison":
        finished = sum(run.result is not None for run in facts.runs)
        seeds = facts.comparison.seeds if facts.comparison else sorted({s for _, s in facts.asked})
        found.append(("Compositions", str(len(facts.names))))
        found.append(("Each with", seeds_in_words(seeds) if seeds else "unknown seeds"))
        found.append(("Runs finished", f"{finished} of {len(facts.asked) or len(facts.runs)}"))
    else:
        found.append(("Methods", " + ".join(_methods(first)) or "none"))
        found.append(("Seed", "unknown" if first.seed is None else str(first.seed)))
    for label, section, key in (("Data set", "data", "dataset"), ("Network", "model", "name")):
        found.append((label, _alike(facts.runs, section, key)))
    if facts.comparison and facts.comparison.equal == "compute":
        found.append(("Equal for all", "forward passes"))
    else:
        found.append(("Epochs", _alike(facts.runs, "optim", "epochs")))
    seconds = sum(r.result.costs.seconds for r in facts.runs if r.result and is_number(r.result.costs.seconds))
    found.append(("Time of all runs" if facts.kind == "comparison" else "Time", duration(seconds) if seconds else "–"))
    return found


def _methods(run: RunFacts) -> list[str]:
    methods = run.config.get("methods")
    return [str(m.get("name")) for m in methods if isinstance(m, dict)] if isinstance(methods, list) else []


def _alike(runs: Sequence[RunFacts], section: str, key: str) -> str:
    values: dict[str, None] = {}
    for run in runs:
        said: Any = run.config.get(section)
        values[str(said.get(key)) if isinstance(said, dict) and said.get(key) is not None else "unknown"] = None
    return ", ".join(values)


def _unfinished(facts: Facts) -> list[str]:
    lines = [f"{run.name}: {_progress(run)}." for run in facts.runs if run.result is None]
    begun = {(run.composition, run.seed) for run in facts.runs}
    absent = [f"{name}, seed {seed}" for name, seed in facts.asked if (name, seed) not in begun]
    if absent:
        lines.append(f"Not begun: {'; '.join(absent)}.")
    if lines and facts.kind == "comparison":
        lines.append("Go on with the `augury compare` that began it: finished runs are not repeated.")
    elif lines:
        lines.append(f"Go on with: augury resume {facts.folder}")
    return lines


def _notes(runs: Sequence[RunFacts]) -> list[str]:
    """Each note once, with the runs that told it."""
    told: dict[str, list[RunFacts]] = {}
    for run in runs:
        for note in dict.fromkeys(map(str, run.result.notes if run.result else [])):
            told.setdefault(note, []).append(run)
    return [note + _by(theirs, runs) for note, theirs in told.items()]


def _by(theirs: Sequence[RunFacts], runs: Sequence[RunFacts]) -> str:
    if len(runs) == 1:
        return ""
    if len(theirs) > MANY:
        return f" ({'all' if len(theirs) == len(runs) else f'{len(theirs)} of {len(runs)}'} runs)"
    return f" ({'; '.join(run.name for run in theirs)})"
