"""The feature pyramid: P3..P5 from C3..C5, or P2..P5 from C2..C5, and P6, P7 on top (Lin et al., 1612.03144; FCOS, section 3.1)."""
import torch.nn.functional as F
from torch import Tensor, nn


P6_SOURCES = {"p5": lambda c5, p5: p5, "c5": lambda c5, p5: c5, "pool": lambda c5, p5: p5}


class FPN(nn.Module):
    """The last len(in_channels) of [C2 .. C5] -> the P of the same numbers and, up to `levels` maps, P6 and P7, each with `channels` channels.
    P6 is a convolution of P5 or C5, or every second pixel of P5 ("pool"), P7 one of relu(P6)."""

    def __init__(self, in_channels: list, channels: int, levels: int, p6_from: str = "p5"):
        super().__init__()
        self.p6_source = P6_SOURCES[p6_from]
        p6_channels = self.p6_source(in_channels[-1], channels)
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extra = nn.ModuleList(nn.MaxPool2d(1, 2) if p6_from == "pool" else nn.Conv2d(c, channels, 3, stride=2, padding=1)
                                   for c in (p6_channels, channels)[:levels - len(in_channels)])
        for conv in (*self.lateral, *self.output, *(layer for layer in self.extra if isinstance(layer, nn.Conv2d))):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        features = features[-len(self.lateral):]
        merged = self.lateral[-1](features[-1])
        pyramid = [self.output[-1](merged)]
        for lateral, output, feature in zip(self.lateral[-2::-1], self.output[-2::-1], features[-2::-1], strict=True):
            merged = lateral(feature) + F.interpolate(merged, size=feature.shape[-2:], mode="nearest")
            pyramid.insert(0, output(merged))
        source = self.p6_source(features[-1], pyramid[-1])
        for shrink in self.extra:
            pyramid.append(shrink(source))
            source = pyramid[-1].relu()
        return pyramid
