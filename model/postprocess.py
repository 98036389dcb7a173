"""From the outputs at all locations to a few boxes: scores, top-k a level, NMS (paper, section 3.1; the square root is the
official code's, and makes the score of a good box comparable to a plain class score)."""
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from model.locations import decode_ltrb


def detect(outputs: dict, locations: Tensor, strides: Tensor, level_sizes: list, image_sizes: Tensor, config) -> list[dict]:
    """[{"boxes" [K, 4] xyxy input pixels, "scores" [K], "labels" int64 [K]}] per picture, best first; K may be 0.

    The arguments are those of `candidates`.
    """
    results = []
    for rows in zip(*candidates(outputs, locations, strides, level_sizes, image_sizes, config), strict=True):
        boxes, scores, labels = (row[rows[1] > 0] for row in rows)
        keep = batched_nms(boxes, scores, labels, config.nms_iou_threshold)[:config.max_detections]
        results.append({"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]})
    return results


def candidates(outputs: dict, locations: Tensor, strides: Tensor, level_sizes: list, image_sizes: Tensor, config) -> tuple:
    """What NMS chooses from: boxes [B, K, 4] xyxy input pixels, scores [B, K], labels int64 [B, K]; score 0: there is none.

    outputs      as FCOSHead gives them;  locations [N, 2], strides [N], level_sizes: the number of locations of each level
    image_sizes  int64 [B, 2] (h, w) before padding: boxes are clipped to them, and none where no area is left

    A candidate is a pair (location, class) whose class score passes config.score_threshold. Its score is
    sqrt(class score * quality).
    """
    cls = outputs["cls_logits"].float().sigmoid()                                         # [B, N, C]
    score = (cls * outputs["quality_logits"].float().sigmoid()[..., None]).sqrt()
    score = torch.where(cls > config.score_threshold, score, 0.0)
    boxes = decode_ltrb(locations, outputs["ltrb"].float() * strides[:, None])

    kept_scores, kept_index = [], []
    start = 0
    for level_scores in score.split(level_sizes, dim=1):
        flat = level_scores.flatten(1)
        top, index = flat.topk(torch.sym_min(config.pre_nms_top_k, flat.shape[1]), dim=1)   # min() would bind an export to one size
        kept_scores.append(top)
        kept_index.append(index + start * config.num_classes)
        start += level_scores.shape[1]
    scores, index = torch.cat(kept_scores, 1), torch.cat(kept_index, 1)                   # [B, K]
    labels = index % config.num_classes
    boxes = boxes.gather(1, (index // config.num_classes)[..., None].expand(-1, -1, 4))
    boxes = torch.minimum(boxes.clamp(min=0), image_sizes.flip(1).repeat(1, 2)[:, None])
    return boxes, torch.where((boxes[..., 2:] > boxes[..., :2]).all(-1), scores, 0.0), labels
