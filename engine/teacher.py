"""Learning from incomplete labels while training: a teacher fills the holes of each batch's labels. It is the averaged network, or
another one first: who begins as a beginner takes his first errors for true, and keeps them.

The teacher sees each picture as the loader gives it. Its detections that no kept label explains become, by how likely they
are real, positives with a weight, class-wise ignore zones, or nothing. How likely is read off its agreement with the kept
labels, without any others: where a share c of the objects kept its label whatever they look like, then of the real ones
among the detections a share c lies on kept boxes, so that to `hits` of these there belong hits * (1 - c) / c that lie on none
(Elkan & Noto, 2008). Their share among all detections without a kept box, near a score, is how likely one is real.
What is labelled and in view not by chance explains a detection, but is not counted: a difficult object, which is labelled whatever
else is missing, and one that a window was laid around, which is in view because it is labelled. A network scores what it was
taught higher than what it was taught to be background, most of all the few labels of a hard class, which it knows by heart:
so a class is never believed more than all classes together are at that score.
"""
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from util.boxes import box_area, box_intersection, box_iou

SAME_CLASS_IOU, ANY_CLASS_IOU, CONTAINED = 0.5, 0.75, 0.9   # above which a kept box explains a detection; the first two: or a surer one does
POSITIVE, MIDDLING = 0.6, 0.25  # how likely real: from the one up a positive, from the other up an ignore zone
BINS = 100                      # of the score
NEAR = 0.2                      # log odds: the standard deviation of what counts as near a score
DOUBT = 5.0                     # detections by which a class begins with what all classes say
MEMORY = 0.99                   # of what was counted, each step keeps this share
TAKEOVER = 0.6                  # of the run, from which on the averaged network teaches, whoever began
RAMP = 0.1                      # of the run, in which the weight of positives grows to its full value
CHECKED_STEPS = 50              # after the burn-in: over so many steps each it is looked whether a warning is due
TOO_MANY = 3                    # times as many pseudo boxes as there can be objects


