"""Runs from Python: the same as from the command line, with classes of one's own, and what a resumed one says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from tests.train.small_runs import StopsAfter, assert_same_run, interrupted, small

import augury
from augury_train.progress import Bars
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer
from augury_train.training.watch import Interrupted, Silent

SETTINGS: dict[str, Any] = {
    "seed": 3,
    "device": "cpu",
    "data.images_per_class": 10,
    "data": {"augmented": "crop:1 cutout:3", "loader": "memory"},
    "optim": {"epochs": 2, "batch_size": 25, "lr": 0.05},
    "train.trackers": [],
}


class Brighter(augury.Method):
    """Adds to each image a number of its own, and counts how often."""

    class Options(augury.Options):
        """Its options."""

        scale: float = Field(0.1, ge=0, description="standard deviation of what is added")

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.register_buffer("count", torch.zeros(()))

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        self.count += 1
        noise = torch.randn(len(batch), 1, 1, 1, generator=run.generator, device=batch.device)
        batch.images = batch.images + self.options.scale * noise

    @augury.hookimpl
    def post_epoch(self) -> dict[str, float]:
        return {"count": float(self.count)}


def train(folder: Path, *methods: Any, **given: Any) -> augury.Result:
    given = {"dataset": "digits", "settings": SETTINGS, "progress": False, **given}
    return augury.train(list(methods), folder=folder, **given)


def environment(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "environment.json").read_text())


def test_a_run_from_python_is_that_of_the_command_line(tmp_path: Path) -> None:
    from augury_train.training.trainer import train as run

    run(small(("isda", {"lambda_0": 0.25}), "dcutmix"), tmp_path / "command")
    result = train(tmp_path / "python", "isda:lambda_0=0.25", ("dcutmix", {}))
    assert_same_run(tmp_path / "command", tmp_path / "python")
    assert isinstance(result, augury.Result)
    assert result.folder == str(tmp_path / "python")
    assert result.best["val"].top1 == max(
        json.loads(line)["val_top1"] for line in (tmp_path / "python/metrics.jsonl").read_text().splitlines()
    )


def test_a_class_trains_without_package_or_register_and_goes_on(tmp_path: Path) -> None:
    methods = [(Brighter, {"scale": 0.5}), "dcutmix:k=2"]
    train(tmp_path / "run", *methods)
    assert environment(tmp_path / "run")["methods"] == {
        "brighter": f"class {__name__}.Brighter",
        "dcutmix": f"augury-dcutmix {augury.__version__}",
    }
    broken = tmp_path / "broken"
    reporter = StopsAfter(3)
    register = augury.Register.load().offering("brighter", Brighter)
    config = small(("brighter", {"scale": 0.5}), ("dcutmix", {"k": 2}))
    reporter.trainer = Trainer(make_plan(config, register), reporter=reporter)
    with pytest.raises(Interrupted) as stopped:
        reporter.trainer.run(broken)
    assert str(stopped.value).endswith(f"Go on with: augury.resume({str(broken)!r}, methods=[Brighter])")
    with pytest.raises(augury.UsageError) as refused:
        augury.resume(broken, progress=False)
    assert str(refused.value) == (
        f"{broken}: its method `brighter` is a class that was given in Python, {__name__}.Brighter, and no package "
        f"offers it. Go on in Python: augury.resume({str(broken)!r}, methods=[Brighter])."
    )
    augury.resume(broken, methods=[Brighter], progress=False)
    assert_same_run(tmp_path / "run", broken)
    # A finished run only tells its result, which needs no method.
    assert augury.resume(broken, progress=False).epochs == 2


def test_a_class_goes_before_what_is_installed_under_its_name(tmp_path: Path) -> None:
    isda = type("ISDA", (Brighter,), {"__module__": __name__})
    train(tmp_path / "run", isda, settings={**SETTINGS, "optim.epochs": 1})
    assert environment(tmp_path / "run")["methods"] == {"isda": f"class {__name__}.ISDA"}


def test_a_recipe_is_changed_by_settings_one_by_one(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[data]\ndataset = "digits"\nimages_per_class = 10\n[optim]\nepochs = 1\nbatch_size = 25\nlr = 0.02\n'
        '[[methods]]\nname = "isda"\n[train]\ntrackers = []\n'
    )
    changes = {"optim": {"batch_size": 20}, "methods.isda.lambda_0": 0.75}
    result = augury.train(recipe=recipe, settings=changes, folder=tmp_path / "run", progress=False)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert result.epochs == 1
    assert [config["optim"][key] for key in ("epochs", "batch_size", "lr")] == [1, 20, 0.02]
    assert config["methods"] == [{"name": "isda", "options": {"lambda_0": 0.75}}]
    kept = augury.rehearse(recipe=recipe, settings={"optim": {}, "optim.batch_size": 20})
    assert kept.epochs == 1, "an empty section changes nothing"
    found = augury.rehearse([], recipe="isda/digits", dataset="digits", settings={"optim.batch_size": 50})
    assert (found.methods, found.batch_size) == ([], 50)


def test_a_rehearsal_tells_what_a_run_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = augury.rehearse([Brighter, "agmax"], dataset="digits", settings=SETTINGS)
    assert (found.methods, found.epochs, found.batch_size) == (["brighter", "agmax"], 2, 25)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("methods", "given", "message"),
    [
        ("isda", {}, "methods must be a list, got 'isda'. Write ['isda']."),
        ({"isda": {"lambda_0": 0.9}}, {}, "methods must be a list, got a dict. Write [('isda', {'lambda_0': 0.9})]."),
        (Brighter, {}, "methods must be a list, got Brighter. Write [Brighter]."),
        (5, {}, "methods must be a list, got 5. Write [5]."),
        ([], {"settings": ["optim.epochs=3"]}, "settings must be a dict or a RunConfig, got ['optim.epochs=3']."),
        ([], {"settings": {"optim": 3}}, "settings: key `optim` must be"),
        ([3], {}, "a method of a run must be a name, a class, or one of them with options, got 3. "),
        (["isdaa"], {}, "unknown method `isdaa`. Installed and listed: agmax, "),
        ([int], {}, "int: <class 'int'> is no method: it must be a subclass of augury.Method."),
        ([(Brighter, {"scale": -1})], {}, "brighter: option `scale` must be >= 0, got -1. "),
        ([], {"settings": {"optim.epoch": 3}}, "settings: optim: unknown key `epoch`. "),
        ([], {"recipe": "nowhere.toml"}, "unknown recipe `nowhere.toml`"),
        ([], {"recipe": "isda/digits", "settings": small()}, "settings are a whole RunConfig, and so is a recipe."),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    methods: Any, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(augury.UsageError) as refused:
        augury.train(methods, folder=tmp_path / "run", progress=False, **given)
    assert str(refused.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_progress_is_bars_nobody_or_who_is_given(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    short = {**SETTINGS, "optim.epochs": 1}
    train(tmp_path / "quiet", settings=short)
    assert capfd.readouterr() == ("", "")
    train(tmp_path / "bars", settings=short, progress=True)
    assert "training" in capfd.readouterr().err
    train(tmp_path / "mine", settings=short, progress=Bars("mine"))
    assert "mine" in capfd.readouterr().err


# Going on with other versions.


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def changed(folder: Path, **sections: dict[str, str]) -> None:
    """Let a run have begun with other versions."""
    said = environment(folder)
    for section, values in sections.items():
        said[section] |= values
    (folder / "environment.json").write_text(json.dumps(said))


def test_going_on_with_another_version_of_a_methods_package_is_said_and_kept(tmp_path: Path) -> None:
    config, folder, heard = small("isda", optim={"epochs": 3}), tmp_path / "run", Heard()
    interrupted(config, folder, 3)
    assert "earlier" not in environment(folder)
    changed(folder, methods={"isda": "augury-isda 0.0.9"}, versions={"torch": "2.0"})
    now = {"isda": f"augury-isda {augury.__version__}"}
    result = augury.resume(folder, progress=heard)
    said = [line for line in heard.lines if "went on" in line]
    assert said[0] == (
        f"isda: the run went on with {now['isda']}, and had augury-isda 0.0.9 until then. "
        "It may end otherwise than one without a break."
    )
    assert said[1].startswith(f"torch: the run went on with {environment(folder)['versions']['torch']}, and had 2.0")
    assert len(said) == 2
    assert set(said) <= set(result.notes)
    assert environment(folder)["methods"] == now
    assert [then["methods"]["isda"] for then in environment(folder)["earlier"]] == ["augury-isda 0.0.9"]


def test_a_run_of_before_the_contract_was_said_began_with_the_first(tmp_path: Path) -> None:
    """Its class weights, say, meant something else beside a method that mixes."""
    config, folder, heard = small("dcutmix"), tmp_path / "run", Heard()
    interrupted(config, folder, 3)
    said = environment(folder)
    assert said["versions"].pop("contract") == augury.CONTRACT_VERSION
    (folder / "environment.json").write_text(json.dumps(said))
    augury.resume(folder, progress=heard)
    (line,) = [line for line in heard.lines if "went on" in line]
    assert line.startswith(f"contract: the run went on with {augury.CONTRACT_VERSION}, and had 1.0 until then.")


def test_every_sitting_remembers_the_earlier_ones(tmp_path: Path) -> None:
    config, folder = small("isda", optim={"epochs": 3}), tmp_path / "run"
    interrupted(config, folder, 3)
    changed(folder, methods={"isda": "augury-isda 0.0.9"})
    stops = StopsAfter(3)
    stops.trainer = Trainer(make_plan(config), reporter=stops)
    with pytest.raises(Interrupted):
        stops.trainer.run(folder, resume=True)
    result = augury.resume(folder, progress=False)
    assert sum("had augury-isda 0.0.9" in line for line in result.notes) == 1
    assert len(environment(folder)["earlier"]) == 1


class Wider(Brighter):
    """The same with another state."""

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.register_buffer("count", torch.zeros(2))


def test_state_that_does_not_fit_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    reporter = StopsAfter(3)
    register = augury.Register.load().offering("brighter", Brighter)
    reporter.trainer = Trainer(make_plan(small("brighter"), register), reporter=reporter)
    with pytest.raises(Interrupted):
        reporter.trainer.run(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    wider = augury.Register.load().offering("brighter", Wider)
    with pytest.raises(augury.UsageError) as refused:
        augury.resume(folder, register=wider, progress=False)
    first, *changes = str(refused.value).splitlines()
    assert first.startswith("what the checkpoint holds of the methods does not fit them: ")
    assert "size mismatch for methods.brighter.count" in first
    assert first.endswith("Install the version of the method's package that the run began with, or start the run anew.")
    assert changes == [
        f"brighter: the run went on with class {__name__}.Wider, and had class {__name__}.Brighter until then. "
        "It may end otherwise than one without a break."
    ]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert augury.resume(folder, methods=[Brighter], progress=False).notes == []


def test_another_machine_is_remembered_without_a_line(tmp_path: Path) -> None:
    config, folder = small(optim={"epochs": 1}), tmp_path / "run"
    interrupted(config, folder, 2)
    changed(folder, hardware={"processor": "another"})
    assert augury.resume(folder, progress=False).notes == []
    assert [then["hardware"]["processor"] for then in environment(folder)["earlier"]] == ["another"]


def test_progress_is_no_word(tmp_path: Path) -> None:
    with pytest.raises(augury.UsageError, match="progress must be True, False or a reporter, got 'yes'"):
        augury.resume(tmp_path, progress="yes")


@pytest.mark.parametrize("content", ["", "[1]", '{"methods": 3, "earlier": "x"}', "\udcff"])
def test_a_damaged_environment_stops_no_run(content: str, tmp_path: Path) -> None:
    config, folder = small(optim={"epochs": 1}), tmp_path / "run"
    interrupted(config, folder, 2)
    (folder / "environment.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert augury.resume(folder, progress=False).epochs == 1
    assert environment(folder)["versions"]["augury-core"] == augury.__version__
