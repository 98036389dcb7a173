"""What a network is: every number that shapes it, in one frozen record that travels inside the checkpoint."""
from dataclasses import asdict, dataclass, fields

INF = float("inf")
CHOICES = {"levels": (3, 4, 5), "head_norm": ("gn", "none"), "quality": ("centerness", "iou"), "box_loss": ("giou", "iou"),
           "backbone_freeze": ("none", "norm", "early")}


@dataclass(frozen=True)
class FCOSConfig:
    """The shape of an FCOS. `asdict()` of it is plain types only, `from_dict` takes it back.

    levels            the pyramid: 5 = P3..P7 (strides 8..128), 3 = P3..P5 (strides 8..32)
    regression_ranges the longest ltrb distance, input pixels, that each level answers for (both ends included)
    center_sampling_radius  in strides; inf = every location inside the box
    score_threshold   on the class score, before it is multiplied with the quality
    quality           what the third branch predicts: "centerness" (paper, section 3.2) or "iou" with the object
    """

    num_classes: int
    model: str = "fcos"
    backbone: str = "resnet18"
    backbone_freeze: str = "none"               # none | norm | early
    fpn_channels: int = 256
    levels: int = 5
    head_convs: int = 4
    head_norm: str = "gn"                       # gn | none
    quality: str = "centerness"
    center_sampling_radius: float = 1.5
    box_loss: str = "giou"                      # giou | iou
    regression_ranges: tuple = ()               # () = the paper's: 0-64-128-256-512-inf
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    pixel_mean: tuple = (123.675, 116.28, 103.53)
    pixel_std: tuple = (58.395, 57.12, 57.375)
    score_threshold: float = 0.05
    nms_iou_threshold: float = 0.6
    pre_nms_top_k: int = 1000                   # per level
    max_detections: int = 100

    def __post_init__(self):
        """Raises ValueError for a choice that does not exist."""
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"model config: {field} is {getattr(self, field)!r}, not one of {', '.join(map(str, choices))}")

    @property
    def strides(self) -> tuple:
        return tuple(8 * 2 ** level for level in range(self.levels))

    @property
    def ranges(self) -> tuple:
        """((low, high), ...) per level."""
        if self.regression_ranges:
            return tuple(tuple(r) for r in self.regression_ranges)
        edges = [0.0] + [8.0 * stride for stride in self.strides[:-1]] + [INF]
        return tuple(zip(edges[:-1], edges[1:], strict=True))

    def asdict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "FCOSConfig":
        """Raises ValueError for a field that this version does not know."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"model config: unknown field {unknown[0]!r}; this version of the code does not know it")
        return cls(**values)