class Teacher:
    """(detections, targets, progress) -> (targets, numbers): the labels of a batch with the rows that the teacher adds.

    detections  [{"boxes" [K, 4], "scores" [K], "labels" [K]}] per picture, in the pixels of the targets
    targets     {"boxes" [B, M, 4], "labels" [B, M], "weights", "ignore", "zone_ignore", "uncounted" [B, M], ...}; what else there is gets zeros
    progress    0..1 of the run
    numbers     {"pseudo", "zones"}: boxes a picture that were added as positives, and as ignore zones

    burn_in        share of the run before the first positive; in its second half what could be one, or is middling, is already
                   ignored, so that confidence is not punished; `active` says from where on detections are wanted
    keep_rate      share of the objects that have kept their label; None: estimated, as the share of the surest detections that
                   lie on kept boxes. It comes out too high where these are scored higher: fewer boxes are added, not more
    pseudo_weight  of a positive, times how likely it is real
    say            takes a sentence that a person must see: after each CHECKED_STEPS a warning, where one is due; the same one again two
                   checks later, then four, eight and so on
    first          network that teaches until TAKEOVER, on the device of the run, in evaluation mode; None: the averaged one teaches from the first
    state          tensors and numbers that an exact resume needs; may be set
    """

    def __init__(self, num_classes: int, burn_in: float, keep_rate: float | None, pseudo_weight: float, say, first=None):
        self.first, self.burn_in, self.keep_rate, self.pseudo_weight, self.say = first, burn_in, keep_rate, pseudo_weight, say
        self.state = {"counts": torch.zeros(num_classes, 2 * BINS + 1), "pictures": 0, "kept": 0.0, "pseudo": 0.0, "steps": 0,
                      "checks": 0, "again": {"none": (1, 1), "many": (1, 1)}, "averaged": first is None}

    def active(self, progress: float) -> bool:
        return progress >= self.burn_in / 2

    def network(self, averaged, progress: float):
        """Whose detections are wanted. Those of one network say nothing about those of another, so that counting begins anew."""
        if self.first is not None and progress < TAKEOVER:
            return self.first
        if not self.state["averaged"]:
            self.state.update(counts=torch.zeros_like(self.state["counts"]), averaged=True)
        return averaged.eval()

    def __call__(self, detections: list, targets: dict, progress: float) -> tuple[dict, dict]:
        boxes, scores = (pad_sequence([found[name] for found in detections], batch_first=True) for name in ("boxes", "scores"))
        labels = pad_sequence([found["labels"] for found in detections], batch_first=True, padding_value=-1)
        hit, free = (which & ~repeats(boxes, scores, labels, which) for which in explain(boxes, labels, targets))
        kept = (targets["labels"] >= 0) & ~targets["ignore"] & ~targets["zone_ignore"] & ~targets["uncounted"]
        bins = (scores * BINS).long().clamp(0, BINS - 1)
        likely = self.likely(hit, free, labels.clamp(min=0), bins, targets["labels"].clamp(min=0), kept)
        likely = torch.where(free, likely[labels.clamp(min=0), bins], 0.0)

        ramp = min(max(0.0, (progress - self.burn_in) / RAMP), 1.0)
        positive = (likely >= POSITIVE) & (ramp > 0)
        zone = (likely >= MIDDLING) & ~positive
        chosen = positive | zone
        pseudo, zones, kept, most = torch.stack([positive.sum(), zone.sum(), kept.sum(), chosen.sum(1).max()]).tolist()
        self.watch(len(boxes), kept, pseudo, ramp)
        rows = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :most]         # rows that hold nothing are not carried along
        positive, zone = positive.gather(1, rows), zone.gather(1, rows)
        added = {"boxes": boxes.gather(1, rows[..., None].expand(-1, -1, 4)), "labels": torch.where(positive | zone, labels.gather(1, rows), -1),
                 "weights": torch.where(positive, likely.gather(1, rows) * (self.pseudo_weight * ramp), 0.0), "zone_ignore": zone}
        return ({name: torch.cat([value, added.get(name, value.new_zeros(*rows.shape, *value.shape[2:]))], 1) for name, value in targets.items()},
                {"pseudo": pseudo / len(boxes), "zones": zones / len(boxes)})

    def likely(self, hit: Tensor, free: Tensor, labels: Tensor, bins: Tensor, kept_labels: Tensor, kept: Tensor) -> Tensor:
        """[C, BINS]: how likely a detection of a class, without a kept box and of this score, is real, by what was counted over the
        last steps and this one. It never falls with the score."""
        counts = torch.zeros_like(self.state["counts"], device=labels.device)
        width = counts.shape[1]
        for place, chosen in ((labels * width + bins, hit), (labels * width + BINS + bins, free), (kept_labels * width + 2 * BINS, kept)):
            counts.view(-1).scatter_add_(0, place.flatten(), chosen.flatten().float())
        if dist.is_initialized():
            dist.all_reduce(counts)
        self.state["counts"] = counts = self.state["counts"].to(labels.device) * MEMORY + counts
        score = torch.logit((torch.arange(BINS, device=labels.device) + 0.5) / BINS)
        near = (-((score[:, None] - score) / NEAR).square() / 2).exp()
        hits, others = (counts[:, :-1].unflatten(-1, (2, BINS)) @ near).unbind(-2)
        keep = self.rate()
        real = hits * (1 - keep) / keep
        together = real.sum(0) / (others.sum(0) + 1)
        alone = (real + DOUBT * together) / (others + DOUBT)
        return torch.minimum(alone, together).clamp(max=1).cummax(1).values

    def rate(self) -> Tensor:
        """The share of the objects that have kept their label: given, or of the surest detections, as many as half of the kept
        boxes seen, that of those which hit one."""
        counts = self.state["counts"].sum(0)
        if self.keep_rate:
            return torch.full_like(counts[0], self.keep_rate)
        hits, others = counts[:-1].view(2, BINS).flip(-1).cumsum(-1).flip(-1)       # of this score or more
        surest = ((hits + others >= counts[-1] / 2).sum() - 1).clamp(min=0)
        return ((hits[surest] + DOUBT) / ((hits + others)[surest] + DOUBT)).clamp(0.05, 1)        # unknown at first: 1, with which nothing is added

    def watch(self, pictures: int, kept: float, pseudo: float, ramp: float) -> None:
        """Says so, early, where pseudo boxes are none, or more than there can be objects."""
        if ramp == 0:
            return
        state = self.state
        for name, value in (("pictures", pictures), ("kept", kept), ("pseudo", pseudo), ("steps", 1)):
            state[name] += value
        if state["steps"] < CHECKED_STEPS:
            return
        state["checks"] += 1
        rate = float(self.rate())
        told = f"(kept boxes {state['kept'] / state['pictures']:.2f} a picture, keep rate {rate:.2f}{'' if self.keep_rate else ' as estimated'})"
        if not state["pseudo"]:
            self.warn("none", f"the teacher has not added one pseudo box in the last {state['steps']} steps {told}: the labels are complete, or the "
                      f"teacher is too weak yet ({'' if self.first else 'longer --burn-in, '}more epochs, lower --ema), or the keep rate is too high (--keep-rate)")
        elif state["pseudo"] > TOO_MANY * state["kept"] / rate:
            self.warn("many", f"the teacher adds {state['pseudo'] / state['pictures']:.2f} pseudo boxes a picture, over {TOO_MANY} times as many "
                      f"as there can be objects {told}: it confirms its own errors; {'' if self.first else 'longer --burn-in, '}higher --keep-rate, or lower --pseudo-weight")
        state.update(pictures=0, kept=0.0, pseudo=0.0, steps=0)

    def warn(self, what: str, sentence: str) -> None:
        """Says it, unless it is too early to repeat it: each pause is twice as many checks as the one before."""
        next_check, pause = self.state["again"][what]
        if self.state["checks"] >= next_check:
            self.say(f"WARNING: {sentence}")
            self.state["again"][what] = self.state["checks"] + 2 * pause, 2 * pause


def repeats(boxes: Tensor, scores: Tensor, labels: Tensor, among: Tensor) -> Tensor:
    """Which detections are another sight of what a surer one `among` them has found: bool [B, D]. boxes [B, D, 4], the others [B, D]."""
    same = labels[..., None] == labels[:, None]
    surer = among[:, None] & (scores[:, None] > scores[..., None])
    return (surer & (box_iou(boxes, boxes) > torch.where(same, SAME_CLASS_IOU, ANY_CLASS_IOU))).any(2)


def explain(boxes: Tensor, labels: Tensor, targets: dict) -> tuple[Tensor, Tensor]:
    """Which detections lie on a kept box of their class, and which are explained by nothing: bool [B, D] each; the others are
    another sight of what is labelled, or lie on an object that is not counted or in a region to ignore.

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
    hit = (reached & ~targets["uncounted"][:, None]).any(2)
    contained = common > CONTAINED * torch.minimum(area, box_area(targets["boxes"])[:, None])
    double = reached | (same & contained) | (kept & ~region & (iou > ANY_CLASS_IOU)) | (region & (common > area / 2))
    return hit, (labels >= 0) & ~hit & ~double.any(2)
