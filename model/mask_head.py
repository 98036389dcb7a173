"""The outline of each detection, as a small picture inside its box (Mask R-CNN, 1703.06870, section 3)."""
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from model.roi_heads import RoIPool
from util.masks import unpack_bits


class MaskHead(nn.Module):
    """A mask of twice config.mask_size for each class of a box. Only that of the class asked for is worked out."""

    def __init__(self, config):
        super().__init__()
        self.config, self.pool = config, RoIPool(config)
        channels, layers = config.mask_channels, []
        for place in range(config.mask_convs):
            layers += [nn.Conv2d(channels if place else config.fpn_channels, channels, 3, padding=1), nn.ReLU()]
        self.convs = nn.Sequential(*layers)
        self.upsample = nn.ConvTranspose2d(channels if layers else config.fpn_channels, channels, 2, 2)
        self.mask_logits = nn.Conv2d(channels, config.num_classes, 1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, pyramid: list[Tensor], boxes: Tensor, picture: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """[R, side, side] float32 logits for boxes [R, 4] of pictures [R], of the classes label [R], from levels [R] of the pyramid."""
        x = self.upsample(self.convs(self.pool(pyramid, boxes, picture, level, self.config.mask_size))).relu()
        logits = torch.einsum("rchw,rc->rhw", x, self.mask_logits.weight[label, :, 0, 0].to(x.dtype))
        return logits.float() + self.mask_logits.bias[label, None, None]

    def loss(self, pyramid: list[Tensor], samples: SimpleNamespace, targets: dict) -> dict:
        """{"mask": [1, 2] float32, (sum, count)}: binary cross-entropy, the mean over the mask of each positive sample whose object
        has a mask (an all-zero one is none) / their weight. samples: as BoxHead gives them.

        targets   with masks uint8 [B, M, H, W / 8], in input pixels, as util.masks.pack_bits
        """
        picture, slot = (samples.matched_gt >= 0).nonzero(as_tuple=True)
        row, boxes = samples.matched_gt[picture, slot], samples.boxes[picture, slot]
        logits = self(pyramid, boxes, picture, samples.level[picture, slot], targets["labels"][picture, row])
        used, place = (picture * targets["masks"].shape[1] + row).unique(return_inverse=True)
        masks = unpack_bits(targets["masks"].flatten(0, 1)[used])
        wanted = roi_align(masks[:, None].float(), torch.cat([place[:, None].to(boxes.dtype), boxes], 1), logits.shape[-1])[:, 0]
        weight = targets["weights"][picture, row] * masks.flatten(1).any(1)[place]
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").flatten(1).mean(1)
        return {"mask": torch.stack([(entropy * weight).sum(), weight.sum()])[None]}

    def detect(self, pyramid: list[Tensor], found: SimpleNamespace) -> dict:
        """{"masks": float32 [K, side, side], probabilities} for detections as BoxHead gives them."""
        return {"masks": self(pyramid, found.boxes, found.picture, found.level, found.labels).sigmoid()}


class NoMasks(nn.Module):
    """What a Faster R-CNN has in its place."""

    def loss(self, *arguments) -> dict:
        return {}

    def detect(self, *arguments) -> dict:
        return {}
