"""The first stage: is there an object at an anchor, and where are its edges (Faster R-CNN, 1506.01497, section 3.1)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from model.anchors import MIN_SIDE, clip_to_pictures, decode_deltas, encode_deltas, match, pyramid_anchors, sample
from model.locations import SPACINGS

BETA = 1 / 9                # of the smooth L1 loss of deltas, from where on it is linear


class RPN(nn.Module):
    """Region proposal network. `sample` is the function that chooses the anchors of the loss; a test puts another in its place.

    Each replica and rank draws its own samples, so the gradient of one device is theirs on average, and exactly where all are taken.
    """

    def __init__(self, config):
        super().__init__()
        channels, shapes = config.fpn_channels, len(config.anchor_ratios)
        self.config, self.sample = config, sample
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, shapes, 1)
        self.deltas = nn.Conv2d(channels, 4 * shapes, 1)
        for conv in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, pyramid: list[Tensor], padded: tuple) -> tuple[dict, Tensor, list]:
        """(objectness [B, N] logits and deltas [B, N, 4] float32, anchors [N, 4], the number of anchors of each level).

        padded  (h, w) of the pictures with their padding
        """
        objectness, deltas = [], []
        for feature in pyramid:
            x = self.conv(feature).relu()
            objectness.append(self.objectness(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        sizes = tuple(tuple(feature.shape[-2:]) for feature in pyramid)
        anchors = pyramid_anchors(sizes, SPACINGS[True](padded, sizes), self.config.strides, self.config.anchor_scale,
                                  tuple(self.config.anchor_ratios), pyramid[0].device)
        outputs = {"objectness": torch.cat(objectness, 1).float(), "deltas": torch.cat(deltas, 1).float()}
        return outputs, anchors, [level.shape[1] for level in objectness]

    @torch.no_grad()
    def propose(self, outputs: dict, anchors: Tensor, level_sizes: list, image_sizes: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Proposals: boxes [B, P, 4] xyxy inside their pictures, best first, and the levels [B, P] they come from; -1: there is none.

        The best `most` of each level, those without area removed, after NMS in each level; and of these the best `most`.
        """
        index, level = [], []
        for number, objectness in enumerate(outputs["objectness"].split(level_sizes, 1)):
            index.append(objectness.topk(min(most, level_sizes[number]), dim=1).indices + sum(level_sizes[:number]))
            level.append(torch.full_like(index[-1], number))
        index, level = torch.cat(index, 1), torch.cat(level, 1)                           # [B, K]
        boxes = decode_deltas(anchors[index], outputs["deltas"].gather(1, index[..., None].expand(-1, -1, 4)))
        boxes = clip_to_pictures(boxes, image_sizes[:, None])
        real = (boxes[..., 2:] - boxes[..., :2] >= MIN_SIDE).all(-1)
        picture = real.nonzero()[:, 0]
        boxes, level, objectness = boxes[real], level[real], outputs["objectness"].gather(1, index)[real]

        keep, rank = suppress(boxes, objectness, picture * len(level_sizes) + level, picture, self.config.rpn_nms_iou, most)
        batch, length = index.shape
        proposals = boxes.new_zeros(batch, min(most, length), 4)
        levels = level.new_full(proposals.shape[:2], -1)
        proposals[picture[keep], rank], levels[picture[keep], rank] = boxes[keep], level[keep]
        return proposals, levels

    def assign(self, anchors: Tensor, targets: dict) -> Tensor:
        """int64 [B, N], as anchors.match."""
        return match(anchors, targets, *self.config.rpn_iou, best_too=True)

    def loss(self, outputs: dict, anchors: Tensor, matched_gt: Tensor, targets: dict) -> dict:
        """{"objectness", "rpn_reg"}: each [1, 2] float32, (sum, count), of the sampled anchors; both counts are their weight.

        objectness  binary cross-entropy;  rpn_reg: smooth L1 of the deltas of the positive ones
        """
        index, real = self.sample(matched_gt, self.config.rpn_samples, self.config.rpn_positives)
        matched_gt, logits = matched_gt.gather(1, index), outputs["objectness"].gather(1, index)          # [B, S]
        deltas = outputs["deltas"].gather(1, index[..., None].expand(-1, -1, 4))
        positive, row = matched_gt >= 0, matched_gt.clamp(min=0)
        weight = torch.where(positive, targets["weights"].gather(1, row), 1.0) * real
        boxes = targets["boxes"].gather(1, row[..., None].expand(-1, -1, 4))
        entropy = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype), reduction="none")
        away = F.smooth_l1_loss(deltas, encode_deltas(anchors[index], boxes), reduction="none", beta=BETA).sum(-1)
        pairs = {"objectness": (entropy * weight).sum(), "rpn_reg": (away * weight * positive).sum()}
        return {name: torch.stack([total, weight.sum()])[None] for name, total in pairs.items()}


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, picture: Tensor, iou_threshold: float, most: int) -> tuple[Tensor, Tensor]:
    """(rows that NMS within each group leaves, at most the best `most` of a picture; the rank of each in its picture), by picture and rank.

    boxes [K, 4], scores [K], groups int64 [K] (of one picture each), picture int64 [K]
    """
    # Best first, all pictures together. It moves the groups apart, so far that float32 would be rounded by whole percents of small boxes.
    keep = batched_nms(boxes.double(), scores.double(), groups, iou_threshold)
    keep = keep[picture[keep].argsort(stable=True)]
    of = picture[keep]
    rank = torch.arange(len(keep), device=keep.device) - torch.searchsorted(of, of)       # searchsorted: where its picture begins
    return keep[rank < most], rank[rank < most]
