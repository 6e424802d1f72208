"""A network as one file of ONNX, which answers as the network does."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from augury.errors import AuguryError, UsageError
from augury_train.files import replacing

IMAGES, LOGITS = "images", "logits"
"""What the file's input and output are called."""
TOLERANCE = 1e-4
"""How far its logits may be from the network's: parts of the largest of those, or of 1 where that is smaller."""
LARGEST = 1536 * 2**20
"""Bytes of weights. A file of ONNX holds less than 2 GiB, and torch begins to put weights elsewhere here."""
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def refuse_without_onnx() -> None:
    """Refuse an environment that can neither write ONNX nor check it.

    Raises:
        UsageError: packages are missing.
    """
    if not all(importlib.util.find_spec(name) for name in _PACKAGES):
        raise UsageError(f"--format onnx needs {', '.join(_PACKAGES)}. Install them: pip install {' '.join(_PACKAGES)}")


def write_onnx(
    path: Path, model: str, network: nn.Module, size: tuple[int, int, int], metadata: Mapping[str, str]
) -> None:
    """Write a network as ONNX, for batches of any size, and check that onnxruntime makes the same of images.

    Args:
        path: the file.
        model: what errors call the network.
        network: in evaluation mode, on the CPU: N x ch x H x W float32 -> N x C.
        size: (ch, H, W).
        metadata: goes into the file, where onnxruntime finds it as `session.get_modelmeta().custom_metadata_map`.

    Raises:
        UsageError: torch cannot write this network as ONNX, or it is too large.
        AuguryError: what was written answers differently.
        WriteError: the disk is full, say.
    """
    held = sum(tensor.nbytes for tensor in network.state_dict().values())
    if held > LARGEST:
        raise UsageError(
            f"{model}: its weights take {held / 2**30:.1f} GiB; a file of ONNX has room for {LARGEST / 2**30:.1f} GiB. "
            "Export it with --format safetensors."
        )
    program = _program(model, network, size)
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # Each operator tells which lines of which files made it: paths of the machine that it was exported on.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    with replacing(path) as partial:
        program.save(str(partial))
        _refuse_other_logits(partial, model, network, size)


def _program(model: str, network: nn.Module, size: tuple[int, int, int]) -> torch.onnx.ONNXProgram:
    # One image would be taken for a batch that always has one.
    images = torch.zeros(2, *size)
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                verbose=False,
                input_names=[IMAGES],
                output_names=[LOGITS],
                dynamic_shapes=({0: "batch"},),
            )
    except Exception as error:
        # What it does not know how to write, the exporter tells by any exception, with a report of many lines.
        raise UsageError(
            f"{model}: torch cannot write it as ONNX: {_reason(error)}. Export it with --format safetensors."
        ) from error
    assert program is not None
    return program


def _refuse_other_logits(path: Path, model: str, network: nn.Module, size: tuple[int, int, int]) -> None:
    """Ask onnxruntime and the network for the logits of one random image and of three.

    Raises:
        AuguryError: they differ.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    # Fatal ones alone go to the terminal: errors come as exceptions, too.
    options.log_severity_level = 4
    generator = torch.Generator().manual_seed(0)
    try:
        session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        batches = [torch.randn(number, *size, generator=generator) for number in (1, 3)]
        answers = [torch.from_numpy(session.run([LOGITS], {IMAGES: images.numpy()})[0]) for images in batches]
    except Exception as error:
        # Its errors have no class in common.
        raise AuguryError(
            f"{model}: onnxruntime cannot run it: {_reason(error)}. Export it with --format safetensors."
        ) from error
    for images, found in zip(batches, answers, strict=True):
        with torch.no_grad():
            expected = network(images)
        apart = _apart(found, expected)
        if not apart <= TOLERANCE:
            raise AuguryError(
                f"{model}: onnxruntime's logits differ from its own by {apart:.1e} of the largest; {TOLERANCE:.0e} are "
                "allowed. Export it with --format safetensors."
            )


def _reason(error: BaseException) -> str:
    """The first line of what is behind an error: what torch raises itself tells how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line[:300] for line in lines if line), type(error).__name__).removesuffix(".")


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in parts of the largest number; of 1 where that is smaller."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter warns of, logs and prints about its own workings, on failure pages of it."""
    disabled, printed = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
