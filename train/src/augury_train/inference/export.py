"""A trained network taken away: as timm loads it, or as ONNX."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from timm.models import model_entrypoint

from augury import __version__
from augury.errors import UsageError
from augury.outside import given_path
from augury_train import backbones
from augury_train.backbones.weights import EXPORTED, describe, save_weights
from augury_train.data.view import crop_share
from augury_train.files import refuse_ways_out, replacing, writing
from augury_train.formats import FORMAT
from augury_train.inference.classifier import Classifier, Weights, load_classifier
from augury_train.inference.onnx import IMAGES, LOGITS, refuse_without_onnx, write_onnx

Format = Literal["safetensors", "onnx"]
CONFIG = "config.json"
"""What timm reads beside the weights."""
ONNX = "model.onnx"
_FILES: dict[str, tuple[str, ...]] = {"safetensors": (EXPORTED, CONFIG), "onnx": (ONNX,)}
_OF_OTHER_WEIGHTS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")
"""What timm's pretrained cfg says of the weights that it has itself."""
_WRITTEN_BY = {"augury_version": __version__, "augury_format": FORMAT}


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        path: the file with the network.
        files: all that was written, `path` first.
        model: the network's name in timm's registry.
        load: Python that loads it, without augury but for a network of augury's own.
        notes: what the user may not expect, a line each.
    """

    path: Path
    files: tuple[Path, ...]
    model: str
    load: str
    notes: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return self.path.parent


def export(
    run: Path | str, format: Format = "safetensors", *, output: Path | str | None = None, weights: Weights = "best"
) -> Export:
    """Write a run's network for use elsewhere: its weights, classes and preprocessing, and nothing of any method.

        export = augury.export("runs/first")
        network = timm.create_model(f"local-dir:{export.folder}", pretrained=True)

    Both forms say in their metadata what `augury_train.backbones.weights.Description` lists, and `augury_version`.
    Images enter as in the run's evaluation, at the size of that.

    Args:
        run: a run folder, or whatever else `augury.load_classifier` takes.
        format: `safetensors` writes model.safetensors and the config.json with which timm takes the folder for one of
            its models; `onnx` writes model.onnx, `images` N x ch x H x W float32, normalised -> `logits` N x C,
            which is checked with onnxruntime.
        output: the folder; `RUN/export` when None. Nothing in it is overwritten.
        weights: of a run's best epoch, or of its last.

    Raises:
        UsageError: no such weights, files in the way, a network that cannot be written in this form.
        AuguryError: onnxruntime makes something else of the file than the network is.
        WriteError: the folder cannot be written to. No part of a file is left.
    """
    if format not in get_args(Format):
        raise UsageError(f"format must be one of {', '.join(get_args(Format))}, got `{format}`.")
    if format == "onnx":
        refuse_without_onnx()
    classifier = load_classifier(run, weights, "cpu")
    folder = _folder(classifier.path) if output is None else given_path(output, "--output")
    files = tuple(folder / name for name in _FILES[format])
    _refuse_to_overwrite(files)
    with _made(folder):
        if format == "onnx":
            size, metadata = classifier.format.size, _metadata(classifier)
            write_onnx(files[0], classifier.model, classifier.network, size, metadata)
        else:
            _write_safetensors(files[0], files[1], classifier)
    load = _with_onnxruntime(files[0]) if format == "onnx" else _with_timm(folder, classifier.model)
    return Export(files[0], files, classifier.model, load, list(classifier.notes))


def _with_timm(folder: Path, model: str) -> str:
    ours = model_entrypoint(model.split(".")[0]).__module__.startswith(f"{backbones.__name__}.")
    imported = f"import timm\nimport {backbones.__name__}" if ours else "import timm"
    return f"{imported}\nnetwork = timm.create_model({f'local-dir:{folder}'!r}, pretrained=True).eval()"


def _with_onnxruntime(path: Path) -> str:
    session = f"import onnxruntime\nsession = onnxruntime.InferenceSession({str(path)!r})"
    return f'{session}\nlogits = session.run(["{LOGITS}"], {{"{IMAGES}": images}})[0]'


def _folder(path: Path) -> Path:
    """Where the network of a file goes when nothing is said.

    Raises:
        UsageError: what is written there would not stay there.
    """
    folder = path.parent if path.name == EXPORTED else path.parent / "export"
    if folder.is_symlink():
        raise UsageError(f"{folder} is a link to {os.readlink(folder)}. Remove it, or name a folder with --output.")
    if os.path.isdir(folder):
        refuse_ways_out(folder)
    return folder


def _refuse_to_overwrite(files: tuple[Path, ...]) -> None:
    for path in files:
        # A link that leads nowhere is in the way, too.
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already. Move it elsewhere, or give another folder with --output.")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; one that was not there and into which nothing was written is not left."""
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for place in made:
            if any(place.iterdir()):
                break
            place.rmdir()
        raise


def _write_safetensors(path: Path, config: Path, classifier: Classifier) -> None:
    with replacing(config) as partial:
        _write_config(partial, classifier)
        # Tensors as torch has them: transformers, for one, asks for that.
        save_weights(path, classifier.network.state_dict(), _metadata(classifier) | {"format": "pt"})


def _write_config(path: Path, classifier: Classifier) -> None:
    """Write what timm takes to build the network again, and what it takes to prepare its images."""
    from timm.models._hub import save_config_for_hf

    form, network = classifier.format, classifier.network
    network.pretrained_cfg = {  # type: ignore[assignment]
        key: value
        for key, value in network.pretrained_cfg.items()  # type: ignore[operator, union-attr]
        if key not in _OF_OTHER_WEIGHTS
    }
    shown = {
        "input_size": form.size,
        "mean": form.mean,
        "std": form.std,
        "crop_pct": crop_share(form.side, form.kept),
        "crop_mode": "center",
        "interpolation": form.interpolation,
    }
    said = {"label_names": classifier.classes, **_WRITTEN_BY}
    try:
        save_config_for_hf(network, str(path), model_config=said, data_config=shown)
    except ValueError as error:
        raise UsageError(
            f"{classifier.path}: timm cannot describe this network: {error} Export it with --format onnx."
        ) from None


def _metadata(classifier: Classifier) -> dict[str, str]:
    """What the file says of its network, each value as JSON but for plain names."""
    said = describe(classifier.path).model_dump(round_trip=True, exclude_none=True)
    return {key: str(value) for key, value in {**said, **_WRITTEN_BY}.items()}
