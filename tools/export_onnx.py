"""Turns a checkpoint into one ONNX file for pictures and batches of any size, and checks it against torch before it is written.

    python tools/export_onnx.py checkpoint/voc-1/best.pth detector.onnx          NMS is left to the caller
    python tools/export_onnx.py checkpoint/voc-1/best.pth detector.onnx --nms    NMS inside
    python tools/export_onnx.py best.pth detector.onnx --pictures my_pictures    checked on pictures that show its objects
    python tools/detect_onnx.py detector.onnx photo.jpg drawn.jpg                uses it, without torch

    in    images       uint8 [B, 3, H, W]   RGB, padded right and bottom; H and W are multiples of 32
          image_sizes  int64 [B, 2]         (h, w) before padding
    out   boxes        float32 [B, K, 4]    x1, y1, x2, y2 in input pixels, inside the picture
          scores       float32 [B, K]       0: this row holds no box
          labels       int64 [B, K]         places in the list of classes

With --nms there are at most max_detections rows, the best first; without, all candidates for NMS, in no order.
In metadata_props, as JSON: classes, min_size, max_size, tile, score_threshold, nms_iou_threshold, max_detections, nms.
Needs onnx, onnxscript and onnxruntime. The file that is written is the one that was checked.
"""
import importlib.util
import json
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.command_line import Parser, from_here, number, one_sentence_errors  # noqa: E402

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TEST_IMAGES = Path(__file__).resolve().parent.parent / "test_images"
BOX_TOLERANCE, SCORE_TOLERANCE = 0.01, 1e-4         # input pixels, score
SHARES_AND_BATCHES = ((1, 1), (0.5, 3), (0.7, 2))   # of the checkpoint's input size; pictures at a time


def parse_flags(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="weights to export")
    add("output", metavar="OUT.onnx", type=Path, help="where to write")
    add("--nms", action="store_true", help="put NMS inside")
    add("--opset", type=number(int, 18), default=18, metavar="N", help="version of the ONNX operators")
    add("--pictures", nargs="+", metavar="PATH", default=[from_here(TEST_IMAGES)],
        help="pictures, folders or quoted globs to check it on")
    return parser.parse_args(argv)


def export_checkpoint(args):
    """Writes args.output. Raises ValueError for what a person can cause, and where the two networks differ."""
    for package in PACKAGES:
        if not importlib.util.find_spec(package):
            raise ValueError(f"the export needs {package}: pip install {' '.join(PACKAGES)}")
    if args.output.exists():
        raise ValueError(f"{args.output}: is there already; name another file")
    from dataset.pictures import Pictures
    from engine.checkpoint import load_checkpoint
    from model import load_model
    from model.export import onnx_model

    checkpoint = load_checkpoint(args.checkpoint)
    pictures = Pictures(args.pictures)
    network = load_model(checkpoint["config"], checkpoint["model"])
    model = onnx_model(network, args.nms, args.opset)
    for name, value in metadata(checkpoint, network.config, args.nms).items():
        model.metadata_props.add(key=name, value=json.dumps(value))
    contents = model.SerializeToString()
    try:
        told = check(contents, checkpoint, args.nms, batches(pictures, checkpoint["input"]))
    except ValueError as error:
        raise ValueError(f"{args.output}: not written, {error}") from None
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(contents)
    place = "inside" if args.nms else "left to the caller"
    print(f"{args.output}: {len(contents) / 1e6:.1f} MB, opset {args.opset}, NMS {place}; {told}")


def metadata(checkpoint, config, nms):
    return {"classes": checkpoint["classes"], **checkpoint["input"], "score_threshold": checkpoint["score_threshold"],
            "nms_iou_threshold": config.nms_iou_threshold, "max_detections": config.max_detections, "nms": nms}


def batches(pictures, sizes):
    """[{"images", "image_sizes"}]: two batches, as detect.py would make them, for each of SHARES_AND_BATCHES."""
    from dataset.loader import eval_loader

    found = []
    for share, batch_size in SHARES_AND_BATCHES:
        scaled = {name: size and max(1, round(share * size)) for name, size in sizes.items()}
        found += [batch for batch, _ in islice(eval_loader(pictures, **scaled, batch_size=batch_size), 2)]
    return found


def check(contents, checkpoint, nms, batches):
    """What was compared, in words. Raises ValueError where ONNX Runtime's boxes or scores are not torch's, or there are none.

    Order counts for nothing, since scores that are equal but for their last bits may change places: the scores must be
    torch's when both are sorted, and each box one that torch has at that score for that class.
    """
    import onnxruntime
    import torch

    from model import load_model
    from model.export import Exported

    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    network = load_model(checkpoint["config"], checkpoint["model"])
    unlimited = load_model(checkpoint["config"] | {"pre_nms_top_k": 2 ** 31}, checkpoint["model"])
    count, largest, shapes = 0, torch.zeros(2), set()
    for batch in batches:
        found = [torch.from_numpy(output) for output in session.run(None, {name: value.numpy() for name, value in batch.items()})]
        with torch.inference_mode():
            expected = [one["scores"] for one in network(**batch)] if nms else Exported(network, nms=False)(**batch)[1]
            possible = Exported(unlimited, nms=False)(**batch)
        for rows, scores, all_rows in zip(zip(*found, strict=True), expected, zip(*possible, strict=True), strict=True):
            largest = torch.maximum(largest, difference(rows, scores, all_rows))
            count += int((rows[1] > 0).sum())
        shapes.add(tuple(batch["images"].shape))
        if largest[0] > BOX_TOLERANCE or largest[1] > SCORE_TOLERANCE:
            raise ValueError(f"for input {list(batch['images'].shape)} its boxes differ from torch's by {largest[0]:.2g} px and "
                             f"its scores by {largest[1]:.2g}, more than {BOX_TOLERANCE} px or {SCORE_TOLERANCE}")
    if not count:
        raise ValueError("nothing is found in the pictures that it was to be checked on: name --pictures that show objects")
    return (f"{count} boxes for {len(shapes)} shapes of input differ from torch's by at most {largest[0]:.1g} px "
            f"and {largest[1]:.1g} in score")


def difference(rows, scores, all_rows):
    """[px, score] by which one picture's rows (boxes, scores, labels) differ from torch's; inf px: torch has no such box."""
    import torch

    sorted_scores = torch.nn.utils.rnn.pad_sequence([rows[1].sort(descending=True)[0], scores.sort(descending=True)[0]])
    pixels = [0.0]
    for box, score, label in zip(*rows, strict=True):
        if score > SCORE_TOLERANCE:
            same = (all_rows[2] == label) & ((all_rows[1] - score).abs() <= SCORE_TOLERANCE)
            pixels.append(min((all_rows[0][same] - box).abs().amax(1).tolist(), default=float("inf")))
    return torch.tensor([max(pixels), max([0.0, *(sorted_scores[:, 0] - sorted_scores[:, 1]).abs().tolist()])])


def main(argv=None):
    args = parse_flags(argv)
    with one_sentence_errors():
        export_checkpoint(args)


if __name__ == "__main__":
    main()
