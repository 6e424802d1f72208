"""A network whose weights are spread over two processes (FSDP) trains as one of which each process holds all (DDP)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch import multiprocessing as mp
from torch import nn

from augury.choice import check, choose
from augury.errors import AuguryError, UsageError, refuse_all
from augury.hookspecs import hookimpl
from augury.method import Method, Spec
from augury_train.config import RunConfig, read_config, save_config
from augury_train.training.checkpoint import checkpoints, load_checkpoint
from augury_train.training.plan import make_plan
from augury_train.training.recorder import read_rows
from augury_train.training.result import read_result
from augury_train.training.shares import clip_shares
from augury_train.training.tally import Tally
from augury_train.training.trainer import resume, train

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
}
ISDA = ("isda", {"lambda_0": 2.0})
AGMAX = ("agmax", {"n_units": 8})


def vit(*methods: str | tuple[str, dict[str, Any]], **sections: dict[str, Any]) -> RunConfig:
    """Settings of a run of two epochs of four steps; `sections` change them."""
    named = [m if isinstance(m, tuple) else (m, {}) for m in methods]
    values: dict[str, Any] = {
        "seed": 3,
        "device": "cpu",
        "data": {"images_per_class": 10, "augmented": "crop:1 cutout:3", "loader": "memory"},
        "model": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 3},
        },
        "optim": {"epochs": 2, "batch_size": 20, "lr": 0.05},
        "train": {"trackers": []},
        "methods": [{"name": name, "options": options} for name, options in named],
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return read_config(values)


CASES: dict[str, tuple[RunConfig, dict[str, str]]] = {
    "no method": (vit(), FSDP),
    "agmax": (vit(AGMAX), FSDP),
    "dcutmix": (vit("dcutmix"), FSDP),
    "isda": (vit(ISDA), FSDP),
    "all in parts": (
        vit("dcutmix", ISDA, AGMAX, optim={"clip": 0.5, "accumulation": 2, "name": "adamw", "lr": 1e-3}),
        FSDP,
    ),
    "frozen stages": (vit(ISDA, model={**vit().model.model_dump(), "frozen_stages": 2}), FSDP),
    "by size, kept for the backward pass": (
        vit(ISDA, optim={"clip": 0.01, "clip_mode": "value", "name": "lamb", "layer_decay": 0.8}),
        {
            **FSDP,
            "FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP",
            "FSDP_MIN_NUM_PARAMS": "1000",
            "FSDP_RESHARD_AFTER_FORWARD": "false",
        },
    ),
    "one unit, in bfloat16": (
        vit(AGMAX, train={"precision": "bf16"}),
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    ),
}

HALF = "all in parts"
RESUMED = [("fsdp", "fsdp"), ("fsdp", "ddp"), ("ddp", "fsdp")]


def work(rank: int, folder: Path, port: int) -> None:
    """Run every case, its weights whole and then spread, and the first one's ends again from its middle."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    losses: list[float] = []
    add = Tally.add

    def heard(tally: Tally, loss: torch.Tensor, *rest: Any) -> None:
        losses.append(float(loss.detach()))
        add(tally, loss, *rest)

    Tally.add = heard  # type: ignore[method-assign]
    for name, (config, environment) in CASES.items():
        for kind in ("ddp", "fsdp"):
            losses.clear()
            _set(environment if kind == "fsdp" else {})
            train(config, folder / kind / name)
            torch.save(torch.tensor(losses), folder / kind / f"{name}-{rank}.pt")
    for before, after in RESUMED:
        _set(CASES[HALF][1] if after == "fsdp" else {})
        again = folder / f"{before}, {after}"
        if rank == 0:
            _back_to_the_middle(folder / before / HALF, again)
        dist.barrier()
        resume(again)
    _set(FSDP)
    refused = {}
    for optimiser in ("adafactor", "adafactorbv"):
        with pytest.raises(UsageError) as error:
            train(vit(optim={"name": optimiser}), folder / optimiser)
        refused[optimiser] = str(error.value)
    with pytest.raises(AuguryError) as diverged:
        train(vit(ISDA, optim={"lr": 1e30}), folder / "diverged")
    refused["diverged"] = str(diverged.value)
    torch.save(refused, folder / f"refused-{rank}.pt")
    dist.destroy_process_group()


