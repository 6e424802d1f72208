"""docs/own-loop.md and docs/lightning.md: their programs run from top to bottom as they stand, and do what is said."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.system.test_docs import blocks

import augury

DOCS = Path(__file__).parents[2] / "docs"
OWN = [block.text for block in blocks(DOCS / "own-loop.md") if block.language == "python"]
LIGHTNING = [block.text for block in blocks(DOCS / "lightning.md") if block.language == "python"]
SCRIPT = re.compile(r"# (\w+\.py)\n")


def _without_runs(text: str) -> str:
    """The definitions of a block: what stands before its first seed."""
    return re.split(r"^(?:torch\.manual_seed|pl\.seed_everything)\(", text, flags=re.MULTILINE)[0]


# In plain PyTorch.


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page's program leaves in its namespace, and after each block what `model` and `methods` were then."""
    names: dict[str, Any] = {"seen": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("own"))
        for text in OWN:
            if not SCRIPT.match(text):
                exec(text, names)
                names["seen"].append((names.get("methods"), names.get("model")))
    return names


def _named(own: dict[str, Any], *names: str) -> tuple[augury.Composition, Any]:
    """The first composition of exactly these methods, with its model."""
    return next((c, m) for c, m in own["seen"] if c is not None and [*c.methods] == [*names])


def test_the_first_loop_trains(own: dict[str, Any]) -> None:
    methods, model = _named(own, "dcutmix", "isda")
    assert own["accuracy"](model) > 60
    assert methods.run.step == 60
    assert float(methods["isda"].count.sum()) == pytest.approx(3 * 1280, rel=1e-4)


def test_two_views_train_the_methods_own_network_too(own: dict[str, Any]) -> None:
    methods, _ = _named(own, "dcutmix", "agmax")
    fresh = augury.compose(["dcutmix", "agmax"], num_classes=10)
    trained, untrained = (dict(c.named_parameters()) for c in (methods, fresh))
    assert trained.keys() == untrained.keys() != set()
    assert all(not torch.equal(trained[name], untrained[name]) for name in trained)
    losses = own["losses"]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5


def test_the_stage_of_the_page_s_host_is_used(own: dict[str, Any]) -> None:
    methods, _ = _named(own, "resmooth", "dcutmix")
    resmooth: Any = methods["resmooth"]
    frozen = own["frozen"].state_dict()
    assert all(torch.equal(value, frozen[name]) for name, value in resmooth.frozen.module.state_dict().items())
    assert resmooth.weights.sum() == pytest.approx(1)
    assert float(resmooth.means[0]) < float(resmooth.means[1])
    assert [getattr(own["again"]["resmooth"], name).tolist() for name in ("weights", "means", "variances")] == own[
        "fitted"
    ]
    smoothed = own["smoothed"]
    assert sum(smoothed[-5:]) < sum(smoothed[:5])
    # "Any network of that structure will do": the state brings the weights and the mixture.
    given = [("resmooth", {"frozen": own["Network"]()}), "dcutmix"]
    resumed = augury.compose(given, num_classes=10, classifier=own["Network"]().fc)
    resumed.load_state_dict(methods.state_dict())
    images, seen = own["images"][:64], []
    for composition in (methods, resumed):
        batch = composition.batch(images, own["labels"][:64], pipeline=torch.arange(64) % 2)
        composition.augment_batch(batch)
        seen.append(batch)
    assert torch.equal(seen[0].smoothing, seen[1].smoothing)
    assert seen[0].smoothing.max() > 0
    batch = own["loaded"](methods, torch.zeros(50, 1, 8, 8), torch.zeros(50, dtype=torch.int64))
    assert int(batch.made_by("base").sum()) == 10
    cut = (batch.images == -1).flatten(1).sum(1)
    assert cut.tolist() == torch.where(batch.made_by("base"), 0, 9).tolist(), "rows are what `pipeline` says"


def test_a_resumed_training_ends_where_the_unbroken_one_does(own: dict[str, Any]) -> None:
    unbroken, resumed = own["parts"], own["resumed"]
    own["train_epoch"](1, *unbroken)
    for one, other in zip(unbroken[:2], resumed[:2], strict=True):
        states = one.state_dict(), other.state_dict()
        assert states[0].keys() == states[1].keys()
        assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert resumed[1].run.step == 40
    assert float(resumed[1]["isda"].count.sum()) == pytest.approx(2 * 2 * 1280, rel=1e-4)


def test_batches_of_one_step_count_once(own: dict[str, Any]) -> None:
    assert own["methods"].run.step == 20
    assert own["loss"].dtype == torch.float32
    assert own["output"].logits.dtype == torch.bfloat16


