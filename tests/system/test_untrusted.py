"""A recipe, a run folder and a register from the internet do nothing beyond a training: nothing outside the folder is
written, and no code is run that nobody trusts."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.in_process import augury
from tests.train.small_runs import small

from augury.errors import UsageError
from augury_lab.evaluation.subject import load_subject
from augury_lab.report import write_report
from augury_train.backbones import build, starting
from augury_train.config import ModelConfig
from augury_train.data.readers import open_reader
from augury_train.training.trainer import resume, train

ROOT = Path(__file__).parents[2]
ENTRIES = (
    "config.json",
    "data.json",
    "environment.json",
    "metrics.jsonl",
    "metrics.jsonl.partial",
    "result.json",
    "best.safetensors",
    "last.safetensors",
    "best.safetensors.partial",
    "checkpoints",
    "checkpoints/step-000000002.pt",
    "stages",
    "stages/isda",
    "figures",
    "figures/batch.png.partial",
    "tensorboard",
    "evaluation",
    "report.html.partial",
)
TARGETS = ("mine/thesis.txt", "mine/sub", "mine/new")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed before its end."""
    folder = tmp_path_factory.mktemp("made") / "run"
    train(small("isda", data={"images_per_class": 3}, optim={"epochs": 1, "batch_size": 10}), folder)
    for name in ("result.json", "last.safetensors"):
        (folder / name).unlink()
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, as one would have downloaded it, beside what is dear to its user."""
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "thesis.txt").write_text("dear", encoding="utf-8")
    shutil.copytree(made, tmp_path / "download" / "run")
    return tmp_path / "download" / "run"


def content(folder: Path) -> dict[str, str]:
    """Every entry and what it holds; where a link leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        key = str(path.relative_to(folder))
        if path.is_symlink():
            found[key] = os.readlink(path)
        else:
            found[key] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


def change(folder: Path, **sections: Any) -> None:
    """Change a run folder's settings; sections are merged."""
    path = folder / "config.json"
    said = json.loads(path.read_text(encoding="utf-8"))
    for name, section in sections.items():
        said[name] = {**said[name], **section} if isinstance(section, dict) else section
    path.write_text(json.dumps(said), encoding="utf-8")


class Payload:
    """Makes a file when a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


# Links.


@pytest.mark.parametrize(
    ("entry", "target"),
    [
        # Each entry with one target in the quick part, and each target with some.
        pytest.param(entry, target, marks=() if place % len(TARGETS) == kind else pytest.mark.slow)
        for place, entry in enumerate(ENTRIES)
        for kind, target in enumerate(TARGETS)
    ],
)
def test_a_link_out_of_the_folder_is_refused_by_name_before_anything_is_written(
    folder: Path, tmp_path: Path, entry: str, target: str
) -> None:
    place = folder / entry
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / target)
    before = content(tmp_path)
    for work in (resume, write_report, load_subject):
        with pytest.raises(UsageError, match=f"{entry} is a link to .*/{target}"):
            work(folder)
    assert content(tmp_path) == before


def test_relative_and_chained_links_are_followed_to_their_end(folder: Path, tmp_path: Path) -> None:
    (folder / "inner").symlink_to("figures")
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "batch.png").unlink(missing_ok=True)
    (folder / "figures" / "batch.png").symlink_to("../../../mine/thesis.txt")
    with pytest.raises(UsageError, match=r"figures/batch.png is a link to"):
        resume(folder)
    (folder / "figures" / "batch.png").unlink()
    # One that stays inside is nobody's concern, and neither is a folder that is reached by one.
    (tmp_path / "here").symlink_to(folder)
    assert resume(tmp_path / "here").epochs == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "dear"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none")
def test_a_pipe_is_refused_instead_of_waited_for(folder: Path) -> None:
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    with pytest.raises(UsageError, match=r"metrics.jsonl is neither file nor folder"):
        resume(folder)


def test_an_evaluation_removes_only_files_of_its_own_kind(folder: Path, tmp_path: Path) -> None:
    from augury_lab.evaluation.writing import _remove_earlier

    said = {"files": ["thesis.txt", "../mine/thesis.txt", "..", "a\x00", "old.csv", "config.json", 5]}
    for name in ("thesis.txt", "old.csv"):
        (folder / name).write_text("x", encoding="utf-8")
    (folder / "evaluation.json").write_text(json.dumps(said), encoding="utf-8")
    _remove_earlier(folder)
    assert (folder / "thesis.txt").exists()
    assert (folder / "config.json").exists()
    assert not (folder / "old.csv").exists()
    assert (tmp_path / "mine" / "thesis.txt").exists()


# Methods.


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is installed and listed nowhere; the file that it makes when it is imported."""
    site, marker = tmp_path / "site", tmp_path / "imported"
    info = site / "evil-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[augury.methods]\nevil = evil:Evil\n")
    (site / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    monkeypatch.syspath_prepend(str(site))
    return marker


LISTS_IT = """
[methods.evil]
distribution = "evil"
entry_point = "evil:Evil"
versions = ">=0"
[aliases.isda]
method = "evil"
[aliases.nice]
method = "evil"
[defaults.evil]
x = 1
"""


@pytest.mark.parametrize(
    "name",
    [
        "evil",
        "nice",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("../../evil", "evil:Evil", "os", "/etc/passwd")),
        "isda\x00",
    ],
)
def test_no_method_runs_that_only_the_download_lists(
    folder: Path, evil: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change(folder, methods=[{"name": name, "options": {}}])
    for place in (folder, folder.parent):
        (place / "registry.toml").write_text(LISTS_IT, encoding="utf-8")
        # As a package of its own, too: a command run from the folder must not import from it.
        (place / "evil.py").write_text(f"import pathlib\npathlib.Path({str(evil)!r}).touch()\n")
    for place in (folder, folder.parent):
        monkeypatch.chdir(place)
        code, _, err = augury(capsys, "resume", str(folder))
        assert code == 2, err
        recipe = place / "recipe.toml"
        recipe.write_text(f"methods = [{{ name = {json.dumps(name)} }}]\n", encoding="utf-8")
        code, _, err = augury(capsys, "run", "--recipe", str(recipe), "--dry-run")
        assert code == 2, err
    assert not evil.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "text", ['trust = ["evil"]', "[register]\ntrust = true", '[[methods]]\nname = "evil"\ntrust = true']
)
def test_a_recipe_cannot_trust(tmp_path: Path, evil: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"{text}\n", encoding="utf-8")
    code, _, err = augury(capsys, "run", "--recipe", str(recipe), "--dry-run")
    assert code == 2
    assert "trust" in err or "register" in err
    assert not evil.exists()


