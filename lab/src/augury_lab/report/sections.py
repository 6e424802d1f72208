"""The sections below the answer: tables, settings, data, pictures, runs and machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from augury_lab.experiment.table import Comparison, columns, cost_columns, explanation
from augury_lab.experiment.wording import SPARE
from augury_lab.report import settings
from augury_lab.report.evaluated import evaluation
from augury_lab.report.gather import Facts, RunFacts
from augury_lab.report.images import Picture, picture
from augury_lab.report.parts import Section, Table
from augury_lab.report.words import NONE, SPLITS, duration, kind_of, memory, number

MANY = 30
"""Class names that are still shown at once."""


def results(facts: Facts) -> Section | None:
    """The numbers: a comparison's table, or a run's."""
    if facts.comparison:
        return _comparison(facts.comparison)
    return _run(facts.runs[0]) if facts.kind == "run" and facts.runs[0].result else None


def _comparison(comparison: Comparison) -> Section:
    titles, rows = columns(comparison)
    marks = ["base" if row.difference is None else kind_of(row.difference) for row in comparison.rows]
    spare = [0, *(place for place, title in enumerate(titles) if title in SPARE)]
    main = [0, *(place for place in range(1, len(titles)) if place not in spare)]
    if judged := titles[-1] == "verdict":
        # First what is asked for: a narrow screen shows no more.
        main = [0, main[-1], *main[1:-1]]
    good = Table(*_only(main, titles, rows), "How good", words=(1,) if judged else (), marks=marks if judged else ())
    tables = [good, Table(*_only(spare, titles, rows), "Other measures")]
    return Section(
        "results", "Results", explanation(comparison), tables=[*tables, Table(*cost_columns(comparison), "Cost")]
    )


def _only(
    places: Sequence[int], titles: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    return [titles[place] for place in places], [[row[place] for place in places] for row in rows]


def _run(run: RunFacts) -> Section:
    result = run.result
    assert result is not None
    rows = [
        [f"{which}, {SPLITS.get(split, split)}", *(number(v, d) for v, d in _measures(found))]
        for which, by_split in ((f"epoch {result.best_epoch} (best)", result.best), ("last epoch", result.last))
        for split, found in by_split.items()
    ]
    costs = result.costs
    facts = [
        ("Time", duration(costs.seconds)),
        ("of it pre-train stages", duration(costs.stage_seconds) if costs.stage_seconds else "none"),
        ("Images per second in training", number(costs.images_per_second, 0)),
        ("Forward passes", number(costs.forward_passes, 0)),
        ("Largest memory", memory(costs.peak_bytes)),
    ]
    table = Table(["network of", "top-1 / %", "top-5 / %", "NLL / nats", "ECE / %"], rows)
    return Section("results", "Results", facts=facts, tables=[table])


def _measures(found: Any) -> list[tuple[Any, int]]:
    return [(found.top1, 2), (found.top5, 2), (found.nll, 3), (found.ece, 2)]


def sections(facts: Facts, problems: list[str]) -> list[Section]:
    """Everything below the charts; what cannot be shown is added to `problems`."""
    found = [evaluation(place, one, facts.folder, problems) for place, one in enumerate(facts.evaluations, 1)]
    if facts.runs:
        found += [_settings(facts), _images(facts, problems)]
        if facts.kind == "comparison":
            found.append(_runs(facts))
        found.append(_machines(facts.runs))
    return found


def _settings(facts: Facts) -> Section:
    configs = {name: [run.config for run in facts.of(name) if run.config] for name in facts.names}
    configs = {name: given for name, given in configs.items() if given}
    tables = []
    if len(configs) > 1:
        rows = [
            [key, *(found.get(name, NONE) for name in configs)] for key, found in settings.differing(configs).items()
        ]
        if rows:
            caption = "Only the settings that are not alike in all compositions; seeds aside."
            words = range(1, len(configs) + 1)
            tables.append(Table(["setting", *configs], rows, "What differs", caption, words))
    shared = settings.shared([config for given in configs.values() for config in given])
    if shared:
        title = "Alike in all, and not the default" if len(configs) > 1 else "What is not the default"
        tables.append(Table(["setting", "value", "default"], shared, title, words=(1, 2)))
    methods = _methods(facts.runs)
    if methods:
        tables.append(Table(["method", "version"], methods, "Methods", words=(1,)))
    folded = [
        (
            f"All settings of {name}" if len(configs) > 1 else "All settings",
            json.dumps(given[0], indent=2, ensure_ascii=False),
        )
        for name, given in configs.items()
    ]
    return Section("settings", "What was run", tables=tables, folded=folded)


def _methods(runs: Sequence[RunFacts]) -> list[tuple[str, str]]:
    """Names and versions, in the order in which they are first named."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        methods = run.config.get("methods")
        for method in methods if isinstance(methods, list) else []:
            name = str(method.get("name")) if isinstance(method, dict) else str(method)
            found.setdefault(name, {})[str(run.methods.get(name, "not recorded"))] = None
    return [(name, " / ".join(versions)) for name, versions in found.items()]


