"""From the outputs at all locations to a few boxes: scores, top-k a level, NMS (paper, section 3.1; the square root is the
official code's, and makes the score of a good box comparable to a plain class score)."""
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from model.locations import decode_ltrb


def quality(outputs: dict) -> Tensor:
    """[B, N, 1]"""
    return outputs["quality_logits"].float().sigmoid()[..., None]


def best_class_only(cls: Tensor) -> Tensor:
    best, index = cls.max(-1, keepdim=True)
    return torch.zeros_like(cls).scatter(-1, index, best)


SCORES = {"sqrt": lambda cls, outputs: (cls * quality(outputs)).sqrt(), "product": lambda cls, outputs: cls * quality(outputs),
          "cls": lambda cls, outputs: cls}
CANDIDATES = {"pairs": lambda cls: cls, "argmax": best_class_only}
SCOPES = {"level": lambda level_sizes: level_sizes, "picture": lambda level_sizes: [sum(level_sizes)]}


class FCOSDetection:
    """(outputs, locations, strides, level_sizes, image_sizes) -> [{"boxes" [K, 4] xyxy input pixels, "scores" [K], "labels" int64 [K],
    "class_scores" [K]}] per picture, best first; K may be 0. The arguments are those of `candidates`."""

    def __init__(self, config):
        self.num_classes, self.top_k = config.num_classes, config.pre_nms_top_k
        self.select, self.scope = CANDIDATES[config.candidates], SCOPES[config.top_k_scope]
        self.score = SCORES["cls" if config.quality == "none" else config.score_rule]
        self.score_threshold, self.threshold_on, self.rank_by = config.score_threshold, config.threshold_on, config.rank_by
        self.nms_iou_threshold, self.max_detections = config.nms_iou_threshold, config.max_detections

    def __call__(self, *arguments) -> list[dict]:
        results = []
        for rows in zip(*self.candidates(*arguments), strict=True):
            real = (rows[1] > 0).nonzero()[:, 0]
            boxes, scores, labels, class_scores = (row[real] for row in rows)
            # It moves the classes apart, so far that float32 would round the boxes of the last of 1,000 to whole eighths of a pixel.
            keep = batched_nms(boxes.double(), scores.double(), labels, self.nms_iou_threshold)[:self.max_detections]
            results.append({"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep], "class_scores": class_scores[keep]})
        return results

    def candidates(self, outputs: dict, locations: Tensor, strides: Tensor, level_sizes: list, image_sizes: Tensor) -> tuple:
        """What NMS chooses from: boxes [B, K, 4] xyxy input pixels, scores [B, K], labels int64 [B, K], class scores [B, K] before
        the quality comes in; score 0: there is none.

        outputs      as FCOSHead gives them;  locations [N, 2], strides [N], level_sizes: the number of locations of each level
        image_sizes  int64 [B, 2] (h, w) before padding: boxes are clipped to them, and none where no area is left

        A candidate is a pair (location, class) whose class score, or score, passes the threshold; the best of each level by the
        one or the other are kept. The score is made of class score and quality.
        """
        cls = self.select(outputs["cls_logits"].float().sigmoid())                            # [B, N, C]
        score = self.score(cls, outputs)
        choice = {"cls": cls, "score": score}
        rank = torch.where(choice[self.threshold_on] > self.score_threshold, choice[self.rank_by], 0.0)
        boxes = decode_ltrb(locations, outputs["ltrb"].float() * strides[:, None])

        kept_rank, kept_index = [], []
        start = 0
        for level_rank in rank.split(self.scope(level_sizes), dim=1):
            flat = level_rank.flatten(1)
            top, index = flat.topk(torch.sym_min(self.top_k, flat.shape[1]), dim=1)           # min() would bind an export to one size
            kept_rank.append(top)
            kept_index.append(index + start * self.num_classes)
            start += level_rank.shape[1]
        index = torch.cat(kept_index, 1)                                                      # [B, K]
        boxes = boxes.gather(1, (index // self.num_classes)[..., None].expand(-1, -1, 4))
        boxes = torch.minimum(boxes.clamp(min=0), image_sizes.flip(1).repeat(1, 2)[:, None])
        real = (torch.cat(kept_rank, 1) > 0) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
        scores = torch.where(real, score.flatten(1).gather(1, index), 0.0)
        return boxes, scores, index % self.num_classes, cls.flatten(1).gather(1, index)
