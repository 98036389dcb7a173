"""The head that every level shares: two towers, and class, box and quality at each location (paper, section 3.1)."""
import math

import torch
from torch import Tensor, nn

MAX_EXPONENT = 7.0          # exp(7) = 1097 strides: past any picture, and far from what float32 or float16 cannot hold
CLASS_PRIOR = 0.01          # every location starts out 99 % background (Lin et al., 1708.02002, section 3.3)


class FCOSHead(nn.Module):
    """Feature maps of L levels -> cls_logits [B, N, C], ltrb [B, N, 4] in strides (> 0), quality_logits [B, N].

    N runs level after level, row by row. A distance is exp(scale * x) strides with one learned scale a level.
    """

    def __init__(self, channels: int, num_classes: int, levels: int, convs: int, norm: str):
        super().__init__()
        self.cls_tower = _tower(channels, convs, norm)
        self.reg_tower = _tower(channels, convs, norm)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.ltrb = nn.Conv2d(channels, 4, 3, padding=1)
        self.quality = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))

    def forward(self, pyramid: list[Tensor]) -> dict[str, Tensor]:
        cls_logits, ltrb, quality = [], [], []
        for feature, scale in zip(pyramid, self.scales.unbind(), strict=True):
            regression = self.reg_tower(feature)
            cls_logits.append(_flat(self.cls_logits(self.cls_tower(feature))))
            ltrb.append(torch.exp((scale * _flat(self.ltrb(regression)).float()).clamp(max=MAX_EXPONENT)))
            quality.append(_flat(self.quality(regression)))
        return {"cls_logits": torch.cat(cls_logits, 1), "ltrb": torch.cat(ltrb, 1),
                "quality_logits": torch.cat(quality, 1).squeeze(-1)}


def _tower(channels: int, convs: int, norm: str) -> nn.Sequential:
    layers = []
    for _ in range(convs):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none"))
        if norm == "gn":
            layers.append(nn.GroupNorm(min(32, channels // 4), channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def _flat(x: Tensor) -> Tensor:
    """[B, K, H, W] -> [B, H * W, K]"""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
