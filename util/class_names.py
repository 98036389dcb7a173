"""The class names of the public data sets, in the order in which published weights know them; and those that a person names."""
import os
from pathlib import Path

VOC_NAMES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
             "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")

COCO_NAMES = {                      # COCO's own category ids: 80 of 1..90
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat", 18: "dog",
    19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella",
    31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite",
    39: "baseball bat", 40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass",
    47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange",
    56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant",
    65: "bed", 67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone",
    78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors",
    88: "teddy bear", 89: "hair drier", 90: "toothbrush"}


def read_class_names(choice: str | None) -> list:
    """The names of a --classes: "A,B,C", or a file with one a line. [] for None. Raises ValueError for an empty name, one that is there twice, and a file that is not UTF-8."""
    if choice is None:
        return []
    try:
        names = Path(choice).read_text(encoding="utf-8-sig").split("\n") if os.path.isfile(choice) else choice.split(",")
    except UnicodeDecodeError:
        raise ValueError(f"--classes {choice}: is not UTF-8; save it so") from None
    names = [name.strip() for name in names]
    names = names[:-1] if names[-1] == "" else names
    wrong = [name for name in names if not name or names.count(name) > 1]
    if wrong or not names:
        raise ValueError(f"--classes {choice}: {repr(wrong[0]) + ' is no name, or is there twice' if wrong else 'holds no name'}")
    return names
