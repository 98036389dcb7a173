"""FCOS: Fully Convolutional One-Stage Object Detection (Tian et al., 1904.01355), told once from top to bottom."""
import torch
from torch import Tensor, nn

from model.backbone import build_backbone
from model.config import FCOSConfig
from model.fpn import FPN
from model.head import FCOSHead
from model.locations import pyramid_locations
from model.loss import FCOSLoss
from model.postprocess import detect
from model.targets import assign


class FCOS(nn.Module):
    """What you bring decides what you get.

    model(images, image_sizes, targets) -> {"cls", "reg", "quality"}: each [1, 2] float32, (sum, count); a loss is sum / count
    model(images, image_sizes)          -> [{"boxes" [K, 4], "scores" [K], "labels" [K]}] per picture, input pixels, best first

    images       uint8 [B, 3, H, W] RGB; H and W multiples of 32, padded right and bottom
    image_sizes  int64 [B, 2] (h, w) before padding
    targets      boxes float32 [B, M, 4] xyxy input pixels, labels int64 [B, M] (-1: padding row),
                 weights float32 [B, M], ignore bool [B, M] (True: a region to leave out); M >= 1
    """

    def __init__(self, config: FCOSConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone, config.backbone_freeze, config.stride_in_1x1, config.norm_eps)
        self.fpn = FPN(self.backbone.channels, config.fpn_channels, config.levels, config.p6_from)
        self.head = FCOSHead(config)
        self.loss = FCOSLoss(config)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """float32 pixels of mean 0 and deviation 1; the padding is 0 too, whatever it was before."""
        height, width = images.shape[-2:]
        inside = ((torch.arange(height, device=images.device)[:, None] < image_sizes[:, 0, None, None])
                  & (torch.arange(width, device=images.device) < image_sizes[:, 1, None, None]))
        return torch.where(inside[:, None], (images.float() - self.pixel_mean) / self.pixel_std, 0.0)

    def forward(self, images: Tensor, image_sizes: Tensor, targets: dict | None = None):
        pyramid = self.fpn(self.backbone(self.normalize(images, image_sizes)))
        outputs = self.head(pyramid)
        sizes = tuple(tuple(feature.shape[-2:]) for feature in pyramid)
        locations, strides = pyramid_locations(sizes, self.config.strides, images.device)
        with torch.autocast(images.device.type, enabled=False):
            if targets is None:
                return detect(outputs, locations, strides, [h * w for h, w in sizes], image_sizes, self.config)
            matched_gt = assign(targets["boxes"], targets["labels"], targets["ignore"], sizes,
                                self.config.strides, self.config.ranges, self.config.center_sampling_radius)
            return self.loss(outputs, locations, strides, matched_gt, targets)
