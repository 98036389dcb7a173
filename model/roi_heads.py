"""The second stage: what is in a proposal, and where exactly (Fast R-CNN; the levels: 1612.03144, section 4.2; RoIAlign: 1703.06870)."""
import math
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from model.anchors import MIN_SIDE, ROI_WEIGHTS, clip_to_pictures, decode_deltas, encode_deltas, match, sample
from model.rpn import BETA, suppress
from model.targets import IGNORED

SIDE_OF_P0 = 224 / 2 ** 4                       # a box as large as an ImageNet picture is seen on P4
POINTS = 2                                      # RoIAlign looks at 2 x 2 points of each cell
START = {"cls_logits": 0.01, "deltas": 0.001}   # deviation of the first weights
MIN_DETECTION = 0.01                            # side in input pixels; what is smaller is none


class RoIPool:
    """Features of boxes from the level that fits.

    "size"  twice the side is a level up, P4 at 224 px; P6 is for anchors alone
    "own"   the level that a proposal comes from; for an object, which comes from none, the one whose anchors are most of its size
    """

    def __init__(self, config):
        self.strides, coarsest = config.strides, config.finest + config.levels - 1
        side, coarsest = {"size": (SIDE_OF_P0, min(coarsest, 5)), "own": (config.anchor_scale / math.sqrt(2), coarsest)}[config.roi_levels]
        self.by_size = by_size = partial(level_by_size, side=side, finest=config.finest, coarsest=coarsest)
        self.level = {"size": lambda boxes, own: by_size(boxes), "own": lambda boxes, own: own}[config.roi_levels]

    def __call__(self, pyramid: list[Tensor], boxes: Tensor, picture: Tensor, own: Tensor, size: int) -> Tensor:
        """[R, channels, size, size] float32 for boxes [R, 4] of pictures [R]; own [R]: place of their own level in the pyramid."""
        rois, level = torch.cat([picture[:, None].to(boxes.dtype), boxes], 1), self.level(boxes, own)
        features = boxes.new_zeros(len(boxes), pyramid[0].shape[1], size, size)
        for number, (feature, stride) in enumerate(zip(pyramid, self.strides, strict=True)):
            rows = (level == number).nonzero()[:, 0]
            features[rows] = roi_align(feature.float(), rois[rows], size, 1 / stride, POINTS)
        return features


def level_by_size(boxes: Tensor, side: float, finest: int, coarsest: int) -> Tensor:
    """int64 [...]: 0 for the level P`finest`, from the sides sqrt(area) of boxes [..., 4]; level k has those from side * 2 ** k px on."""
    sides = (boxes[..., 2:] - boxes[..., :2]).prod(-1).sqrt()
    level = torch.floor(torch.log2(sides / side) + 1e-6)
    return level.clamp(finest, coarsest).long() - finest


