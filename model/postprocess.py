"""From the outputs at all locations to a few boxes: scores, top-k a level, NMS (paper, section 3.1; the square root is the
official code's, and makes the score of a good box comparable to a plain class score)."""
import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from model.locations import decode_ltrb


def detect(outputs: dict, locations: Tensor, strides: Tensor, level_sizes: list, image_sizes: Tensor, config) -> list[dict]:
    """[{"boxes" [K, 4] xyxy input pixels, "scores" [K], "labels" int64 [K]}] per picture, best first; K may be 0.

    outputs      as FCOSHead gives them;  locations [N, 2], strides [N], level_sizes: the number of locations of each level
    image_sizes  int64 [B, 2] (h, w) before padding: boxes are clipped to them, and dropped without area

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
        top, index = flat.topk(min(config.pre_nms_top_k, flat.shape[1]), dim=1)
        kept_scores.append(top)
        kept_index.append(index + start * config.num_classes)
        start += level_scores.shape[1]
    scores, index = torch.cat(kept_scores, 1), torch.cat(kept_index, 1)                   # [B, K]
    labels = index % config.num_classes
    boxes = boxes.gather(1, (index // config.num_classes)[..., None].expand(-1, -1, 4))

    results = []
    for image_boxes, image_scores, image_labels, (height, width) in zip(boxes, scores, labels, image_sizes.tolist(), strict=True):
        image_boxes = clip_boxes_to_image(image_boxes, (height, width))
        real = (image_scores > 0) & (image_boxes[:, 2:] > image_boxes[:, :2]).all(1)
        image_boxes, image_scores, image_labels = image_boxes[real], image_scores[real], image_labels[real]
        keep = batched_nms(image_boxes, image_scores, image_labels, config.nms_iou_threshold)[:config.max_detections]
        results.append({"boxes": image_boxes[keep], "scores": image_scores[keep], "labels": image_labels[keep]})
    return results
