"""Backbones: normalised pictures in, [C2, C3, C4, C5] out (strides 4, 8, 16, 32). `BACKBONES` is the one list of them.

The ResNets and RegNet are torchvision's, EfficientNet-Lite is written here (torchvision has none), and "timm:NAME" takes
any network of an installed timm that can give features, with random weights. Each has `.channels` of C2 to C5 and `.early()`: the modules up
to stride 4, whose general features a detector with pre-trained weights need not learn again.
"""
import math
from functools import partial

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

IMAGENET_PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
PIXEL_ORDERS = {"rgb": lambda images: images, "bgr": lambda images: images.flip(1)}
TENSORFLOW_PIXELS = {"pixel_mean": (127.5, 127.5, 127.5), "pixel_std": (127.5, 127.5, 127.5)}


class ResNetBody(nn.Module):
    """torchvision's ResNet without its classifier; the same key names."""

    def __init__(self, network: nn.Module, channels: list):
        super().__init__()
        self.channels = channels
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(network, name))

    def early(self) -> list[nn.Module]:
        return [self.conv1, self.bn1, self.layer1]

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c2, c3, c4, self.layer4(c4)]


class RegNetBody(nn.Module):
    """torchvision's RegNet without its classifier; the same key names."""

    def __init__(self, network: nn.Module, channels: list):
        super().__init__()
        self.channels, self.stem, self.trunk_output = channels, network.stem, network.trunk_output

    def early(self) -> list[nn.Module]:
        return [self.stem, self.trunk_output.block1]

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.trunk_output.block1(self.stem(x))
        c3 = self.trunk_output.block2(c2)
        c4 = self.trunk_output.block3(c3)
        return [c2, c3, c4, self.trunk_output.block4(c4)]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise k x k, linear 1x1 projection, and the input added where the shape allows (1801.04381)."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int, norm):
        super().__init__()
        wide = in_channels * expansion
        layers = [ConvNorm(in_channels, wide, 1, norm=norm), nn.ReLU6(inplace=True)] if expansion > 1 else []
        layers += [ConvNorm(wide, wide, kernel, stride, wide, norm), nn.ReLU6(inplace=True), ConvNorm(wide, out_channels, 1, norm=norm)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class ConvNorm(nn.Module):
    """Convolution and norm, padded as TensorFlow's SAME: what is odd goes right and bottom."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1, norm=nn.BatchNorm2d):
        super().__init__()
        total = kernel - stride if stride > 1 else kernel - 1      # for sides that the stride divides
        # An odd total: one window more at the left and top, which is left out then. To pad the input alone would copy all of it.
        self.uneven = total % 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, total // 2 + self.uneven * stride, groups=groups, bias=False)
        self.bn = norm(out_channels, eps=1e-3)
        self.join = normed          # `folded` where the norm is frozen

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self, x)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        x = F.conv2d(x, weight, bias, self.conv.stride, self.conv.padding, groups=self.conv.groups)
        return x[..., 1:, 1:] if self.uneven else x


def normed(layer: ConvNorm, x: Tensor) -> Tensor:
    return layer.bn(layer.convolve(x, layer.conv.weight))


def folded(layer: ConvNorm, x: Tensor) -> Tensor:
    """The same where the statistics are constants, in one pass over the map: they go into weight and bias of the convolution."""
    scale = layer.bn.weight * (layer.bn.running_var + layer.bn.eps).rsqrt()
    return layer.convolve(x, layer.conv.weight * scale[:, None, None, None], layer.bn.bias - layer.bn.running_mean * scale)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite: EfficientNet (1905.11946) without squeeze-and-excitation and with ReLU6, quick on a CPU.

    width, depth   of Lite0 (3.0 M parameters to C5) 1 and 1, of Lite1 (3.7 M) 1 and 1.1, of Lite2 (4.4 M) 1.1 and 1.2: factors of
                   the channels, to the nearest 8, and of the blocks a stage, upwards. The stem, and how many blocks the first and last stage have, stay.
    """

    STAGES = (                                     # expansion, channels, blocks, stride, kernel
        (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5),          # end nowhere, at C2 and at C3
        (6, 80, 3, 2, 3), (6, 112, 3, 1, 5),                           # ends at C4
        (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))                          # ends at C5

    def __init__(self, norm, width: float = 1.0, depth: float = 1.0):
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 32, 3, 2, norm=norm), nn.ReLU6(inplace=True))
        stages, channels = [], [32]
        for expansion, planned, repeats, stride, kernel in self.STAGES:
            channels.append(int(planned * width + 4) // 8 * 8)
            repeats = math.ceil(repeats * depth) if repeats > 1 else 1          # one block: of the first and the last stage
            stages.append([InvertedResidual(channels[-1] if number else channels[-2], channels[-1], expansion, kernel, 1 if number else stride, norm)
                           for number in range(repeats)])
        self.channels = [channels[stage] for stage in (2, 3, 5, 7)]
        self.to_c3, self.to_c4, self.to_c5 = (nn.Sequential(*sum(part, [])) for part in (stages[:3], stages[3:5], stages[5:]))
        self.c2_blocks = len(stages[0] + stages[1])          # of those of to_c3
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def early(self) -> list[nn.Module]:
        return [self.stem, *self.to_c3[:self.c2_blocks]]

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.to_c3[:self.c2_blocks](self.stem(x))
        c3 = self.to_c3[self.c2_blocks:](c2)
        c4 = self.to_c4(c3)
        return [c2, c3, c4, self.to_c5(c4)]


class TimmBody(nn.Module):
    """Any timm network with feature_info, e.g. "timm:mobilenetv3_large_100"."""

    def __init__(self, name: str):
        super().__init__()
        try:
            import timm
        except ImportError:
            raise ValueError(f"backbone timm:{name}: timm is not installed (pip install timm)") from None
        try:
            reductions = timm.create_model(name, pretrained=False, features_only=True).feature_info.reduction()
        except Exception as error:          # an unknown name, or a network without features
            raise ValueError(f"backbone timm:{name}: timm cannot make it: {' '.join(str(error).split())}") from None
        missing = [stride for stride in (4, 8, 16, 32) if stride not in reductions]
        if missing:
            raise ValueError(f"backbone timm:{name}: has no features of stride {missing[0]}, but of {reductions}")
        indices = [reductions.index(stride) for stride in (4, 8, 16, 32)]
        self.network = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices)
        self.channels = self.network.feature_info.channels()
        try:
            with torch.no_grad():           # many transformers take pictures of one size only, or give [B, H, W, C]
                shapes = [tuple(features.shape) for features in self.network.eval()(torch.zeros(1, 3, 64, 96))]
        except Exception as error:
            raise ValueError(f"backbone timm:{name}: it cannot take pictures of any size: {' '.join(str(error).split())}") from None
        self.network.train()
        expected = [(1, channels, 64 // stride, 96 // stride) for channels, stride in zip(self.channels, (4, 8, 16, 32), strict=True)]
        if shapes != expected:
            raise ValueError(f"backbone timm:{name}: of a picture of 64x96 px its features are {shapes}, must be {expected}")

    def early(self) -> list[nn.Module]:
        return []

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.network(x)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics stay as they were loaded, in training too; so does the rest where it asks for no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """16 groups, or as many as divide the channels. Its statistics are those of one picture, so that no step is too small for it."""
    return nn.GroupNorm(math.gcd(16, channels), channels, eps)


NORMS = {"bn": nn.BatchNorm2d, "gn": group_norm}
BACKBONES = {
    "resnet18": lambda norm: ResNetBody(torchvision.models.resnet18(norm_layer=norm), [64, 128, 256, 512]),
    "resnet34": lambda norm: ResNetBody(torchvision.models.resnet34(norm_layer=norm), [64, 128, 256, 512]),
    "resnet50": lambda norm: ResNetBody(torchvision.models.resnet50(norm_layer=norm), [256, 512, 1024, 2048]),
    "resnet101": lambda norm: ResNetBody(torchvision.models.resnet101(norm_layer=norm), [256, 512, 1024, 2048]),
    "regnet_x_400mf": lambda norm: RegNetBody(torchvision.models.regnet_x_400mf(norm_layer=norm), [32, 64, 160, 400]),
    "efficientnet_lite0": EfficientNetLite,
    "efficientnet_lite1": partial(EfficientNetLite, depth=1.1),
    "efficientnet_lite2": partial(EfficientNetLite, width=1.1, depth=1.2),
}


class Normalize(nn.Module):
    """(uint8 pictures [B, 3, H, W] RGB, sizes [B, 2] (h, w) before padding) -> float32 pixels in the order that the backbone wants, of
    mean 0 and deviation 1; the padding is 0 too, whatever it was before."""

    def __init__(self, config):
        super().__init__()
        self.pixel_order = PIXEL_ORDERS[config.pixel_order]
        self.register_buffer("mean", torch.tensor(config.pixel_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.pixel_std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        inside = ((torch.arange(height, device=images.device)[:, None] < image_sizes[:, 0, None, None])
                  & (torch.arange(width, device=images.device) < image_sizes[:, 1, None, None]))
        return torch.where(inside[:, None], (self.pixel_order(images).float() - self.mean) / self.std, 0.0)


NO_EPS = 1e-30          # for an eps of 0, which not every version of torch takes: added to a variance in float32, nothing


def build_backbone(name: str, freeze: str, stride_in_1x1: bool = False, norm_eps: float | None = None, norm: str = "bn") -> nn.Module:
    """A backbone with random weights. Raises ValueError for a name that is not known, and for what a backbone cannot be.

    freeze         what stays as it was loaded: "none", "norm" (batch norms), "early" (these and the layers up to stride 4), "all"
    stride_in_1x1  bottlenecks shrink the map in their first convolution, as Caffe's ResNets do
    norm_eps       of all batch norms; None: their own
    norm           "bn" or "gn" (group norms; Wu and He, 1803.08494): these have no statistics, and are frozen with the layers that "early" and "all" freeze
    """
    if name.startswith("timm:"):
        if norm != "bn":
            raise ValueError(f"backbone_norm is {norm!r}, but the norms of {name} are timm's own matter")
        body = TimmBody(name.removeprefix("timm:"))
    elif name in BACKBONES:
        body = BACKBONES[name](NORMS[norm])
    else:
        raise ValueError(f"backbone is {name!r}, not one of {', '.join(BACKBONES)}, timm:NAME")
    if stride_in_1x1:
        _move_strides(name, body)
    if norm_eps is not None:
        for module in body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eps = norm_eps or NO_EPS
    if freeze != "none":
        freeze_norms(body)
    for module in {"early": body.early(), "all": [body]}.get(freeze, []):
        module.requires_grad_(False)
    return body


def pixel_statistics(backbone: str) -> dict:
    """The config fields pixel_mean and pixel_std that the published weights of a backbone expect."""
    return TENSORFLOW_PIXELS if backbone.startswith("efficientnet_lite") else IMAGENET_PIXELS


def _move_strides(name: str, body: nn.Module) -> None:
    bottlenecks = [module for module in body.modules() if isinstance(module, Bottleneck)]
    if not bottlenecks:
        raise ValueError(f"stride_in_1x1 is True, but the backbone {name} has no bottlenecks with a 1x1 convolution; resnet50 and resnet101 have")
    for block in bottlenecks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def freeze_norms(module: nn.Module) -> None:
    """Only plain batch norms are known to do nothing else; timm's, for one, carry the activation too."""
    if isinstance(module, ConvNorm) and isinstance(module.bn, nn.BatchNorm2d):
        module.join = folded
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen.requires_grad_(False))
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise ValueError(f"backbone_freeze must be none for this backbone: its layer {name} is a {type(child).__name__}, not a plain BatchNorm2d")
        else:
            freeze_norms(child)
