"""What a network is: every number that shapes it, in one frozen record that travels inside the checkpoint. `MODELS` is the
one list of the models that there are."""
from dataclasses import asdict, dataclass, fields

INF = float("inf")
CHOICES = {
    "levels": (3, 4, 5), "backbone_norm": ("bn", "gn"), "backbone_freeze": ("none", "norm", "early", "all"), "stride_in_1x1": (False, True), "pixel_order": ("rgb", "bgr"),
    "p6_from": ("p5", "c5"), "head_norm": ("gn", "bn", "frozen_bn", "none"), "tower_bias": (False, True), "shared_tower": (False, True),
    "distance": ("exp", "relu"), "distance_unit": ("stride", "pixel"), "scale_distances": (True, False),
    "quality": ("centerness", "iou", "none"), "quality_tower": ("box", "cls"),
    "location_offset": (0.5, 0.0), "strides_from_grid": (False, True), "assignment": ("ranges", "atss"), "range_ends": ("closed", "open"),
    "box_loss": ("giou", "iou", "linear_iou", "diou"), "box_weighting": ("centerness", "none"),
    "threshold_on": ("cls", "score"), "rank_by": ("score", "cls"), "score_rule": ("sqrt", "product"),
    "candidates": ("pairs", "argmax"), "top_k_scope": ("level", "picture"),
    "pyramid": ("p2-p6", "p3-p5"), "roi_levels": ("size", "own"), "box_refinement": (True, False)}
LIMITS = {                  # lowest and highest of what a number of a two-stage model can be
    "anchor_scale": (0.5, 64), "anchor_ratios": (0.05, 20), "rpn_iou": (0, 1), "rpn_samples": (1, INF), "roi_samples": (1, INF),
    "rpn_positives": (0, 1), "roi_positives": (0, 1), "rpn_nms_iou": (0, 1), "roi_iou": (0, 1), "proposals": (1, INF),
    "training_proposals": (1, INF), "roi_size": (1, INF), "box_channels": (1, INF), "mask_size": (1, INF),
    "mask_convs": (0, INF), "mask_channels": (1, INF)}

# What the known detectors have in common with nobody else. Pixels, and how the ResNet was made, are a matter of the weights it starts from.
PRESETS = {
    "fcos": {               # the paper's, without its later improvements
        "backbone": "resnet50", "fpn_channels": 256, "tower_bias": True, "head_norm_groups": 32, "distance_unit": "pixel", "quality_tower": "cls",
        "center_sampling_radius": INF, "box_loss": "iou"},
    "fcos_improved": {},    # centre sampling, GIoU, distances in strides, centerness beside the box: the defaults
    "torchvision": {        # fcos_resnet50_fpn
        "backbone": "resnet50", "fpn_channels": 256, "tower_bias": True, "head_norm_groups": 32, "distance": "relu", "scale_distances": False,
        "location_offset": 0.0, "strides_from_grid": True, "range_ends": "open", "box_weighting": "none",
        "threshold_on": "score", "score_threshold": 0.2},
    "keras_fcos": {
        "backbone": "resnet50", "fpn_channels": 256, "p6_from": "c5", "head_norm": "none", "distance_unit": "pixel", "scale_distances": False,
        "quality_tower": "cls", "center_sampling_radius": INF, "box_loss": "iou", "nms_iou_threshold": 0.5, "max_detections": 300},
    "regnet_small": {"backbone": "regnet_x_400mf", "fpn_channels": 64, "levels": 3},
    "rcnn_small": {         # of two stages: a course's, with classes alone in the second stage, each proposal on the level that it comes from
        "backbone": "regnet_x_400mf", "fpn_channels": 64, "pyramid": "p3-p5", "box_channels": 256, "roi_levels": "own", "box_refinement": False},
}


