"""A network in use says of files what the evaluation of its run says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.train.test_inference import CLASSES
from tests.train.test_inference import photos as photos
from tests.train.test_inference import run as run

from augury_lab.evaluation.subject import load_subject
from augury_train.inference.classifier import load_classifier
from augury_train.inference.predict import predict


@pytest.mark.parametrize("weights", ["best", "last"])
def test_it_says_of_files_what_the_runs_evaluation_says(run: Path, photos: Path, weights: Any) -> None:
    subject = load_subject(run, weights, "test", "cpu")
    expected = torch.cat([subject.logits(images) for images, _ in subject.batches()])
    classifier = load_classifier(run, weights, "cpu")
    assert (classifier.format.side, classifier.format.kept, classifier.classes) == (24, 30, CLASSES)
    found = list(predict(classifier, [photos / "test"], top=3, batch_size=4))
    # Both list the classes' folders, and the files in each, by their names.
    assert [row.file for row in found] == [subject.split.source.name(row) for row in subject.split.rows.tolist()]
    said = torch.tensor([[dict(zip(r.classes, r.probabilities, strict=True))[c] for c in CLASSES] for r in found])
    torch.testing.assert_close(said, expected.softmax(1))
    assert all(row.probabilities == tuple(sorted(row.probabilities, reverse=True)) for row in found)


def test_images_are_prepared_bit_for_bit_as_for_the_evaluation(run: Path, photos: Path) -> None:
    subject, classifier = load_subject(run, device="cpu"), load_classifier(run, device="cpu")
    rows = torch.arange(len(subject))
    with Image.open(photos / "test/car/0.png") as image:
        image.load()
        place = [subject.split.source.name(r) for r in subject.split.rows.tolist()].index(
            str(photos / "test/car/0.png")
        )
        assert torch.equal(classifier.prepare(image).float() / 255, subject.images(rows)[place])
