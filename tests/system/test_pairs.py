"""Each method alone, all pairs and all four: a batch's loss equals the formula in docs/composition.md, in float64."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import augury

PAGE = Path(__file__).parents[2] / "docs" / "composition.md"
METHODS = ("resmooth", "dcutmix", "isda", "agmax")
N, CLASSES, FEATURES, BETA, LAMBDA, STEP, STEPS = 12, 12, 6, 3.0, 2.0, 3, 4
PROB, SMOOTH_BASE, SMOOTH_AUGMENTED = 0.25, 0.05, 0.6
MIXTURE = ((0.4, 0.6), (0.0, 1.0), (0.3, 0.2))


def table() -> dict[str, str]:
    """composition -> formula, as the page has them."""
    return dict(re.findall(r"^\| ([a-z+]+) \| [^|`]+ \| `([^`]+)` \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def frozen() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


def options(name: str) -> Any:
    if name == "resmooth":
        given = {"frozen": frozen(), "mixture": MIXTURE}
        return name, {"prob": PROB, "smooth_org": SMOOTH_BASE, "smooth_aug": SMOOTH_AUGMENTED, **given}
    return name, {"isda": {"lambda_0": LAMBDA}, "dcutmix": {"k": 3, "alpha": 0.5}, "agmax": {"dl_weight": BETA}}[name]


def compose(names: list[str], classifier: nn.Linear) -> augury.Composition:
    methods = augury.compose(
        [options(name) for name in names], num_classes=CLASSES, classifier=classifier, total_steps=STEPS
    )
    methods.run.step = STEP
    return methods


def loaded(methods: augury.Composition) -> augury.Batch:
    """Every image of a class of its own, so that a label tells which image it came from."""
    torch.manual_seed(1)
    images = [torch.randn(N, 1, 4, 4) for _ in range(methods.views)]
    pipeline = (torch.arange(N * methods.views) % 4 > 0).long()
    batch = methods.batch(images, torch.randperm(CLASSES), pipeline=pipeline)
    # A weight for each class, as a run's settings give them.
    batch.label_weights = torch.linspace(0.5, 2, CLASSES)[batch.labels]
    return batch


class Reference:
    """The page's functions, written from their definitions in float64."""

    def __init__(self, batch: augury.Batch, features: Tensor, classifier: nn.Linear, q: nn.Module | None) -> None:
        self.y, self.w, self.e = batch.labels, batch.shares.double(), batch.smoothing.double()
        self.v = batch.label_weights.double()
        self.r, self.a = batch.row_weights.double(), features
        self.weight = classifier.weight.detach().double().requires_grad_()
        self.bias = classifier.bias.detach().double()
        self.z = features @ self.weight.t() + self.bias
        self.z1, self.z2 = (self.z[:N], self.z[N:]) if batch.views == 2 else (self.z, self.z)
        self.q = q.double()(torch.cat([self.z1, self.z2], 1)) if q is not None else None

    def ce(self, p: Tensor) -> Tensor:
        rows = []
        for i in range(len(self.z)):
            smooth = -self.z[i].log_softmax(0).mean()
            row = torch.zeros((), dtype=torch.float64)
            for k in range(self.y.shape[1]):
                seen = p[i, k] if p.ndim == 3 else p[i]
                hard = -seen.log_softmax(0)[self.y[i, k]]
                row = row + self.w[i, k] * self.v[i, k] * ((1 - self.e[i, k]) * hard + self.e[i, k] * smooth)
            rows.append(self.r[i] * row)
        return torch.stack(rows).mean()

    @property
    def bound(self) -> Tensor:
        rows, features = self.z.shape[0], self.a.detach()
        shares = torch.zeros(rows, CLASSES, dtype=torch.float64).scatter_add_(1, self.y, self.w)
        bound = torch.zeros(rows, self.y.shape[1], CLASSES, dtype=torch.float64)
        for i, k in itertools.product(range(rows), range(self.y.shape[1])):
            label = int(self.y[i, k])
            share = shares[:, label] / shares[:, label].sum().clamp_min(1e-300)
            centred = features - share @ features
            covariance = centred.t() @ (share[:, None] * centred)
            apart = self.weight - self.weight[label]
            bound[i, k] = ((apart @ covariance) * apart).sum(1)
        return 0.5 * LAMBDA * STEP / STEPS * bound

    def gap(self, a: Tensor) -> Tensor:
        views = torch.stack([self.z1.softmax(1), self.z2.softmax(1)])
        return (a.softmax(1) - views).abs().mean()

    @staticmethod
    def entropy(a: Tensor) -> Tensor:
        marginal = a.softmax(1).mean(0)
        return -(marginal * marginal.log()).sum()

    def evaluate(self, formula: str) -> Tensor:
        names = {"z": self.z, "z1": self.z1, "z2": self.z2, "q": self.q, "ce": self.ce, "H": self.entropy}
        names |= {"gap": self.gap, "beta": BETA}
        if "bound" in formula:
            names["bound"] = self.bound
        return eval(formula, {"__builtins__": {}}, names)