@dataclass(frozen=True)
class NetworkConfig:
    """What all models have. `asdict()` is plain types only, `from_dict` takes it back. CHOICES lists what a word can be.

    backbone_norm     batch norms, or group norms (model.backbone.group_norm)
    backbone_freeze   what stays as it was loaded, see model.backbone
    stride_in_1x1     a ResNet's bottlenecks shrink the map in their first convolution (Caffe's), not in the 3x3 (torchvision's)
    norm_eps          of the backbone's batch norms; None = its own
    pixel_order       the colours as the backbone wants them; pixel_mean and pixel_std (0..255) are in this order too
    """

    num_classes: int
    model: str = ""
    backbone: str = "resnet18"
    backbone_norm: str = "bn"
    backbone_freeze: str = "none"
    stride_in_1x1: bool = False
    norm_eps: float | None = None
    pixel_order: str = "rgb"
    pixel_mean: tuple = (123.675, 116.28, 103.53)
    pixel_std: tuple = (58.395, 57.12, 57.375)
    fpn_channels: int = 256
    score_threshold: float = 0.05
    nms_iou_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self):
        """Raises ValueError for a choice that does not exist and a number outside its limits."""
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), LIMITS.get(field.name, (-INF, INF))
            if value not in CHOICES.get(field.name, (value,)):
                raise ValueError(f"model config: {field.name} is {value!r}, not one of {', '.join(map(str, CHOICES[field.name]))}")
            if field.name in LIMITS and not all(low <= number <= high for number in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"model config: {field.name} is {value}, must be {f'{low} or more' if high == INF else f'in {low}..{high}'}")
        if self.norm_eps is not None and self.norm_eps < 0:
            raise ValueError(f"model config: norm_eps is {self.norm_eps}, not None or 0 and more")

    @property
    def strides(self) -> tuple:
        return tuple(2 ** (self.finest + level) for level in range(self.levels))

    def asdict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "NetworkConfig":
        """Raises ValueError for a field that this version does not know, and for one that is missing."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"model config: unknown field {unknown[0]!r}; this version of the code does not know it")
        if "num_classes" not in values:
            raise ValueError("model config: has no num_classes")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


@dataclass(frozen=True)
class FCOSConfig(NetworkConfig):
    """The shape of an FCOS.

    levels            the pyramid: 5 = P3..P7 (strides 8..128), 3 = P3..P5 (strides 8..32)
    head_norm         "bn" is one batch norm for each level, "frozen_bn" the same with statistics that stay as they were loaded, in training
                      too (tools/freeze_head_norms.py measures them); head_norm_groups 0 = 32, or half of the channels where they are few
    tower_bias        convolutions before a norm have a bias, which the norm could do without
    distance          exp(x) or relu(x) of what a location predicts, in units of distance_unit, after a learned factor for each
                      level where scale_distances
    quality           what the third branch predicts: "centerness" (paper, section 3.2), "iou" with the object, or "none": the
                      score is the class score; quality_tower is the one that it grows from
    location_offset   of a location in its cell, in strides
    strides_from_grid locations are (padded size // grid size) apart, as torchvision's; everything else goes by the stride
    assignment        "ranges" of distances with centre sampling, or "atss" (model.atss), which needs none of the next three
    regression_ranges the longest ltrb distance, input pixels, that each level answers for; range_ends: are they included
    center_sampling_radius  in strides; inf = every location inside the box
    box_weighting     of a positive in the box loss: its "centerness", or "none"
    score_threshold   on the class score ("cls"), before it is multiplied with the quality, or on the "score" (threshold_on)
    rank_by           what the best pre_nms_top_k of a level, or of the picture (top_k_scope), are chosen by
    score_rule        sqrt(class score * quality) or their product
    candidates        pairs (location, class), or the best class of each location only ("argmax")
    """

    model: str = "fcos"
    levels: int = 5
    p6_from: str = "p5"
    head_convs: int = 4
    head_norm: str = "gn"
    head_norm_groups: int = 0
    tower_bias: bool = False
    shared_tower: bool = False
    distance: str = "exp"
    distance_unit: str = "stride"
    scale_distances: bool = True
    quality: str = "centerness"
    quality_tower: str = "box"
    location_offset: float = 0.5
    strides_from_grid: bool = False
    assignment: str = "ranges"
    regression_ranges: tuple = ()               # () = the paper's: 0-64-128-256-512-inf
    range_ends: str = "closed"
    center_sampling_radius: float = 1.5
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_loss: str = "giou"
    box_weighting: str = "centerness"
    threshold_on: str = "cls"
    score_rule: str = "sqrt"
    candidates: str = "pairs"
    pre_nms_top_k: int = 1000
    rank_by: str = "score"
    top_k_scope: str = "level"
    nms_iou_threshold: float = 0.6

    finest = 3                                  # of P3, the finest map, as of every FCOS; no field

    def __post_init__(self):
        """Raises ValueError for groups that do not divide the channels, and a gamma without a slope."""
        super().__post_init__()
        if self.head_norm_groups and self.fpn_channels % self.head_norm_groups:
            raise ValueError(f"model config: head_norm_groups is {self.head_norm_groups}, which does not divide fpn_channels {self.fpn_channels}")
        if 0 < self.focal_gamma < 1:            # (1 - p) ** gamma has no slope at p = 1
            raise ValueError(f"model config: focal_gamma is {self.focal_gamma}, must be 0, or 1 or more")

    @property
    def ranges(self) -> tuple:
        """((low, high), ...) per level."""
        if self.regression_ranges:
            return tuple(tuple(r) for r in self.regression_ranges)
        edges = [0.0] + [8.0 * stride for stride in self.strides[:-1]] + [INF]
        return tuple(zip(edges[:-1], edges[1:], strict=True))

    @staticmethod
    def network() -> type:
        from model.fcos import FCOS
        return FCOS


@dataclass(frozen=True)
class RCNNConfig(NetworkConfig):
    """The shape of a Faster R-CNN; the defaults are torchvision's.

    pyramid           "p2-p6" (strides 4..64, P6 is every second pixel of P5), or "p3-p5" (strides 8..32)
    anchor_scale      sqrt(area) of an anchor, in strides;  anchor_ratios: their heights / widths, an anchor of each at each location
    rpn_iou           of an anchor with its object: background below the first, positive from the second on
    rpn_samples       anchors a picture that the RPN's losses look at, rpn_positives of them positive at most
    rpn_nms_iou       above which the proposal of the lower objectness goes
    proposals         this many of each level before NMS, and of the picture after it; training_proposals: those in training
    roi_levels        a proposal's features come from the level that its "size" tells, or from its "own"
    roi_size          of these features
    roi_iou           of a proposal with its object, from which on it is positive
    roi_samples, roi_positives   as those of the RPN
    box_channels      of the two layers of the second stage
    box_refinement    the second stage moves the boxes too, for each class on its own; without it proposals are the detections
    """

    model: str = "faster_rcnn"
    pyramid: str = "p2-p6"
    anchor_scale: float = 8.0
    anchor_ratios: tuple = (0.5, 1.0, 2.0)
    rpn_iou: tuple = (0.3, 0.7)
    rpn_samples: int = 256
    rpn_positives: float = 0.5
    rpn_nms_iou: float = 0.7
    proposals: int = 1000
    training_proposals: int = 2000
    roi_levels: str = "size"
    roi_size: int = 7
    roi_iou: float = 0.5
    roi_samples: int = 512
    roi_positives: float = 0.25
    box_channels: int = 1024
    box_refinement: bool = True

    def __post_init__(self):
        super().__post_init__()
        if len(self.rpn_iou) != 2 or self.rpn_iou[0] > self.rpn_iou[1]:
            raise ValueError(f"model config: rpn_iou is {self.rpn_iou}, must be two numbers, the lower first")
        if not self.anchor_ratios:
            raise ValueError("model config: anchor_ratios is (), must be one or more")

    @property
    def finest(self) -> int:
        """2 of P2: the level of the finest map."""
        return int(self.pyramid[1])

    @property
    def levels(self) -> int:
        return int(self.pyramid[-1]) - self.finest + 1

    @staticmethod
    def network() -> type:
        from model.faster_rcnn import FasterRCNN
        return FasterRCNN


@dataclass(frozen=True)
class MaskRCNNConfig(RCNNConfig):
    """The shape of a Mask R-CNN: that of a Faster R-CNN, and of the mask head: its convolutions, their channels, and mask_size of its
    features, which is half of that of the masks."""

    model: str = "mask_rcnn"
    mask_size: int = 14
    mask_convs: int = 4
    mask_channels: int = 256

    @staticmethod
    def network() -> type:
        from model.faster_rcnn import MaskRCNN
        return MaskRCNN


MODELS = {"fcos": FCOSConfig, "faster_rcnn": RCNNConfig, "mask_rcnn": MaskRCNNConfig}
