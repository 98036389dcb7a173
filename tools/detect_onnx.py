"""Finds objects in a picture with the file that export_onnx.py wrote; needs onnxruntime, numpy and Pillow, nothing else.

    python tools/detect_onnx.py detector.onnx photo.jpg [drawn.jpg]

For pictures of 8 bits without transparency: of 16 bits Pillow keeps too little, see _to_rgb in dataset/pictures.py.
"""
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps


def detect(session, picture):
    """[{"box": [x1, y1, x2, y2], "score": s, "label": name}] in the pixels of an RGB picture, best first."""
    about = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    scale = 1 if about["tile"] else min(about["min_size"] / min(picture.size), about["max_size"] / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    images = np.zeros((1, 3, height + -height % 32, width + -width % 32), np.uint8)
    images[0, :, :height, :width] = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    outputs = session.run(None, {"images": images, "image_sizes": np.array([[height, width]])})
    sure = (outputs[1][0] > 0) & (outputs[1][0] >= about["score_threshold"])
    boxes, scores, labels = (rows[0, sure] for rows in outputs)
    chosen = range(len(scores)) if about["nms"] else nms(boxes, scores, labels, about["nms_iou_threshold"])[:about["max_detections"]]
    boxes *= np.tile(picture.size, 2) / (width, height, width, height)
    return [{"box": [round(float(edge), 1) for edge in boxes[row]], "score": round(float(scores[row]), 4),
             "label": about["classes"][labels[row]]} for row in chosen]


def nms(boxes, scores, labels, iou_threshold):
    """The rows, best first, that no better row of their class overlaps by more than the threshold."""
    left, kept, area = np.argsort(-scores, kind="stable"), [], (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(left):
        best, left = left[0], left[1:]
        sides = np.minimum(boxes[left, 2:], boxes[best, 2:]) - np.maximum(boxes[left, :2], boxes[best, :2])
        overlap = sides.clip(0).prod(1)
        left = left[(overlap <= iou_threshold * (area[left] + area[best] - overlap)) | (labels[left] != labels[best])]
        kept.append(best)
    return kept


def main(model, path, drawn=None):
    try:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        session = onnxruntime.InferenceSession(model, providers=onnxruntime.get_available_providers())
    except Exception as error:  # of Pillow or ONNX Runtime: no such file, or another kind
        sys.exit(f"error: {error}")
    detections = detect(session, picture)
    print(json.dumps(detections))
    for found in reversed(detections) if drawn else ():
        ImageDraw.Draw(picture).rectangle(found["box"], outline="red", width=2)
        ImageDraw.Draw(picture).text(found["box"][:2], f"{found['label']} {found['score']:.2f}", fill="red")
    if drawn:
        picture.save(drawn)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) in (3, 4) else sys.exit(__doc__)
