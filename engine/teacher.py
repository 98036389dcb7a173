"""Learning from incomplete labels while training: the averaged network, the teacher, fills the holes of each batch's labels.

The teacher sees each picture as the loader gives it. Its detections that no kept label explains become, by how likely they
are real, positives with a weight, class-wise ignore zones, or nothing. How likely is read off its agreement with the kept
labels, without any others: where a share c of the objects kept its label whatever they look like, then of the real ones
among the detections a share c lies on kept boxes, so that to `hits` of these there belong hits * (1 - c) / c that lie on none
(Elkan & Noto, 2008). Their share among all detections without a kept box, of a class and from a score up, is the precision.
An object that a window was laid around is in view because it is labelled, so it is not counted. And a network scores what it was
taught higher than what it was taught to be background, by a number of log odds that shows where it is surest: nearly all that it
finds there is real, so where there is less without a kept box than those that hit one let expect, the kept are scored higher.
"""
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from util.boxes import box_area, box_intersection, box_iou

SAME_CLASS_IOU, ANY_CLASS_IOU, CONTAINED = 0.5, 0.75, 0.9   # above which a kept box explains a detection; the first two: or a surer one does
POSITIVE, MIDDLING = 0.9, 0.5   # precisions: from the one up a positive, from the other up an ignore zone
BINS = 100                      # of the score
MEMORY = 0.99                   # of what was counted, each step keeps this share
ENOUGH = 50                     # kept boxes of a class, fewer: all classes are judged together
RAMP = 0.1                      # of the run, in which the weight of positives grows to its full value
FIRST_CHECK = 50                # steps after the burn-in, then after twice as many, and so on
TOO_MANY = 3                    # times as many pseudo boxes as there can be objects
# [shifts, BINS]: the bin of the score that is by 0, 0.1, ... 1 log odds higher than that from which a bin begins
HIGHER = (torch.logit(torch.arange(BINS) / BINS) + torch.arange(0, 1.05, 0.1)[:, None]).sigmoid().mul(BINS).sub(1e-3).ceil().long()


class Teacher:
    """(detections, targets, progress) -> (targets, numbers): the labels of a batch with the rows that the teacher adds.

    detections  [{"boxes" [K, 4], "scores" [K], "labels" [K]}] per picture, in the pixels of the targets
    targets     {"boxes" [B, M, 4], "labels" [B, M], "weights", "ignore", "zone_ignore", "sought" [B, M], ...}; what else there is gets zeros
    progress    0..1 of the run
    numbers     {"pseudo", "zones"}: boxes a picture that were added as positives, and as ignore zones

    burn_in        share of the run before the first positive; in its second half what could be one, or is middling, is already
                   ignored, so that confidence is not punished; `active` says from where on detections are wanted
    keep_rate      share of the objects that have kept their label; None: estimated, as the share of the surest detections that
                   lie on kept boxes. It comes out too high by what these are scored higher: fewer boxes are added, not more
    pseudo_weight  of a positive, times its precision
    say            takes a sentence that a person must see
    state          tensors and numbers that an exact resume needs; may be set
    """

    def __init__(self, num_classes: int, burn_in: float, keep_rate: float | None, pseudo_weight: float, say):
        self.burn_in, self.keep_rate, self.pseudo_weight, self.say = burn_in, keep_rate, pseudo_weight, say
        self.state = {"counts": torch.zeros(num_classes, 2 * BINS + 1), "pictures": 0, "kept": 0.0, "pseudo": 0.0, "steps": 0,
                      "next_check": FIRST_CHECK}

    def active(self, progress: float) -> bool:
        return progress >= self.burn_in / 2

    def __call__(self, detections: list, targets: dict, progress: float) -> tuple[dict, dict]:
        boxes, scores = (pad_sequence([found[name] for found in detections], batch_first=True) for name in ("boxes", "scores"))
        labels = pad_sequence([found["labels"] for found in detections], batch_first=True, padding_value=-1)
        hit, free = (which & ~repeats(boxes, scores, labels, which) for which in explain(boxes, labels, targets))
        kept = (targets["labels"] >= 0) & ~targets["ignore"] & ~targets["zone_ignore"] & ~targets["sought"]
        bins = (scores * BINS).long().clamp(0, BINS - 1)
        precision = self.precision(hit, free, labels.clamp(min=0), bins, targets["labels"].clamp(min=0), kept)
        precision = torch.where(free, precision[labels.clamp(min=0), bins], 0.0)

        ramp = min(max(0.0, (progress - self.burn_in) / RAMP), 1.0)
        positive = (precision >= POSITIVE) & (ramp > 0)
        zone = (precision >= MIDDLING) & ~positive
        chosen = positive | zone
        pseudo, zones, kept, most = torch.stack([positive.sum(), zone.sum(), kept.sum(), chosen.sum(1).max()]).tolist()
        self.watch(len(boxes), kept, pseudo, ramp)
        first = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :most]         # rows that hold nothing are not carried along
        positive, zone = positive.gather(1, first), zone.gather(1, first)
        added = {"boxes": boxes.gather(1, first[..., None].expand(-1, -1, 4)), "labels": torch.where(positive | zone, labels.gather(1, first), -1),
                 "weights": torch.where(positive, precision.gather(1, first) * (self.pseudo_weight * ramp), 0.0), "zone_ignore": zone}
        return ({name: torch.cat([value, added.get(name, value.new_zeros(*first.shape, *value.shape[2:]))], 1) for name, value in targets.items()},
                {"pseudo": pseudo / len(boxes), "zones": zones / len(boxes)})

    def precision(self, hit: Tensor, free: Tensor, labels: Tensor, bins: Tensor, kept_labels: Tensor, kept: Tensor) -> Tensor:
        """[C, BINS]: of the detections of a class, without a kept box and of at least this score, the share that is real,
        counted over the last steps and this one. It never falls with the score."""
        counts = torch.zeros_like(self.state["counts"], device=labels.device)
        width = counts.shape[1]
        for place, chosen in ((labels * width + bins, hit), (labels * width + BINS + bins, free), (kept_labels * width + 2 * BINS, kept)):
            counts.view(-1).scatter_add_(0, place.flatten(), chosen.flatten().float())
        if dist.is_initialized():
            dist.all_reduce(counts)
        self.state["counts"] = counts = self.state["counts"].to(labels.device) * MEMORY + counts
        counts = torch.where(counts[:, -1:] >= ENOUGH, counts, counts.sum(0))
        hits, others = hits_and_others(counts)
        keep, higher = self.rate()
        real = pad(hits, (0, 1))[:, higher] * (1 - keep) / keep
        return (real / others.clamp(min=1e-6)).clamp(max=1).cummax(1).values

    def rate(self) -> tuple[Tensor, Tensor]:
        """The share of the objects that have kept their label: given, or of the surest detections, as many as half of the kept
        boxes seen, that of those which hit one. And a row of HIGHER: the largest shift with which the surest without a kept
        box can all be real."""
        counts = self.state["counts"].sum(0)
        hits, others = hits_and_others(counts)
        surest = ((hits + others >= counts[-1] / 2).sum() - 1).clamp(min=0)
        table = HIGHER.to(counts.device)
        if not self.keep_rate:
            return (hits[surest] / (hits + others)[surest].clamp(min=1e-6)).clamp(0.05, 1), table[0]
        keep = torch.full_like(counts[0], self.keep_rate)
        enough = pad(hits, (0, 1))[table[:, surest]] * (1 - keep) / keep >= others[surest]
        return keep, table[(enough.sum() - 1).clamp(min=0)]

    def watch(self, pictures: int, kept: float, pseudo: float, ramp: float) -> None:
        """Says so, early, where pseudo boxes are none, or more than there can be objects."""
        if ramp == 0:
            return
        state = self.state
        for name, value in (("pictures", pictures), ("kept", kept), ("pseudo", pseudo), ("steps", 1)):
            state[name] += value
        if state["steps"] < state["next_check"]:
            return
        rate = float(self.rate()[0])
        told = f"(kept boxes {state['kept'] / state['pictures']:.2f} a picture, keep rate {rate:.2f}{'' if self.keep_rate else ' as estimated'})"
        if not state["pseudo"]:
            self.say(f"WARNING: the teacher has not added one pseudo box in {state['steps']} steps {told}: the labels are complete, or the "
                     "teacher is too weak yet (longer --burn-in, more epochs, lower --ema), or the keep rate is too high (--keep-rate)")
        elif state["pseudo"] > TOO_MANY * state["kept"] / rate:
            self.say(f"WARNING: the teacher adds {state['pseudo'] / state['pictures']:.2f} pseudo boxes a picture, over {TOO_MANY} times as many "
                     f"as there can be objects {told}: it confirms its own errors; longer --burn-in, higher --keep-rate, or lower --pseudo-weight")
        state.update(pictures=0, kept=0.0, pseudo=0.0, steps=0, next_check=2 * state["next_check"])