class BoxHead(nn.Module):
    """Classes of proposals, and for each class its deltas where config.box_refinement. `sample` chooses the proposals of the loss."""

    def __init__(self, config):
        super().__init__()
        self.config, self.sample, self.pool = config, sample, RoIPool(config)
        self.fc6 = nn.Linear(config.fpn_channels * config.roi_size ** 2, config.box_channels)
        self.fc7 = nn.Linear(config.box_channels, config.box_channels)
        self.shapes = {"cls_logits": (config.num_classes + 1,)}                           # the last one is background
        self.refined, self.refinement_loss = (lambda outputs, boxes, roi, label: boxes[roi]), {}
        if config.box_refinement:
            self.shapes["deltas"] = (config.num_classes, 4)
            self.refined, self.refinement_loss = refined, {"reg": refinement_loss}
        for name, shape in self.shapes.items():
            layer = nn.Linear(config.box_channels, math.prod(shape))
            nn.init.normal_(layer.weight, std=START[name])
            nn.init.zeros_(layer.bias)
            setattr(self, name, layer)

    def forward(self, pyramid: list[Tensor], boxes: Tensor, picture: Tensor, level: Tensor) -> dict:
        """cls_logits [R, C + 1] and deltas [R, C, 4], float32, of boxes [R, 4] of pictures [R], from levels [R] of the pyramid."""
        x = self.pool(pyramid, boxes, picture, level, self.config.roi_size).flatten(1)
        x = self.fc7(self.fc6(x).relu()).relu()
        return {name: getattr(self, name)(x).float().unflatten(1, shape) for name, shape in self.shapes.items()}

    def assign(self, proposals: tuple, targets: dict) -> Tensor:
        """int64 [B, P] of boxes [B, P, 4] and levels [B, P], as anchors.match; IGNORED where there is no proposal."""
        boxes, level = proposals
        return torch.where(level >= 0, match(boxes, targets, self.config.roi_iou, self.config.roi_iou), IGNORED)

    @torch.no_grad()
    def samples(self, proposals: tuple, targets: dict) -> SimpleNamespace:
        """The proposals that the losses look at, and among them the objects themselves: boxes [B, S, 4], level [B, S], matched_gt [B, S]."""
        objects = targets["boxes"].float()
        real = (targets["labels"] >= 0) & ~targets["ignore"] & (objects[..., 2:] - objects[..., :2] >= MIN_SIDE).all(-1)
        boxes = torch.cat([proposals[0], objects], 1)
        level = torch.cat([proposals[1], torch.where(real, self.pool.by_size(objects), -1)], 1)
        matched_gt = self.assign((boxes, level), targets)
        index, taken = self.sample(matched_gt, self.config.roi_samples, self.config.roi_positives)
        return SimpleNamespace(boxes=boxes.gather(1, index[..., None].expand(-1, -1, 4)), level=level.gather(1, index),
                               matched_gt=torch.where(taken, matched_gt.gather(1, index), IGNORED))

    def loss(self, pyramid: list[Tensor], samples: SimpleNamespace, targets: dict) -> dict:
        """{"cls", "reg"}: each [1, 2] float32, (sum, count); both counts are the weight of the samples. No "reg" without refinement.

        cls  cross-entropy over classes and background;  reg: smooth L1 of the deltas of the positives' own class
        """
        shape, classes = samples.matched_gt.shape, self.config.num_classes
        picture = torch.arange(shape[0], device=samples.boxes.device).repeat_interleave(shape[1])
        outputs = self(pyramid, samples.boxes.flatten(0, 1), picture, samples.level.flatten())
        positive, row = samples.matched_gt >= 0, samples.matched_gt.clamp(min=0)
        label = targets["labels"].gather(1, row)
        weight = torch.where(positive, targets["weights"].gather(1, row), (samples.matched_gt != IGNORED).float())
        entropy = F.cross_entropy(outputs["cls_logits"], torch.where(positive, label, classes).flatten(), reduction="none")
        pairs = {"cls": (entropy * weight.flatten()).sum()}
        for name, loss in self.refinement_loss.items():
            boxes = targets["boxes"].gather(1, row[..., None].expand(-1, -1, 4)).flatten(0, 1)
            away = loss(outputs, samples.boxes.flatten(0, 1), torch.where(positive, label, 0).flatten(), boxes)
            pairs[name] = (away * (weight * positive).flatten()).sum()
        return {name: torch.stack([total, weight.sum()])[None] for name, total in pairs.items()}

    def detect(self, pyramid: list[Tensor], proposals: tuple, image_sizes: Tensor) -> SimpleNamespace:
        """boxes [K, 4], scores [K], labels [K], picture [K], level [K]: all pictures' detections, by picture, best first."""
        boxes, level = proposals
        picture, slot = (level >= 0).nonzero(as_tuple=True)
        boxes, level = boxes[picture, slot], level[picture, slot]
        outputs = self(pyramid, boxes, picture, level)
        scores = outputs["cls_logits"].softmax(-1)[:, :-1]
        roi, label = (scores > self.config.score_threshold).nonzero(as_tuple=True)
        boxes = clip_to_pictures(self.refined(outputs, boxes, roi, label), image_sizes[picture[roi]])
        real = (boxes[:, 2:] - boxes[:, :2] >= MIN_DETECTION).all(-1)
        boxes, roi, label = boxes[real], roi[real], label[real]
        picture, level, scores = picture[roi], level[roi], scores[roi, label]
        groups = picture * self.config.num_classes + label
        keep, _ = suppress(boxes, scores, groups, picture, self.config.nms_iou_threshold, self.config.max_detections)
        return SimpleNamespace(boxes=boxes[keep], scores=scores[keep], labels=label[keep], picture=picture[keep], level=level[keep])


def refined(outputs: dict, boxes: Tensor, roi: Tensor, label: Tensor) -> Tensor:
    """[K, 4]: boxes[roi] moved by the deltas of the class `label`."""
    return decode_deltas(boxes[roi], outputs["deltas"][roi, label], ROI_WEIGHTS)


def refinement_loss(outputs: dict, boxes: Tensor, label: Tensor, gt_boxes: Tensor) -> Tensor:
    """[R]: how far the deltas of the class `label` are from those that make gt_boxes of boxes."""
    deltas = outputs["deltas"][torch.arange(len(label), device=label.device), label]
    return F.smooth_l1_loss(deltas, encode_deltas(boxes, gt_boxes, ROI_WEIGHTS), reduction="none", beta=BETA).sum(-1)
