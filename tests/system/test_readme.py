"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import augury

TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
RUN, LOOP, METHOD = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_a_run_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    exec(RUN, {})
    top1, seconds = map(float, capsys.readouterr().out.split())
    assert 10 < top1 <= 100
    assert seconds > 0
    assert (tmp_path / "runs/python/best.safetensors").exists()


def test_the_loop_of_ones_own() -> None:
    names = {"loader": [(torch.randn(4, 3, 32, 32), torch.tensor([0, 99, 5, 5])) for _ in range(2)]}
    exec(LOOP, names)
    assert names["methods"].run.step == 2
    assert names["loss"].isfinite()
    assert names["methods"]["isda"].count.sum() == 8


def test_the_first_method_of_ones_own() -> None:
    names: dict[str, type[augury.Method]] = {}
    exec(METHOD, names)
    methods = augury.compose([(names["FeatureNorm"], {"weight": 0.5})], num_classes=3)
    batch = methods.batch(torch.zeros(2, 1, 4, 4), torch.tensor([0, 2]))
    features, logits = torch.full((2, 5), 2.0), torch.zeros(2, 3)
    loss = methods.compute_loss(batch, augury.ModelOutput(features, logits))
    torch.testing.assert_close(loss, torch.log(torch.tensor(3.0)) + 0.5 * 4)


def test_the_commands_are_the_makefiles() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