def hits_and_others(counts: Tensor) -> tuple[Tensor, Tensor]:
    """From [..., 2 * BINS + 1]: the detections on kept boxes and those on none, [..., BINS] each, of this score or more."""
    return counts[..., :-1].unflatten(-1, (2, BINS)).flip(-1).cumsum(-1).flip(-1).unbind(-2)


def repeats(boxes: Tensor, scores: Tensor, labels: Tensor, among: Tensor) -> Tensor:
    """Which detections are another sight of what a surer one `among` them has found: bool [B, D]. boxes [B, D, 4], the others [B, D]."""
    same = labels[..., None] == labels[:, None]
    surer = among[:, None] & (scores[:, None] > scores[..., None])
    return (surer & (box_iou(boxes, boxes) > torch.where(same, SAME_CLASS_IOU, ANY_CLASS_IOU))).any(2)


def explain(boxes: Tensor, labels: Tensor, targets: dict) -> tuple[Tensor, Tensor]:
    """Which detections lie on a kept box of their class, and which are explained by nothing: bool [B, D] each; the others are
    another sight of what is labelled, or of what was sought, or lie in a region to ignore.

    boxes [B, D, 4], labels [B, D] of the detections, -1 in padding rows. A kept box explains a detection of its class with
    an IoU over SAME_CLASS_IOU or where one holds CONTAINED of the other (a part, or a group), and one of any class with
    an IoU over ANY_CLASS_IOU. An object inside one of another class is an object.
    """
    kept = ((targets["labels"] >= 0) & ~targets["zone_ignore"])[:, None]
    region = kept & targets["ignore"][:, None]
    same = kept & ~region & (labels[..., None] == targets["labels"][:, None])                   # [B, D, M]
    iou, common = box_iou(boxes, targets["boxes"]), box_intersection(boxes, targets["boxes"])
    area = box_area(boxes)[..., None]
    reached = same & (iou > SAME_CLASS_IOU)
    hit = (reached & ~targets["sought"][:, None]).any(2)
    contained = common > CONTAINED * torch.minimum(area, box_area(targets["boxes"])[:, None])
    double = reached | (same & contained) | (kept & ~region & (iou > ANY_CLASS_IOU)) | (region & (common > area / 2))
    return hit, (labels >= 0) & ~hit & ~double.any(2)
