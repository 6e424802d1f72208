"""What is told of a network before anybody builds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """What only building a network tells.

    Attributes:
        parameters: how many, the classifier for the network's own number of classes among them.
        num_features: A, width of the classifier's input.
        classifiers: what each of its last layers is, "Linear" say: mostly one; two where it was distilled; none where
            it makes features alone.
    """

    parameters: int
    num_features: int
    classifiers: tuple[str, ...]

    @property
    def linear(self) -> bool:
        """Whether there is one classifier and that is an `nn.Linear`."""
        return self.classifiers == ("Linear",)

    @property
    def trainable(self) -> bool:
        """Whether there is one classifier, without which or with several of which nothing is trained."""
        return len(self.classifiers) == 1


@dataclass(frozen=True)
class Backbone:
    """One network as timm's registry describes it.

    Attributes:
        input_size: (channels, height, width) that it is meant for, None where timm does not say.
        tags: its sets of pretrained weights, the default one first ("" for one without a name).
        size: None where it is not known.
    """

    name: str
    input_size: tuple[int, int, int] | None
    tags: tuple[str, ...] = ()
    size: Size | None = None


def shape(sizes: Sequence[int | str]) -> tuple[int, int, int]:
    """Channels, height and width.

    Raises:
        ValueError: there are not three of them, or they are no numbers.
    """
    channels, height, width = map(int, sizes)
    return channels, height, width