def test_an_alias_of_a_project_cannot_stand_in_for_a_method(
    tmp_path: Path, evil: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "registry.toml").write_text(LISTS_IT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code, out, err = augury(capsys, "run", "--with", "isda", "--set", "data.images_per_class=3", "--set",
                            "optim.batch_size=10", "--dry-run")  # fmt: skip
    assert code == 0, err
    assert "isda" in out
    assert "[aliases.isda] is ignored" in err
    assert not evil.exists()


# Networks, weights and data.


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/model", "local-dir:{here}", "hf_hub:x", "resnet18.no_such_tag", "../x"]
)
def test_models_come_from_timm_alone(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "test_resnet"}', encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    change(folder, model={"name": name.format(here=tmp_path), "pretrained": True})
    # A run at its very beginning: nothing is refused before the network is asked for.
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match=r"unknown model|tag"):
        resume(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "key", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "features_only", "num_classes"]
)
def test_arguments_of_a_network_name_no_files(folder: Path, tmp_path: Path, key: str) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    cfg = {"file": str(weights), "custom_load": True, "url": weights.as_uri(), "num_classes": 10}
    change(folder, model={"kwargs": {key: cfg if "cfg" in key else str(weights)}, "pretrained": True})
    for work in (resume, load_subject):
        with pytest.raises(UsageError, match=f"must not have `{key}`"):
            work(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", ["pth", "pt", "safetensors", "npz"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_weights_to_start_from_are_never_carried_out(tmp_path: Path, ending: str, protocol: int) -> None:
    marker, path = tmp_path / "ran", tmp_path / f"weights.{ending}"
    for payload in (
        Payload(marker),
        {"state_dict": Payload(marker)},
        {"state_dict_ema": {"fc.weight": Payload(marker)}},
    ):
        path.write_bytes(pickle.dumps(payload, protocol))
        with pytest.raises(UsageError, match="cannot be read"):
            build(ModelConfig(name="test_resnet", init_from=str(path)), 10, (1, 8, 8))
        torch.save(payload, path, pickle_protocol=max(protocol, 2))
        with pytest.raises(UsageError, match="cannot be read"):
            starting.find(ModelConfig(name="test_resnet", init_from=str(path)))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"model_args": '{"checkpoint_path": "weights.pth"}'}, "`model_args` must not have `checkpoint_path`"),
        ({"model_args": '{"pretrained_cfg": {"file": "weights.pth"}}'}, "`model_args` must not have `pretrained_cfg`"),
        ({"model": "hf-hub:someone/model"}, "unknown model `hf-hub:someone/model`"),
        ({"model": "../x"}, "unknown model `../x`"),
        # Of what cannot be read nothing is said, and so the weights are taken for those of the default network.
        ({"model_args": '{"x": ' * 100_000}, None),
        ({"classes": "[" * 100_000}, None),
    ],
    ids=["file", "cfg", "hub", "path", "deep arguments", "deep classes"],
)
def test_a_run_to_start_from_names_no_files(
    said: dict[str, str], fault: str | None, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("weights.pth").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    Path("theirs").mkdir()
    save_file(load_file(made / "best.safetensors"), "theirs/best.safetensors", {"model": "resnet20_cifar", **said})
    code, _, err = augury(capsys, "run", "--init-from", "theirs", "--set", "data.images_per_class=3", "--set",
                          "optim.batch_size=10", "--dry-run")  # fmt: skip
    assert code == (0 if fault is None else 2), err
    assert (fault or "is kept, without a word of which classes they are") in err
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_is_never_carried_out(folder: Path, tmp_path: Path) -> None:
    marker, places = tmp_path / "ran", folder / "checkpoints"
    for old in places.iterdir():
        old.unlink()
    for step, write in enumerate((torch.save, lambda payload, path: path.write_bytes(pickle.dumps(payload)))):
        unnamed = places / "new"
        write({"loop": Payload(marker)}, unnamed)
        # Under the name that its content asks for, so that its digest is right.
        digest = hashlib.blake2b(unnamed.read_bytes(), digest_size=8).hexdigest()
        unnamed.rename(places / f"step-{step:09d}-{digest}.pt")
    with pytest.raises(UsageError, match="no checkpoint can be read"):
        resume(folder)
    assert not marker.exists()


def test_data_sets_bring_no_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="shards are read from disk"):
        open_reader(f"wds/pipe:touch {tmp_path}/ran", skip_bad=False)
    module: Any = types.ModuleType("datasets")
    module.__spec__ = types.SimpleNamespace(name="datasets")
    module.__version__ = "2.19.1"
    module.config = types.SimpleNamespace(HF_DATASETS_TRUST_REMOTE_CODE=True)

    def names(name: str) -> list[str]:
        assert module.config.HF_DATASETS_TRUST_REMOTE_CODE is False
        raise ValueError("it has a script")

    module.get_dataset_split_names = module.load_dataset_builder = names
    monkeypatch.setitem(sys.modules, "datasets", module)
    for reader in ("hfds", "hfids"):
        with pytest.raises(UsageError, match="it has a script"):
            open_reader(f"{reader}/someone/set", skip_bad=False)
    module.__version__ = "2.14.0"
    with pytest.raises(UsageError, match=r"Install 2.16 or newer"):
        open_reader("hfds/someone/set", skip_bad=False)
    catalogue: Any = types.ModuleType("tensorflow_datasets")
    catalogue.__spec__ = types.SimpleNamespace(name="tensorflow_datasets")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", catalogue)
    with pytest.raises(UsageError, match="would be a catalogue"):
        open_reader("tfds/someone:set/config:1.0.0", skip_bad=False)


