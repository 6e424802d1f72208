"""Checkpoints, stages and weights from anywhere: read or refused, and never carried out."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save
from tests.fuzz.hostile import Drawn, answer, cases, damaged, encoded, files, numbers, texts, values

from augury.distributed import Ranks
from augury_train import backbones
from augury_train.backbones import starting
from augury_train.backbones.trained import trained_network
from augury_train.config import ModelConfig, RunConfig, read_config
from augury_train.inference.classifier import load_classifier
from augury_train.training.checkpoint import load_checkpoint
from augury_train.training.kept import Kept
from augury_train.training.trainer import resume

pytestmark = pytest.mark.filterwarnings("ignore")
CLASSES = [str(digit) for digit in range(10)]
FILES = ("weights.safetensors", "weights.pt", "weights.pth", "weights.bin")


class Payload:
    """Makes a file when a pickle of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def stored(state: Any) -> bytes:
    """As torch.save writes it."""
    import io

    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def put(folder: Path, step: int, content: bytes) -> None:
    """A checkpoint under the name that its content asks for, so that it is not taken for a damaged one."""
    place = folder / "checkpoints"
    place.mkdir(parents=True, exist_ok=True)
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    (place / f"step-{step:09d}-{digest}.pt").write_bytes(content)


tensors = st.builds(
    lambda shape, kind: torch.zeros(shape, dtype=kind),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64, torch.bfloat16]),
) | st.integers(1, 2**40).map(lambda size: torch.zeros(1).expand(size))
states = st.recursive(
    values | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def odd_states(draw: st.DrawFn, said: Any) -> Any:
    """A checkpoint's state in which something is another."""
    if isinstance(said, dict) and said and draw(st.integers(0, 7)):
        # What an optimiser keeps is its own business: what does not fit fails in its first step.
        key = draw(st.sampled_from(sorted(set(said) - {"optimizer"}, key=str)))
        if not draw(st.integers(0, 5)):
            return {inner: value for inner, value in said.items() if inner != key}
        return {**said, key: draw(odd_states(said[key]))}
    return draw(states)


@cases(10, content=files(states.map(stored)))
def test_a_checkpoint_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    put(tmp_path, 3, content)
    answer(lambda: load_checkpoint(tmp_path))
    # Whatever the newest is: the one before is there.
    put(tmp_path, 1, stored({"whole": 1}))
    assert isinstance(answer(lambda: load_checkpoint(tmp_path)), dict)


@cases(4, data=st.data())
def test_a_run_goes_on_from_an_odd_checkpoint_or_refuses_it(
    unfinished: Path, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(unfinished, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = load_checkpoint(folder)
    shutil.rmtree(folder / "checkpoints")
    put(folder, 4, stored(data.draw(odd_states(state))))
    answer(lambda: resume(folder))


@cases(3, protocol=st.integers(0, 5), inside=st.booleans(), name=st.sampled_from(FILES))
def test_a_pickle_is_never_carried_out(tmp_path: Path, protocol: int, inside: bool, name: str) -> None:
    marker = tmp_path / "carried out"
    payload: Any = {"state_dict": Payload(marker)} if inside else Payload(marker)
    for content in (pickle.dumps(payload, protocol), stored(payload)):
        put(tmp_path, 1, content)
        answer(lambda: load_checkpoint(tmp_path), Drawn(due="refused", about="damaged"))
        (tmp_path / name).write_bytes(content)
        config = ModelConfig(name="test_resnet", init_from=str(tmp_path / name))
        answer(lambda config=config: starting.find(config), Drawn(due="refused", about="cannot be read"))
        (tmp_path / name).write_bytes(content)
    assert not marker.exists()


def network() -> torch.nn.Module:
    """A small network of ten classes."""
    return backbones.build(ModelConfig(name="test_resnet"), 10, (1, 8, 8))


WEIGHTS = {"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}
SAID = {
    "model": "test_resnet",
    "model_args": '{"drop_rate": 0.5}',
    "classes": json.dumps(CLASSES),
    "mean": "[0.5]",
    "std": "[0.5]",
    "input_size": "[1, 8, 8]",
}
metadata = st.dictionaries(
    st.sampled_from([*SAID, "digest", "seconds", "passes", "crop_pct", "interpolation"]) | st.text(max_size=5),
    st.text(max_size=20)
    | values.map(json.dumps)
    | numbers.map(str)
    | st.sampled_from(['{"checkpoint_path": "x"}', '{"x": ' * 50_000, "[" * 50_000, json.dumps(CLASSES[::-1])]),
    max_size=6,
)


def lying(header: bytes, claimed: int) -> bytes:
    """A safetensors file whose header may be another than its length says."""
    return struct.pack("<Q", claimed % 2**64) + header + b"\x00" * 64


headers = st.dictionaries(
    texts,
    st.fixed_dictionaries(
        {"dtype": st.sampled_from(["F32", "F64", "X", 3]), "shape": st.lists(st.integers(-1, 2**40), max_size=3)},
        optional={"data_offsets": st.lists(st.integers(-1, 2**62), min_size=1, max_size=3)},
    )
    | values,
    max_size=3,
).map(lambda found: encoded(json.dumps(found)))
safetensors = st.builds(
    lambda said: save(WEIGHTS, {k: v.encode("utf-8", "replace").decode() for k, v in said.items()}), metadata
)
weights = (
    files(safetensors)
    | st.builds(
        lambda header, claimed: lying(header, len(header) + claimed), headers, st.sampled_from([0, 0, 1, 10**15])
    )
    | states.map(stored)
    | states.map(lambda state: stored({"state_dict": state}))
)


@cases(11, content=weights, name=st.sampled_from(FILES))
def test_weights_are_read_or_refused(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    answer(lambda: starting.own_input(str(path)))
    config = answer(lambda: starting.with_own_network(read_config({"model": {"init_from": str(path)}})))
    if isinstance(config, RunConfig):
        answer(lambda: backbones.start_notes(config.model, 10, (1, 8, 8), CLASSES))
    normalisation = {"mean": (0.5,), "std": (0.5,)}
    small = ModelConfig(name="test_resnet")
    answer(lambda: trained_network(small, (1, 8, 8), CLASSES, str(path), normalisation))
    answer(lambda: load_classifier(path, device="cpu"))
    answer(lambda: backbones.build(ModelConfig(name="test_resnet", init_from=str(path)), 10, (1, 8, 8), CLASSES))


@cases(10, said=metadata, data=st.data())
def test_a_stages_file_is_found_or_made_anew(tmp_path: Path, said: dict[str, str], data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "run").mkdir()
    kept = Kept({}, Ranks(), tmp_path / "run")
    made = kept.recall_or("m/x", lambda: WEIGHTS, {})
    path = tmp_path / "run" / "stages" / "m" / "x.safetensors"
    clean = {key: value.encode("utf-8", "replace").decode() for key, value in said.items()}
    right = {"digest": kept._digest("m/x", {})} if data.draw(st.booleans()) else {}
    path.write_bytes(data.draw(damaged(save(WEIGHTS, clean | right))))
    found = answer(lambda: Kept({}, Ranks(), tmp_path / "run").recall_or("m/x", lambda: WEIGHTS, {}))
    assert isinstance(found, dict)
    assert made.keys() == WEIGHTS.keys()