def test_the_page_has_every_method_every_pair_and_all_four() -> None:
    pairs = {frozenset(pair) for pair in itertools.combinations(METHODS, 2)}
    wanted = {frozenset(["none"]), *({frozenset([m]) for m in METHODS}), *pairs, frozenset(METHODS)}
    assert {frozenset(name.split("+")) for name in table()} == wanted
    assert len(table()) == len(wanted)


@pytest.mark.parametrize("composition", table())
def test_the_loss_and_its_gradients_are_the_formula(composition: str) -> None:
    torch.manual_seed(0)
    classifier = nn.Linear(FEATURES, CLASSES)
    methods = compose([] if composition == "none" else composition.split("+"), classifier)
    batch = loaded(methods)
    methods.augment_batch(batch)
    features = torch.randn(len(batch), FEATURES, requires_grad=True)
    loss = methods.compute_loss(batch, augury.ModelOutput(features, classifier(features)))
    loss.backward()

    precise = features.detach().double().requires_grad_()
    q = methods["agmax"].q if "agmax" in composition else None
    gradients = {name: p.grad.clone() for name, p in q.named_parameters()} if q is not None else {}
    if q is not None:
        q.zero_grad()
    reference = Reference(batch, precise, classifier, q)
    expected = reference.evaluate(table()[composition])
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(features.grad.double(), precise.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(classifier.weight.grad.double(), reference.weight.grad, rtol=1e-4, atol=1e-6)
    for name, parameter in q.named_parameters() if q is not None else ():
        torch.testing.assert_close(gradients[name].double(), parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "composition", ["resmooth", "resmooth+dcutmix", "resmooth+agmax", "resmooth+dcutmix+isda+agmax"]
)
def test_smoothing_and_row_weights_are_the_paper_s_and_travel(composition: str) -> None:
    torch.manual_seed(0)
    methods = compose(composition.split("+"), nn.Linear(FEATURES, CLASSES))
    batch = loaded(methods)
    logits = frozen()(batch.images).double()
    loss = -logits.log_softmax(1).gather(1, batch.labels)[:, 0]
    weights, means, variances = (torch.tensor(pair, dtype=torch.float64) for pair in MIXTURE)
    x = (loss + 1e-10).log()[:, None]
    density = weights * (-((x - means) ** 2) / (2 * variances)).exp() / variances.sqrt()
    epsilon = torch.where(batch.made_by("base"), SMOOTH_BASE, (1 - density[:, 0] / density.sum(1)) * SMOOTH_AUGMENTED)
    rows, base = len(batch), int(batch.made_by("base").sum())
    row_weights = torch.where(batch.made_by("base"), PROB * rows / base, (1 - PROB) * rows / (rows - base)).double()
    # Row of the view that a label came from.
    row_of = torch.stack([torch.zeros(CLASSES, dtype=torch.int64)] * batch.views)
    for view, span in enumerate(batch.view_slices()):
        row_of[view, batch.labels[span, 0]] = torch.arange(span.start, span.stop)
    methods.augment_batch(batch)
    sources = torch.cat([row_of[v][batch.labels[span]] for v, span in enumerate(batch.view_slices())])
    torch.testing.assert_close(batch.smoothing.double(), epsilon[sources], rtol=1e-5, atol=1e-7)
    expected = (batch.shares * row_weights[sources]).sum(1)
    torch.testing.assert_close(batch.row_weights.double(), expected.double(), rtol=1e-5, atol=1e-7)
    assert batch.mixed == ("dcutmix" in composition)


@pytest.mark.parametrize("composition", [n for n in table() if n.count("+") == 1 and n != "resmooth+dcutmix"])
def test_the_other_order_of_a_pair_gives_the_same_loss(composition: str) -> None:
    found = []
    for names in (composition.split("+"), composition.split("+")[::-1]):
        torch.manual_seed(0)
        classifier = nn.Linear(FEATURES, CLASSES)
        methods = compose(names, classifier)
        batch = loaded(methods)
        methods.augment_batch(batch)
        features = torch.randn(len(batch), FEATURES)
        found.append(methods.compute_loss(batch, augury.ModelOutput(features, classifier(features))))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0)


def test_resmooth_after_mixing_is_refused() -> None:
    with pytest.raises(augury.UsageError, match="Name resmooth before dcutmix"):
        compose(["dcutmix", "resmooth"], nn.Linear(FEATURES, CLASSES))
