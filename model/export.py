"""A network as an ONNX file holds it: the detector up to NMS, or with it, with fixed ranks in place of lists of pictures."""
import logging
import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim


class Exported(nn.Module):
    """(images uint8 [B, 3, H, W], image_sizes int64 [B, 2]) -> boxes [B, K, 4], scores [B, K], labels int64 [B, K].

    nms=False  what `FCOSDetection.candidates` gives
    nms=True   its detections, best first; K is config.max_detections, or less for a tiny picture
    A score of 0 says that the row holds no box. Runs in torch only without NMS.
    """

    def __init__(self, network: nn.Module, nms: bool):
        super().__init__()
        self.network = network
        self.select = self.best if nms else lambda *found: found

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple:
        outputs, sizes, _, locations, strides = self.network.look(images, image_sizes)
        level_sizes = [h * w for h, w in sizes]
        return self.select(*self.network.detection.candidates(outputs, locations, strides, level_sizes, image_sizes)[:3])

    def best(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple:
        config = self.network.config
        scores = torch.ops.fcos.nms_scores(boxes, scores, labels, config.num_classes, config.nms_iou_threshold, config.max_detections)
        scores, rows = scores.topk(torch.sym_min(config.max_detections, scores.shape[1]), dim=1)
        return boxes.gather(1, rows[..., None].expand(-1, -1, 4)), scores, labels.gather(1, rows)


# scores, 0 where a better box of its class overlaps; at least the best `most` of each picture are right. For ONNX alone.
torch.library.define("fcos::nms_scores",
                     "(Tensor boxes, Tensor scores, Tensor labels, int num_classes, float iou_threshold, int most) -> Tensor")
torch.library.register_fake("fcos::nms_scores", lambda boxes, scores, *rest: torch.empty_like(scores))


def onnx_model(network: nn.Module, nms: bool, opset: int):
    """The onnx.ModelProto of `Exported`, for any B, H and W. Raises ValueError for an opset that torch cannot write, and for a model
    of two stages."""
    if network.config.model != "fcos":
        raise ValueError(f"the model is a {network.config.model}; only fcos can be exported")
    from onnxscript import opset18 as op

    def nms_scores(boxes, scores, labels, num_classes: int, iou_threshold: float, most: int):
        classes = op.Constant(value_ints=list(range(num_classes)))
        of_class = op.Equal(op.Unsqueeze(labels, [1]), op.Unsqueeze(classes, [0, 2]))                  # [B, C, K]
        none = op.Sub(scores, scores)
        per_class = op.Where(of_class, op.Unsqueeze(scores, [1]), op.Unsqueeze(none, [1]))
        chosen = op.Gather(op.NonMaxSuppression(boxes, per_class, most, iou_threshold, 0.0), [0, 2], axis=1)    # (picture, row)
        return op.ScatterND(none, chosen, op.GatherND(scores, chosen))

    images = torch.zeros(2, 3, 512, 768, dtype=torch.uint8)     # nowhere a side of 1, which an export takes for a constant
    image_sizes = torch.tensor([[512, 768], [500, 700]])
    shapes = {0: Dim("batch"), 2: 32 * Dim("h"), 3: 32 * Dim("w")}, {0: Dim("batch")}
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Exported(network, nms).eval(), (images, image_sizes), dynamo=True, dynamic_shapes=shapes, opset_version=opset,
            input_names=["images", "image_sizes"], output_names=["boxes", "scores", "labels"], external_data=False,
            verbose=False, custom_translation_table={torch.ops.fcos.nms_scores.default: nms_scores})
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if not entry.domain)
    if written != opset:
        raise ValueError(f"opset is {opset}, but the exporter of torch {torch.__version__} writes {written} in its place")
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = "detections" if nms else "candidates"
    for part in (*model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]                          # where each line of source lies on this machine
    return model
