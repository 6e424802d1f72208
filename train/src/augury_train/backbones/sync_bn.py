"""BatchNorm over the rows of all processes."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from augury.distributed import Ranks
from augury.errors import UsageError


def synchronised(network: nn.Module, ranks: Ranks) -> nn.Module:
    """The network with BatchNorm layers whose statistics are those of the rows of all processes, which hold equally
    many; the network itself where there is one process.

    Names, weights and running statistics stay. On a GPU the layers are torch's, which refuse tensors of the CPU; there
    they are this module's.

    Raises:
        UsageError: a layer with statistics of the batch that is none of those that can be synchronised.
    """
    if ranks.size == 1:
        return network
    layers = [(name, module) for name, module in network.named_modules() if _of_the_batch(module)]
    for name, module in layers:
        if type(module) not in _SYNCHRONISED:
            known = ", ".join(kind.__name__ for kind in _SYNCHRONISED)
            raise UsageError(
                f"train.sync_bn: layer `{name}` of the network is a {type(module).__name__}, and {known} can be "
                "synchronised. Leave out train.sync_bn, or train in one process."
            )
    if any(parameter.is_cuda for parameter in network.parameters()):
        return convert_sync_batchnorm(network, ranks.group)
    for _, module in layers:
        # Another class for the same object: parameters, statistics, hooks and activation stay where they are.
        module.__class__ = _SYNCHRONISED[type(module)]
        module.ranks = ranks
    return network


def _of_the_batch(module: nn.Module) -> bool:
    """Whether it may normalise by the rows at hand. Layers that are frozen for good are other classes."""
    keeps = "running_mean" in module._buffers or "running_var" in module._buffers
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or (keeps and "Frozen" not in type(module).__name__)


def _normalise(layer: Any, inputs: Tensor) -> Tensor:
    """`layer`'s normalisation of inputs N x C x ..., by the statistics of all processes' rows.

    The running variance is the unbiased one, of N * size rows. Statistics are float32 at least, also under autocast.
    """
    numbers = inputs if inputs.dtype == torch.float64 else inputs.float()
    others = [axis for axis in range(inputs.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(inputs.ndim)]
    mean = layer.ranks.mean(numbers.mean(others))
    centred = numbers - mean.view(shape)
    # In two passes: E[x^2] - E[x]^2 loses digits where the mean is large.
    variance = layer.ranks.mean(centred.square().mean(others))
    _remember(layer, mean.detach(), variance.detach(), inputs.numel() // inputs.shape[1] * layer.ranks.size)
    found = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        found = found * layer.weight.view(shape) + layer.bias.view(shape)
    return found.to(inputs.dtype)


def _remember(layer: Any, mean: Tensor, variance: Tensor, count: int) -> None:
    if not layer.track_running_stats:
        return
    layer.num_batches_tracked.add_(1)
    # None is the mean over all batches.
    share = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean), share)
    layer.running_var.lerp_((variance * count / max(1, count - 1)).to(layer.running_var), share)


class _Synced(_BatchNorm):
    ranks: Ranks

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        return _normalise(self, input)


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over all processes in training."""


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all processes in training."""


class SyncedBatchNormAct2d(BatchNormAct2d):
    """timm's normalisation with activation over all processes in training."""

    ranks: Ranks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        return self.act(self.drop(_normalise(self, x)))


_SYNCHRONISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
    BatchNormAct2d: SyncedBatchNormAct2d,
}