def test_what_the_page_says_methods_need_is_refused_when_it_lacks(own: dict[str, Any]) -> None:
    text = (DOCS / "own-loop.md").read_text(encoding="utf-8")
    needs = dict(re.findall(r"^\| (\w+) \| (.*) \|$", text.split("## What each method needs")[1], re.MULTILINE))
    head = own["Network"]().fc
    given: dict[str, Any] = {"num_classes": 10, "classifier": head, "total_steps": 10}

    def lacks(method: Any, *left_out: str) -> str:
        with pytest.raises(augury.UsageError) as told:
            augury.compose([method], **{key: value for key, value in given.items() if key not in left_out})
        return str(told.value)

    assert "classifier" in lacks("isda", "classifier")
    assert "total_steps" in lacks("isda", "total_steps")
    assert "frozen" in lacks("resmooth")
    augury.compose(["dcutmix", "agmax"], num_classes=10)
    with pytest.raises(augury.UsageError, match=r"needs 2 view\(s\)"):
        augury.compose(["agmax"], **given).batch(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))
    for method, words in {
        "isda": "`classifier` `total_steps` `steps_per_epoch`",
        "agmax": "two views `network`",
        "resmooth": "`frozen` `mixture` `pipeline` post_epoch",
        "dcutmix": "",
    }.items():
        assert all(word in needs[method] for word in words.split()), method


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    (script,) = (text for text in OWN if SCRIPT.match(text))
    (tmp_path / "train_ddp.py").write_text(script)
    (command,) = (block.text for block in blocks(DOCS / "own-loop.md") if block.language == "sh")
    program, *words = command.split()
    assert program == "torchrun"
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    states = [torch.load(tmp_path / f"process-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    trained = torch.load(tmp_path / "trained.pt", weights_only=True)
    losses = trained["losses"]
    assert losses[-5:].mean() < losses[:5].mean() - 0.3
    assert trained["methods"]["methods.isda.count"].sum() == pytest.approx(3 * 2 * 1280, rel=1e-4)


# In Lightning. Its own warnings (few workers, no logger, a folder that exists) are not this page's matter.

QUIETLY = ("ignore:::pytorch_lightning", "ignore:::lightning_fabric", "ignore:.*LeafSpec:FutureWarning")


def _lightning(texts: list[str], folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    patch.chdir(folder)
    # Lightning leaves its seed in the environment.
    patch.setenv("PL_GLOBAL_SEED", "0")
    names: dict[str, Any] = {}
    for text in texts:
        exec(text, names)
    return names


@pytest.mark.slow
@pytest.mark.filterwarnings(*QUIETLY)
def test_lightning_trains_and_goes_on_as_if_unbroken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = _lightning(LIGHTNING, tmp_path, monkeypatch)
    found = names["fit"].callback_metrics
    assert {"train_loss", "val_top1", "isda/lambda", "agmax/entropy"} <= found.keys()
    assert found["val_top1"] > 50
    assert names["module"].methods.run.step == 40

    unbroken, resumed = names["unbroken"].state_dict(), names["resumed"].state_dict()
    assert unbroken.keys() == resumed.keys()
    assert [name for name in unbroken if not torch.equal(unbroken[name], resumed[name])] == []
    assert int(resumed["methods.step"]) == 40
    assert float(resumed["methods.methods.isda.count"].sum()) == pytest.approx(2 * 2 * 1280, rel=1e-4)
    first = torch.load("checkpoints/epoch=0.ckpt", weights_only=False)["state_dict"]
    changed = {name for name in first if not torch.equal(first[name], resumed[name])}
    assert {"methods.methods.agmax.q.0.weight", "methods.methods.isda.covariance", "methods.step"} <= changed

    std = float(names["staged"].methods["agmax"].q[0].weight.detach().std())
    assert std == pytest.approx(0.2, rel=0.1)
    found = names["trainer"](1).validate(
        names["Classifier"]([]),
        names["DataLoader"](names["val"], 512),
        ckpt_path="checkpoints/epoch=1.ckpt",
        verbose=False,
    )
    assert found[0]["val_top1"] > 30
    alone = names["Classifier"].load_from_checkpoint("checkpoints/epoch=1.ckpt", methods=[])
    assert not [name for name in alone.state_dict() if name.startswith("methods")]
    assert all(torch.equal(value, unbroken[name]) for name, value in alone.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings(*QUIETLY)
def test_lightning_counts_a_step_of_several_batches_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = _lightning([_without_runs(text) for text in LIGHTNING[:2]], tmp_path, monkeypatch)
    module = names["Classifier"](["isda", "dcutmix"])
    names["trainer"](1, accumulate_grad_batches=2, precision="bf16-mixed").fit(module, names["loader"]())
    assert module.methods.run.step == module.methods.run.spec.total_steps == 10
    assert float(module.methods["isda"].count.sum()) == pytest.approx(1280, rel=1e-4)


@pytest.mark.slow
def test_lightning_trains_methods_in_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    parts = [_without_runs(text) for text in (*LIGHTNING[:2], LIGHTNING[-1])]
    parts.append(
        "pl.seed_everything(0)\n"
        "module, fit = Classifier(['dcutmix', 'isda', 'agmax']), distributed_trainer(1)\n"
        "fit.fit(module, DataLoader(train, 64, shuffle=True, drop_last=True))\n"
        "torch.save(module.methods.state_dict(), f'methods-{fit.global_rank}.pt')\n"
    )
    (tmp_path / "script.py").write_text("\n".join(parts))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    states = [torch.load(tmp_path / f"methods-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert int(states[0]["step"]) == 10
    assert states[0]["methods.isda.count"].sum() == pytest.approx(2 * 1280, rel=1e-4), "of both processes, both views"