def _set(environment: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("FSDP_") or name == "ACCELERATE_USE_FSDP"]:
        del os.environ[name]
    os.environ.update(environment)


def _back_to_the_middle(folder: Path, again: Path) -> None:
    """A copy of a run as if it had been killed after its first epoch."""
    shutil.copytree(folder, again)
    checkpoints(again)[-1].unlink()
    for name in ("result.json", "best.safetensors", "last.safetensors"):
        (again / name).unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that `work` wrote."""
    folder = tmp_path_factory.mktemp("sharded")
    mp.spawn(work, args=(folder, free_port()), nprocs=2)
    return folder


def close(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_whole_weights(runs: Path, name: str) -> None:
    for rank in range(2):
        whole, spread = (torch.load(runs / kind / f"{name}-{rank}.pt", weights_only=True) for kind in ("ddp", "fsdp"))
        assert len(whole) == 10 * CASES[name][0].optim.accumulation
        close(spread, whole, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_weights_and_state_are_those_of_whole_weights(runs: Path, name: str) -> None:
    kinds = ("ddp", "fsdp")
    for file in ("last.safetensors", "best.safetensors"):
        whole, spread = (load_file(runs / kind / name / file) for kind in kinds)
        assert whole.keys() == spread.keys()
        close(spread, whole, 1e-5)
    whole, spread = ((load_checkpoint(runs / kind / name) or {})["loop"] for kind in kinds)
    for part in ("network", "methods"):
        close(spread[part], whole[part], 1e-5)
    close(spread["optimizer"]["state"], whole["optimizer"]["state"], 1e-5)
    rows = [read_rows(runs / kind / name / "metrics.jsonl") for kind in kinds]
    for row in (0, 1):
        assert rows[1][row]["val_top1"] == rows[0][row]["val_top1"]
        assert rows[1][row]["val_loss"] == pytest.approx(rows[0][row]["val_loss"], abs=1e-5)
    results = [read_result(runs / kind / name) for kind in kinds]
    for split in ("val", "test"):
        # Of the best epoch, whose weights are loaded behind the last one's, and of the last.
        assert results[1].best[split].nll == pytest.approx(results[0].best[split].nll, abs=1e-5)
        assert results[1].last[split].nll == pytest.approx(results[0].last[split].nll, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), RESUMED)
def test_a_resumed_run_ends_as_if_it_had_not_been_interrupted(runs: Path, before: str, after: str) -> None:
    """Bit for bit with its weights spread as before; closely where they were whole, or are from there on."""
    end, again = (load_file(run / "last.safetensors") for run in (runs / before / HALF, runs / f"{before}, {after}"))
    close(again, end, 0.0 if before == after else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["adafactor", "adafactorbv"])
def test_an_optimiser_that_knows_no_shares_is_refused(runs: Path, optimiser: str) -> None:
    """One that cannot step, and one whose state could not be shared out again."""
    for rank in range(2):
        told = torch.load(runs / f"refused-{rank}.pt", weights_only=True)[optimiser]
        assert told.startswith(f"optim.name={optimiser} does not go with FSDP: ")
        assert told.endswith("Choose another one: sgd, adamw, lamb, lion.")
    assert not (runs / optimiser).exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_both_processes(runs: Path) -> None:
    told = [torch.load(runs / f"refused-{rank}.pt", weights_only=True)["diverged"] for rank in range(2)]
    assert told[0] == told[1]
    assert "is no longer finite" in told[0]


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` of two processes that spread their weights, running augury."""
    options = {
        "fsdp_version": "2",
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_transformer_layer_cls_to_wrap": "Block",
        "num_processes": "2",
        "num_machines": "1",
        "mixed_precision": "no",
        "dynamo_backend": "no",
        "main_process_port": str(free_port()),
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp"]
    command += [part for name, value in options.items() for part in (f"--{name}", value)]
    return subprocess.run(
        [*command, "-m", "augury_cli", *arguments], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_accelerate_launches_it(tmp_path: Path) -> None:
    recipe = tmp_path / "config.json"
    save_config(vit(ISDA), recipe)
    done = launched("run", "--recipe", str(recipe), "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "run").epochs == 2
    shape = vit().model
    network = timm.create_model(
        shape.name, num_classes=10, in_chans=1, checkpoint_path=tmp_path / "run/best.safetensors", **shape.kwargs
    )
    assert all(weight.isfinite().all() for weight in network.parameters())
    refused = launched("run", "--recipe", str(recipe), "--with", "resmooth", "--output", str(tmp_path / "refused"))
    assert refused.returncode != 0
    assert "resmooth: is not made for a network whose weights are spread over processes" in refused.stderr
    assert not (tmp_path / "refused").exists()


class Careless(Method):
    """Was written without a thought of FSDP."""

    @hookimpl
    def augment_batch(self, batch: Any, run: Any) -> None:
        return None


def refused(monkeypatch: pytest.MonkeyPatch, config: RunConfig, **environment: str) -> str:
    """What a plan says against a run."""
    for name, value in {**FSDP, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as error:
        make_plan(config)
    return str(error.value)


def test_methods_that_cannot_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    official = ("agmax", {"variant": "official", "q_init_std": 0.2})
    told = refused(monkeypatch, vit("resmooth", official, "dcutmix", "isda"))
    assert "resmooth: is not made for a network whose weights are spread over processes (FSDP" in told
    assert "agmax: variant=official with q_init_std draws every convolution anew" in told
    with pytest.raises(UsageError, match=r"^careless: is not made for a network whose weights are spread"):
        refuse_all(check(choose([Careless])[0], Spec(num_classes=10, sharded=True), None))
    assert "dcutmix" not in told
    assert "isda" not in told


def test_settings_that_cannot_are_refused_together(monkeypatch: pytest.MonkeyPatch) -> None:
    config = vit(
        train={"ema": 0.9, "compile": True, "channels_last": True},
        optim={"clip": 1.0, "clip_mode": "agc"},
    )
    told = refused(
        monkeypatch,
        config,
        FSDP_OFFLOAD_PARAMS="true",
        FSDP_ACTIVATION_CHECKPOINTING="true",
        FSDP_TRANSFORMER_CLS_TO_WRAP="Blcok",
    ).splitlines()
    for key in ("train.ema", "train.compile", "train.channels_last", "optim.clip_mode=agc"):
        assert sum(line.startswith(f"{key} does not go with FSDP") for line in told) == 1
    assert "FSDP: augury does not do what FSDP_OFFLOAD_PARAMS asks for. Leave it out." in told
    assert "FSDP: augury does not do what FSDP_ACTIVATION_CHECKPOINTING asks for. Leave it out." in told
    assert "Blcok" in told[-1]
    assert told[-1].endswith("--fsdp_transformer_layer_cls_to_wrap Block.")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"FSDP_VERSION": "1"}, "Set --fsdp_version 2 (FSDP_VERSION=2)."),
        ({"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, "FSDP: Accelerate refuses its configuration: "),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "99999999"}, "finds nothing in"),
    ],
)
def test_configurations_that_cannot_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    assert said in refused(monkeypatch, vit(), **environment)


def test_what_is_not_spread_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**FSDP, "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert any("there is one process, so nothing is spread" in note for note in make_plan(vit()).notes)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert any("--fsdp_transformer_layer_cls_to_wrap Block." in note for note in make_plan(vit()).notes)


def test_a_norm_over_shares_and_whole_gradients_is_one(tmp_path: Path) -> None:
    """In one process, whose share is the whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=(tmp_path / "store").as_uri(), rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        whole = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
        mesh = init_device_mesh("cpu", (1,))
        spread = [
            nn.Parameter(distribute_tensor(whole[0].detach().clone(), mesh, [Shard(0)])),
            nn.Parameter(whole[1].detach()),
        ]
        gradients = [torch.randn(4, 3), torch.randn(5)]
        for p, gradient in zip(whole, gradients, strict=True):
            p.grad = gradient.clone()
        spread[0].grad, spread[1].grad = distribute_tensor(gradients[0].clone(), mesh, [Shard(0)]), gradients[1].clone()
        norm = nn.utils.clip_grad_norm_(whole, 0.7)
        clip_shares(spread, 0.7, "norm")
        assert norm > 0.7
        close(spread[0].grad.full_tensor(), whole[0].grad, 1e-6)
        close(spread[1].grad, whole[1].grad, 1e-6)
    finally:
        dist.destroy_process_group()
