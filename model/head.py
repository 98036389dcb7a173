"""The head that every level shares: two towers, and class, box and quality at each location (paper, section 3.1)."""
import math

import torch
from torch import Tensor, nn

from model.backbone import FrozenBatchNorm2d

MAX_EXPONENT = 7.0          # exp(7) = 1097 strides: past any picture, and far from what float32 or float16 cannot hold
CLASS_PRIOR = 0.01          # every location starts out 99 % background (Lin et al., 1708.02002, section 3.3)
DISTANCES = {"exp": lambda x, unit: x.clamp(max=MAX_EXPONENT + math.log(unit)).exp() / unit,
             "relu": lambda x, unit: x.relu().clamp(max=math.exp(MAX_EXPONENT) * unit) / unit}


class FCOSHead(nn.Module):
    """Feature maps of L levels -> cls_logits [B, N, C], ltrb [B, N, 4] in strides (>= 0), quality_logits [B, N].

    N runs level after level, row by row. A distance is exp(scale * x) or relu(scale * x), in strides or in input pixels,
    with one scale a level, learned or 1. Without a quality in the config there are no quality_logits.
    """

    def __init__(self, config):
        super().__init__()
        channels, shared = config.fpn_channels, config.head_convs * config.shared_tower
        self.shared_tower = Tower(shared, config)
        self.cls_tower = Tower(config.head_convs - shared, config)
        self.reg_tower = Tower(config.head_convs - shared, config)
        self.cls_logits = nn.Conv2d(channels, config.num_classes, 3, padding=1)
        self.ltrb = nn.Conv2d(channels, 4, 3, padding=1)
        self.branches = {"cls_logits": ("cls_logits", "cls", _rows), "ltrb": ("ltrb", "box", _rows)}  # output: convolution, tower, layout
        if config.quality != "none":
            self.quality = nn.Conv2d(channels, 1, 3, padding=1)
            self.branches["quality_logits"] = ("quality", config.quality_tower, _numbers)
        scales = torch.ones(config.levels)
        if config.scale_distances:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales, persistent=False)
        self.distance = DISTANCES[config.distance]
        self.units = config.strides if config.distance_unit == "pixel" else (1,) * config.levels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))

    def forward(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        outputs = {name: [] for name in self.branches}
        for level, (feature, scale, unit) in enumerate(zip(pyramid, self.scales.unbind(), self.units, strict=True)):
            shared = self.shared_tower(feature, level)
            towers = {"cls": self.cls_tower(shared, level), "box": self.reg_tower(shared, level)}
            for name, (conv, tower, layout) in self.branches.items():
                outputs[name].append(layout(getattr(self, conv)(towers[tower])))
            outputs["ltrb"][level] = self.distance(scale * outputs["ltrb"][level].float(), unit)
        return {name: torch.cat(levels, 1) for name, levels in outputs.items()}


class Tower(nn.ModuleList):
    """Rounds of convolution, norm and ReLU over the map of one level. What differs from level to level are the batch norms
    alone: so do the numbers that go through them, and one running average would fit no level."""

    def __init__(self, convs: int, config):
        super().__init__()
        channels, groups = config.fpn_channels, config.head_norm_groups or min(32, config.fpn_channels // 2)

        def of_levels(norm):
            return [nn.ModuleList(norm(channels) for _ in range(config.levels))]
        norms = {"gn": lambda: [nn.GroupNorm(groups, channels)], "none": lambda: [],
                 "bn": lambda: of_levels(nn.BatchNorm2d), "frozen_bn": lambda: of_levels(FrozenBatchNorm2d)}
        for _ in range(convs):
            self.append(nn.Conv2d(channels, channels, 3, padding=1, bias=config.tower_bias or config.head_norm == "none"))
            self.extend([*norms[config.head_norm](), nn.ReLU()])

    def forward(self, x: Tensor, level: int) -> Tensor:
        for layer in self:
            x = (layer[level] if isinstance(layer, nn.ModuleList) else layer)(x)
        return x


def _rows(x: Tensor) -> Tensor:
    """[B, K, H, W] -> [B, H * W, K]"""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _numbers(x: Tensor) -> Tensor:
    """[B, 1, H, W] -> [B, H * W]"""
    return x.flatten(1)