def test_a_subset_is_a_list_of_images_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    change(folder, data={"subset": "../../mine/thesis.txt"})
    with pytest.raises(UsageError, match="no such file|no subset can be read"):
        resume(folder)
    change(folder, data={"subset": str(tmp_path / "mine" / "thesis.txt")})
    with pytest.raises(UsageError, match="no subset can be read of it"):
        resume(folder)
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "dear"


# The present folder.


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["compare", "--jobs", "2", "--seeds", "1"], ["run", "--processes", "2", "--output", "run"]],
    ids=["jobs", "processes"],
)
@pytest.mark.parametrize("safe_path", [None, ""])
def test_nothing_in_the_present_folder_is_imported(arguments: list[str], safe_path: str | None, tmp_path: Path) -> None:
    ours = ("augury", "augury_train", "augury_lab", "augury_authoring", "augury_cli")
    for name in ("multiprocessing", "random", "torch", *ours, "sitecustomize", "isda"):
        (tmp_path / f"{name}.py").write_text(
            "import os\nopen(os.environ['MARKER'], 'w').close()\nraise SystemExit(9)\n"
        )
    marker = tmp_path / "imported"
    command = [Path(sys.executable).with_name("augury"), *arguments, "--with", "isda"]
    # One that is set to nothing counts as not set.
    environment = {**os.environ, "MARKER": str(marker)} | ({} if safe_path is None else {"PYTHONSAFEPATH": safe_path})
    flags = ["data.images_per_class=3", "optim.batch_size=10", "optim.epochs=1", "train.trackers=none"]
    ended = subprocess.run(
        [*map(str, command), *(word for flag in flags for word in ("--set", flag))],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert not marker.exists()


def test_no_text_sends_anybody_to_a_name_on_a_package_index() -> None:
    """Nobody owns augury's names there: what is installed comes from where augury came from, or from a folder."""
    found = []
    for part in ("core", "train", "lab", "authoring", "cli", "plugins", "docs", "examples", "README.md"):
        for path in [ROOT / part, *(ROOT / part).rglob("*")]:
            if path.suffix in (".py", ".md", ".j2", ".toml"):
                text = path.read_text(encoding="utf-8")
                found += [f"{path}: {name}" for name in re.findall(r"pip install (?:-U )?['\"]?(augury[^ \n]*)", text)]
    assert found == []