def _images(facts: Facts, problems: list[str]) -> Section:
    data = next((run.data for run in facts.runs if run.data), {})
    if any(
        run.data and (run.data.get("images"), run.data.get("classes")) != (data.get("images"), data.get("classes"))
        for run in facts.runs
    ):
        problems.append("data.json: the runs' images are not the same, so that their numbers cannot be compared.")
    classes = [str(name) for name in data.get("classes") or []] if isinstance(data.get("classes"), list) else []
    names = ", ".join(classes)
    folded = [(f"The {len(classes)} classes", names)] if len(classes) > MANY else []
    groups = []
    for name in facts.names:
        run = next((run for run in facts.of(name) if (run.folder / "figures").is_dir()), None)
        if run is not None:
            groups.append((run.name if facts.kind == "comparison" else "", _figures(run, problems)))
    return Section(
        "images",
        "Images",
        text="Below, what the first training batch became, with its labels and their shares, and what methods drew."
        if any(pictures for _, pictures in groups)
        else "",
        facts=_data_facts(data, len(classes), "" if folded else names),
        pictures=groups,
        folded=folded,
    )


def _data_facts(data: dict[str, Any], classes: int, names: str) -> list[tuple[str, str]]:
    if not data:
        return []
    images = data.get("images")
    found = [("Data set", str(data.get("dataset", NONE)))]
    for split, count in images.items() if isinstance(images, dict) else []:
        found.append((f"Images, {SPLITS.get(split, split)}", number(count, 0)))
    found.append(("Classes", f"{classes}: {names}" if names else str(classes)))
    side, test = data.get("image_size"), data.get("test_size")
    shape = f"{data.get('channels')} x {side} x {side}"
    found.append(("Channels, height, width", shape if test in (None, side) else f"{shape}; tested at {test} x {test}"))
    found.append(("Loader", str(data.get("loader", NONE))))
    skipped = data.get("skipped")
    if isinstance(skipped, list) and skipped:
        found.append(("Images left out", str(len(skipped))))
    return found


def _figures(run: RunFacts, problems: list[str]) -> list[Picture]:
    folder = run.folder / "figures"
    paths = sorted(folder.rglob("*.png"), key=lambda path: (path != folder / "batch.png", str(path)))
    shown = [picture(path, _title(path, folder), problems) for path in paths]
    return [found for found in shown if found is not None]


def _title(path: Path, folder: Path) -> str:
    if path == folder / "batch.png":
        return "First training batch"
    return path.relative_to(folder).with_suffix("").as_posix().replace("_", " ").replace("/", ": ")


def _runs(facts: Facts) -> Section:
    titles = ["run", "epochs", "best epoch", "test top-1 / %", "last epoch / %", "validation top-1 / %", "time"]
    rows = []
    for run in (run for name in facts.names for run in facts.of(name)):
        result = run.result
        if result is None:
            rows.append([f"{run.name} (not finished)", str(run.epochs), *[NONE] * 5])
            continue
        best, last = ({s: found.top1 for s, found in m.items()} for m in (result.best, result.last))
        shown = [number(best.get("test")), number(last.get("test")), number(best.get("val"))]
        rows.append([run.name, str(result.epochs), str(result.best_epoch), *shown, duration(result.costs.seconds)])
    return Section("runs", "Every run", tables=[Table(titles, rows)])


def _machines(runs: Sequence[RunFacts]) -> Section:
    """What a result depends on; several values where the runs differ."""
    tables = []
    for title, label, said in (
        ("Versions", "package", [run.versions for run in runs]),
        ("Hardware", "", [run.hardware for run in runs]),
    ):
        values: dict[str, dict[str, None]] = {}
        for one in said:
            for key, value in one.items():
                shown = memory(value) if key.endswith("_bytes") else NONE if value is None else str(value)
                values.setdefault(key, {})[shown] = None
        rows = [(key.removesuffix("_bytes"), " / ".join(found)) for key, found in values.items()]
        if rows:
            tables.append(Table([label or "part", "version" if label else "what"], rows, title, words=(1,)))
    return Section("machines", "Versions and hardware", tables=tables)
