"""Faster R-CNN (Ren et al., 1506.01497) and Mask R-CNN (He et al., 1703.06870) on a feature pyramid, from top to bottom."""
import torch
from torch import Tensor, nn

from model.backbone import Normalize, build_backbone
from model.config import MaskRCNNConfig, RCNNConfig
from model.fpn import FPN
from model.mask_head import MaskHead, NoMasks
from model.roi_heads import BoxHead
from model.rpn import RPN


class FasterRCNN(nn.Module):
    """What you bring decides what you get.

    model(images, image_sizes, targets) -> {"objectness", "rpn_reg", "cls", "reg", "mask"}: each [1, 2] float32, (sum, count); a loss
                                           is sum / count. No "reg" without box refinement, "mask" of a Mask R-CNN alone
    model(images, image_sizes)          -> [{"boxes" [K, 4], "scores" [K], "labels" [K]}] per picture, input pixels, best first; a
                                           Mask R-CNN's with "masks" float32 [K, 28, 28], probabilities inside the box

    images, image_sizes, targets: as FCOS takes them; targets of a Mask R-CNN with masks uint8 [B, M, H, W / 8] (util.masks.pack_bits), all-zero where a box has none
    """

    needs_masks = False         # of the objects, to learn from

    def __init__(self, config: RCNNConfig):
        super().__init__()
        self.config = config
        self.normalize = Normalize(config)
        self.backbone = build_backbone(config.backbone, config.backbone_freeze, config.stride_in_1x1, config.norm_eps, config.backbone_norm)
        self.fpn = FPN(self.backbone.channels[config.finest - 2:], config.fpn_channels, config.levels, "pool")
        self.rpn = RPN(config)
        self.box_head = BoxHead(config)
        self.mask_head = NoMasks()

    def look(self, images: Tensor, image_sizes: Tensor) -> tuple:
        """The pyramid, and what the RPN makes of it."""
        pyramid = self.fpn(self.backbone(self.normalize(images, image_sizes)))
        return pyramid, *self.rpn(pyramid, tuple(images.shape[-2:]))

    def forward(self, images: Tensor, image_sizes: Tensor, targets: dict | None = None):
        pyramid, outputs, anchors, level_sizes = self.look(images, image_sizes)
        if targets is None:
            proposals = self.rpn.propose(outputs, anchors, level_sizes, image_sizes, self.config.proposals)
            return self.detect(pyramid, proposals, image_sizes)
        targets = zones_as_regions(targets)
        proposals = self.rpn.propose(outputs, anchors, level_sizes, image_sizes, self.config.training_proposals)
        losses = self.rpn.loss(outputs, anchors, self.rpn.assign(anchors, targets), targets)
        samples = self.box_head.samples(proposals, targets)
        return losses | self.box_head.loss(pyramid, samples, targets) | self.mask_head.loss(pyramid, samples, targets)

    def detect(self, pyramid: list[Tensor], proposals: tuple, image_sizes: Tensor) -> list[dict]:
        found = self.box_head.detect(pyramid, proposals, image_sizes)
        results = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels} | self.mask_head.detect(pyramid, found)
        counts = found.picture.bincount(minlength=len(image_sizes)).tolist()
        return [dict(zip(results, rows, strict=True)) for rows in zip(*(values.split(counts) for values in results.values()), strict=True)]

    @torch.no_grad()
    def assigned(self, images: Tensor, image_sizes: Tensor, targets: dict) -> list[dict]:
        """[{"name": "RPN P3" ... and "proposals", "boxes" [B, N, 4] input pixels, "matched_gt" int64 [B, N]}]: which anchor and which
        proposal answers for which gt row; -1 background, -2 ignored."""
        targets = zones_as_regions(targets)
        _, outputs, anchors, level_sizes = self.look(images, image_sizes)
        proposals = self.rpn.propose(outputs, anchors, level_sizes, image_sizes, self.config.training_proposals)
        levels = zip(anchors.split(level_sizes), self.rpn.assign(anchors, targets).split(level_sizes, 1), strict=True)
        return [*({"name": f"RPN P{self.config.finest + number}", "boxes": boxes.expand(len(images), -1, -1), "matched_gt": matched_gt}
                  for number, (boxes, matched_gt) in enumerate(levels)),
                {"name": "proposals", "boxes": proposals[0], "matched_gt": self.box_head.assign(proposals, targets)}]


def zones_as_regions(targets: dict) -> dict:
    """An anchor and a sample have one answer, not one a class: what leaves a class open for FCOS (zone_ignore) leaves them out."""
    return targets | {"ignore": targets["ignore"] | targets["zone_ignore"]} if "zone_ignore" in targets else targets


class MaskRCNN(FasterRCNN):
    """A Faster R-CNN that finds outlines too."""

    needs_masks = True

    def __init__(self, config: MaskRCNNConfig):
        super().__init__(config)
        self.mask_head = MaskHead(config)
