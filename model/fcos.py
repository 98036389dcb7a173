"""FCOS: Fully Convolutional One-Stage Object Detection (Tian et al., 1904.01355), told once from top to bottom."""
from functools import partial

import torch
from torch import Tensor, nn

from model.atss import assign_atss, claims_atss
from model.backbone import Normalize, build_backbone
from model.config import FCOSConfig
from model.fpn import FPN
from model.head import FCOSHead
from model.locations import SPACINGS, pyramid_locations
from model.loss import FCOSLoss
from model.postprocess import FCOSDetection
from model.targets import RANGE_ENDS, assign, claims, silenced

ASSIGNMENTS = {"atss": lambda config: (assign_atss, claims_atss, {}),
               "ranges": lambda config: (assign, claims, {"ranges": RANGE_ENDS[config.range_ends](config.ranges),
                                                          "radius": config.center_sampling_radius})}


class FCOS(nn.Module):
    """What you bring decides what you get.

    model(images, image_sizes, targets) -> {"cls", "reg", "quality"}: each [1, 2] float32, (sum, count); a loss is sum / count.
                                           No "quality" where config.quality is "none"
    model(images, image_sizes)          -> [{"boxes" [K, 4], "scores" [K], "labels" [K], "class_scores" [K]}] per picture, input pixels, best first

    images       uint8 [B, 3, H, W] RGB; H and W multiples of 32, padded right and bottom
    image_sizes  int64 [B, 2] (h, w) before padding
    targets      boxes float32 [B, M, 4] xyxy input pixels, labels int64 [B, M] (-1: padding row),
                 weights float32 [B, M], ignore bool [B, M] (True: a region to leave out); M >= 1; and, if there are any,
                 zone_ignore bool [B, M] (True: no object, but its class is left open at the locations that its box would claim)
    """

    needs_masks = False         # of the objects, to learn from

    def __init__(self, config: FCOSConfig):
        super().__init__()
        self.config = config
        self.normalize = Normalize(config)
        self.backbone = build_backbone(config.backbone, config.backbone_freeze, config.stride_in_1x1, config.norm_eps, config.backbone_norm)
        self.fpn = FPN(self.backbone.channels[1:], config.fpn_channels, config.levels, config.p6_from)
        self.head = FCOSHead(config)
        self.loss, self.detection = FCOSLoss(config), FCOSDetection(config)
        self.spacings = SPACINGS[config.strides_from_grid]
        self.locate = partial(pyramid_locations, strides=config.strides, offset=config.location_offset)
        *assignment, rule = ASSIGNMENTS[config.assignment](config)
        self.assign, self.claims = (partial(each, strides=config.strides, offset=config.location_offset, **rule) for each in assignment)

    def look(self, images: Tensor, image_sizes: Tensor) -> tuple:
        """The head's outputs; size (h, w) of each level's grid; (y, x) from cell to cell, or None; locations [N, 2]; strides [N]."""
        pyramid = self.fpn(self.backbone(self.normalize(images, image_sizes)))
        sizes = tuple(tuple(feature.shape[-2:]) for feature in pyramid)
        spacings = self.spacings(images.shape[-2:], sizes)
        return self.head(pyramid), sizes, spacings, *self.locate(sizes, spacings=spacings, device=images.device)

    def forward(self, images: Tensor, image_sizes: Tensor, targets: dict | None = None):
        outputs, sizes, spacings, locations, strides = self.look(images, image_sizes)
        with torch.autocast(images.device.type, enabled=False):
            if targets is None:
                return self.detection(outputs, locations, strides, [h * w for h, w in sizes], image_sizes)
            matched_gt, silent = self.match(targets, sizes, spacings)
            return self.loss(outputs, locations, strides, matched_gt, targets, silent)

    def match(self, targets: dict, sizes: tuple, spacings: tuple | None) -> tuple[Tensor, Tensor | None]:
        """The gt row of each location [B, N], and the logits that are left out besides, bool [B, N, C]; None without ignore zones."""
        boxes, labels, zones = targets["boxes"], targets["labels"], targets.get("zone_ignore")
        if zones is None or zones.device.type == "cpu" and not zones.any():        # to ask a GPU would be to wait for it
            return self.assign(boxes, labels, targets["ignore"], sizes, spacings=spacings), None
        location, claimed, *_ = self.claims(boxes, sizes, spacings=spacings)
        silent = silenced(location, claimed & (zones & (labels >= 0))[..., None], labels, sum(h * w for h, w in sizes), self.config.num_classes)
        return self.assign(boxes, torch.where(zones, -1, labels), targets["ignore"], sizes, spacings=spacings), silent

    @torch.no_grad()
    def assigned(self, images: Tensor, image_sizes: Tensor, targets: dict) -> list[dict]:
        """What each level is trained on, to look at: [{"name": "P3", "boxes": [B, N, 4] input pixels, "matched_gt": int64 [B, N]}].

        A location is shown as the square of one stride around it; matched_gt is a row of the targets, -1 background, -2 ignored.
        """
        _, sizes, spacings, locations, strides = self.look(images, image_sizes)
        matched_gt, _ = self.match(targets, sizes, spacings)
        boxes = torch.cat([locations - strides[:, None] / 2, locations + strides[:, None] / 2], dim=1).expand(len(images), -1, -1)
        counts = [h * w for h, w in sizes]
        return [{"name": f"P{level}", "boxes": of_level, "matched_gt": matched}
                for level, (of_level, matched) in enumerate(zip(boxes.split(counts, 1), matched_gt.split(counts, 1), strict=True), start=3)]
