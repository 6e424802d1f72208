"""What a network makes of images, in one pass: what enters its classifier, and its logits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from augury.batch import Batch, ModelOutput
from augury.errors import UsageError

Pass = Callable[[nn.Module, Tensor, nn.Module], ModelOutput]

# Of timm.layers. Known by name: a loop of one's own, with a network of one's own, needs no timm.
_POOLING_HEADS = {"ClassifierHead", "NormMlpClassifierHead", "ClNormMlpClassifierHead"}


def classifier_of(network: nn.Module) -> nn.Module:
    """The last layer of a model that tells it, as timm's do.

    Raises:
        UsageError: it does not tell, has none or several.
    """
    name = _name(network)
    if not hasattr(network, "get_classifier"):
        if hasattr(network, "pretrained_cfg"):
            raise UsageError(f"model {name} has no classifier: it makes features alone. Choose another model.")
        raise UsageError(f"{name} does not tell its classifier. Give it: augury.forward(model, batch, model.fc), say.")
    classifier = network.get_classifier()  # type: ignore[operator]
    if isinstance(classifier, tuple | list | dict | nn.ModuleList | nn.ModuleDict):
        raise UsageError(
            f"model {name} has {len(classifier)} classifiers; augury trains models with one. Choose another model."
        )
    if _is_pooling_head(classifier):
        # Some of timm's models name the pooling with it.
        classifier = classifier.fc
    if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.Identity):
        raise UsageError(f"model {name} has no classifier: it makes features alone. Choose another model.")
    return classifier


def _is_pooling_head(layer: object) -> bool:
    """Tell whether a layer is one of timm's heads that pool, or of a class derived from one."""
    return any(c.__name__ in _POOLING_HEADS and c.__module__.startswith("timm.layers.") for c in type(layer).__mro__)


def _name(network: nn.Module) -> str:
    """What to call a network in a message: timm's name, where it is one of timm's."""
    name = (getattr(network, "pretrained_cfg", None) or {}).get("architecture")
    return f"`{name}`" if name else type(network).__name__


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """An ordinary pass: images M x ch x H x W -> logits M x C."""
    return network(images)


def features_and_logits(
    network: nn.Module,
    images: Tensor,
    classifier: nn.Module,
    call: Callable[[nn.Module, Tensor], Tensor] = logits_of,
) -> ModelOutput:
    """Both in one pass.

    The features are what enters the classifier, caught there, so that they are right for every family of models.

    Args:
        network: in any mode.
        images: M x ch x H x W float.
        classifier: the network's last layer.
        call: makes the pass, a compiled `logits_of` say.

    Raises:
        UsageError: the network makes no tensor, or does not call the classifier once with a row for each image.
    """
    caught: list[Tensor] = []
    with _catching(classifier, caught):
        logits = call(network, images)
    name, layer = _name(network), type(classifier).__name__
    if not isinstance(logits, Tensor):
        raise UsageError(
            f"model {name} makes a {type(logits).__name__} in training; augury trains models that make one tensor of "
            "logits. Switch its other outputs off, or choose another model."
        )
    if len(caught) != 1:
        raise UsageError(
            f"model {name} calls its classifier, a {layer}, {len(caught)} times in a pass; augury trains models that "
            "call it once. Give the layer that makes the logits, or choose another model."
        )
    if len(caught[0]) != len(images):
        raise UsageError(
            f"model {name} gives its classifier, a {layer}, {len(caught[0])} rows for {len(images)} images; augury "
            "trains models with one row for each. Choose another model."
        )
    return ModelOutput(caught[0].flatten(1), logits)


def forward(
    network: nn.Module, batch: Batch, classifier: nn.Module | None = None, *, plain: Pass | None = None
) -> ModelOutput:
    """What a network makes of a batch, in one pass: features and logits, rows mixed inside where a method asked for it.

    Args:
        network: images M x ch x H x W -> logits M x C, in any mode.
        batch: after `augment_batch`.
        classifier: its last layer; what its `get_classifier()` names (timm's do) when None.
        plain: makes the pass where nothing is mixed inside, a compiled one say; an ordinary one when None.

    Raises:
        UsageError: the network does not tell its classifier, or a layer cannot be mixed.
    """
    if classifier is None:
        classifier = classifier_of(network)
    if batch.hidden is None:
        return (plain or features_and_logits)(network, batch.images, classifier)
    # Never compiled: a compiled pass does not see the hooks of one batch.
    network = getattr(network, "_orig_mod", network)
    with batch.hidden.applied(network):
        return features_and_logits(network, batch.images, classifier)


@contextlib.contextmanager
def _catching(layer: nn.Module, into: list[Tensor]) -> Iterator[None]:
    handle = layer.register_forward_pre_hook(lambda _, inputs: into.append(inputs[0]))
    try:
        yield
    finally:
        handle.remove()
