"""What our networks for small images share: timm's interface around a stem and three stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.layers import create_classifier
from torch import Tensor, nn


class CifarNetwork(nn.Module):
    """The head, the first weights and timm's interface; a subclass adds `conv1` and the stages `layer1` to `layer3`.

    Attributes:
        num_classes: C; 0 for no classifier.
        in_chans: channels of the images.
        drop_rate: dropout before the classifier, unless the network says otherwise.
        num_features: A, width of the feature map; `head_hidden_size`: of the classifier's input.
        feature_info: the stages as timm's own networks tell them: module, channels, reduction of the image's side.
    """

    feature_info: list[dict[str, Any]]

    def __init__(self, num_classes: int, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate

    def _add_head(self, channels: Sequence[int], global_pool: str) -> None:
        """Finish the network, whose stages make so many channels, with its last layers; draw its convolutions."""
        self.feature_info = [
            {"module": f"layer{number}", "num_chs": made, "reduction": 2 ** (number - 1)}
            for number, made in enumerate(channels, 1)
        ]
        self.num_features = channels[-1]
        self.head_drop = nn.Dropout(self.drop_rate)
        self._make_classifier(global_pool)
        draw_convolutions(self)

    def _make_classifier(self, global_pool: str) -> None:
        self.global_pool, self.fc = create_classifier(self.num_features, self.num_classes, pool_type=global_pool)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one for `num_classes`; the pooling too where it is given."""
        self.num_classes = num_classes
        self._make_classifier(self.global_pool.pool_type if global_pool is None else global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The stem, and the stages or blocks, by their parameters' names (timm's layer groups); a last norm belongs to
        the last block."""
        blocks = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^conv1|^bn1", "blocks": [(blocks, None), (r"^bn_final", (99999,))]}

    def forward_features(self, x: Tensor) -> Tensor:
        """M x ch x H x W -> M x A x H' x W'."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map -> logits M x C, or features M x A."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def draw_convolutions(network: nn.Module) -> None:
    """Draw the weights of all convolutions from N(0, 2 / (k k out)), k their side: He et al. 2015, arXiv 1502.01852,
    equation 14, which all the papers' programs use."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def small_stem(first: nn.Conv2d) -> nn.Conv2d:
    """A 3x3 convolution with stride 1 of the same channels as a network's first one."""
    like: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
    return nn.Conv2d(first.in_channels, first.out_channels, 3, padding=1, bias=False, **like)


def at_full_size(info: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """timm's feature info of a network whose stem no longer reduces the image by four (by two before its pooling)."""
    return [{**tap, "reduction": max(1, tap["reduction"] // 4)} for tap in info]


def blocks_per_stage(depth: int, layers: int, others: int) -> int:
    """How many blocks each of three stages has.

    Args:
        depth: weight layers of the network.
        layers: those of a block.
        others: those outside of blocks.

    Raises:
        ValueError: the depth is not that of three equal stages.
    """
    blocks, rest = divmod(depth - others, 3 * layers)
    if rest or blocks < 1:
        raise ValueError(f"depth must be {3 * layers}n + {others} with n >= 1, got {depth}")
    return blocks


def cfg(**changes: Any) -> dict[str, Any]:
    """timm's default cfg of a network for CIFAR-10."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": "conv1",
        "classifier": "fc",
        **changes,
    }
