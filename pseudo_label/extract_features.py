"""Runs one or several trained networks on labelled pictures: detections, and one feature for each detection and each label.

    python -m pseudo_label.extract_features partial.json --images pictures --checkpoint checkpoint/coco-1/last.pth --output found
    python -m pseudo_label.extract_features partial.json --images pictures --checkpoint teacher-0/last.pth teacher-1/last.pth \\
        --folds folds/folds.json --output found                             each picture by the teacher that did not train on it

found/detections.json   COCO results, and for each: cls (class score) and ctr (the quality that makes the score of it: the root of
                        their product, or their product, as the checkpoint's config says; 1 where the network has none), id (from 0),
                        teacher (the beginning of the checkpoint's SHA-256). From the score threshold of the checkpoint's config on
found/features.npz      detections [D, channels] float16 of length 1, in the order of detections.json, with detection_teachers [D];
                        kept [G, channels] of the labels, with kept_ids, kept_category_ids, kept_teachers [G]

A feature is the mean over a box of one level of the pyramid: the first on which the longer side is at most 16 cells, else the
last. Features of different teachers lie in different spaces. --no-features leaves features.npz out.
"""
import json
import os
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from pseudo_label.labels import add_place, by_image, file_digest, human, read_json, read_labels, write_json
from util.command_line import Parser, number, one_sentence_errors

CELLS = 16          # longest side of a box, in cells of the level that its feature comes from
POOLED = 7          # samples along each side of a box


@contextmanager
def watched_pyramid(network):
    """A list whose one entry is what network.fpn gave last: [[B, channels, h, w]] from fine to coarse."""
    seen = [None]
    handle = network.fpn.register_forward_hook(lambda module, inputs, output: seen.__setitem__(0, output))
    try:
        yield seen
    finally:
        handle.remove()


def box_features(pyramid: list, boxes, strides: tuple):
    """float16 [n, channels] of length 1 (or 0, where the features are) on the CPU.

    pyramid   [[channels, h, w]] of one picture, from fine to coarse
    boxes     float32 [n, 4]  xyxy, input pixels; n may be 0
    strides   of its levels
    """
    import torch
    from torchvision.ops import roi_align
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    places = (longer[:, None] > CELLS * torch.tensor(strides)).sum(1).clamp(max=len(pyramid) - 1)
    features = torch.zeros(len(boxes), pyramid[0].shape[0])
    for place, (level, stride) in enumerate(zip(pyramid, strides, strict=True)):
        own = places == place
        if own.any():
            pooled = roi_align(level[None].float(), [boxes[own].to(level.device)], POOLED, 1 / stride, sampling_ratio=2, aligned=True)
            features[own] = pooled.mean((2, 3)).cpu()
    return torch.nn.functional.normalize(features, dim=1).half()


def teachers_of(contents: dict, checkpoints: list, folds_file=None) -> list:
    """[(checkpoint file, {image ids})]. Raises ValueError where checkpoints and folds do not fit, or a picture is not in one fold."""
    ids = [image["id"] for image in contents["images"]]
    if folds_file is None:
        if len(checkpoints) > 1:
            raise ValueError(f"--checkpoint names {len(checkpoints)} files; several need --folds FILE, which says what each is for")
        return [(checkpoints[0], {*ids})]
    try:
        folds = json.loads(Path(folds_file).read_text(encoding="utf-8"))["folds"]
        placed = [id for fold in folds for id in fold]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f'{folds_file}: must be a json {{"folds": [[image id, ...], ...]}}, as make_folds writes it') from None
    if len(folds) != len(checkpoints):
        raise ValueError(f"{folds_file}: has {len(folds)} folds, but --checkpoint names {len(checkpoints)} files; it must be one for each")
    places = Counter(map(str, placed))
    if any(places[str(id)] != 1 for id in ids):         # more than these may be there: pictures that --skip-bad leaves out
        raise ValueError(f"{folds_file}: must hold each of the {len(ids)} pictures of the labels once; it was made for other labels")
    refuse_swapped(checkpoints)
    return [(file, {*fold}) for file, fold in zip(checkpoints, folds, strict=True)]


def refuse_swapped(checkpoints: list) -> None:
    """Raises ValueError for a checkpoint that says that it was trained on train-K.json of another fold; others may say nothing."""
    from engine.checkpoint import load_checkpoint
    for place, file in enumerate(checkpoints):
        trained_on = Path(load_checkpoint(file).get("flags", {}).get("train_json") or "").name
        if re.fullmatch(r"train-\d+\.json", trained_on) and trained_on != f"train-{place}.json":
            raise ValueError(f"{file}: is named for fold {place}, but was trained on {trained_on}, which holds the pictures of that fold; "
                             "--checkpoint must name the teachers in the order of the folds")


def extract(contents: dict, images: Path, teachers: list, device="auto", batch_size=8, workers=0, features=True) -> tuple[list, dict]:
    """(detections as in the manual, the arrays of features.npz), pictures in the order of the labels. teachers: of `teachers_of`."""
    import numpy as np
    labels_of, found, kept = by_image({**contents, "annotations": human(contents)}), {}, {}
    for file, ids in teachers:
        shown = [each for each in contents["images"] if each["id"] in ids]
        for image_id, *rest in run_teacher(file, shown, labels_of, contents["categories"], images, device, batch_size, workers, features):
            found[image_id], kept[image_id] = rest
    order = [image["id"] for image in contents["images"]]
    detections = [each for id in order for each in found[id][0]]
    for place, each in enumerate(detections):
        each["id"] = place
    labels = [each for id in order for each in labels_of[id]]
    arrays = {name: np.concatenate([part[id][1].numpy() for id in order]) for name, part in (("detections", found), ("kept", kept))}
    return detections, arrays | {
        "detection_teachers": np.array([each["teacher"] for each in detections], dtype="U12"),
        "kept_ids": np.array([each["id"] for each in labels]), "kept_category_ids": np.array([each["category_id"] for each in labels]),
        "kept_teachers": np.array([kept[id][0] for id in order for _ in labels_of[id]], dtype="U12")}


def run_teacher(file, shown, labels_of, categories, images, device, batch_size, workers, features):
    """Yields (image id, (detections, their features), (teacher, features of the labels)) of each picture of `shown`."""
    import torch
    from tqdm import tqdm

    from dataset.loader import eval_loader
    from dataset.pictures import Pictures
    from dataset.preprocess import map_boxes
    from engine.checkpoint import load_checkpoint
    from engine.distributed import select_device
    from engine.predict import detect_batch, map_to_picture
    from model import load_model
    from pseudo_label.policies import boxes_of

    checkpoint, teacher, device = load_checkpoint(file), file_digest(file)[:12], select_device(device)
    category_ids = {each["name"]: each["id"] for each in categories}
    if strange := [name for name in checkpoint["classes"] if name not in category_ids]:
        raise ValueError(f"{file}: finds the class {strange[0]!r}, which the labels do not know ({', '.join(category_ids)})")
    if not shown:
        return
    tile, image_of = checkpoint["input"]["tile"], {(Path(images) / each["file_name"]).as_posix(): each for each in shown}
    if lost := [path for path in image_of if not Path(path).is_file()]:
        raise ValueError(f"{lost[0]}: no such picture")
    pictures = Pictures(image_of)
    for path, size in zip(pictures.ids, map(pictures.size, range(len(pictures))), strict=True):
        if tile and max(size) > tile:
            raise ValueError(f"{file}: detects in tiles of {tile} px, several of which {path} needs ({size[1]}x{size[0]}), and they have no pyramid "
                             "in common; train teachers with --min-size, which sees whole pictures, or take the detections.json of eval_coco.py, which has no features")
    network = load_model(checkpoint["config"], checkpoint["model"], device)
    loader = eval_loader(pictures, **checkpoint["input"], batch_size=batch_size, workers=workers, pin_memory=device.type == "cuda")
    no_features = torch.zeros(0, 0, dtype=torch.float16)
    with watched_pyramid(network) as pyramid:
        for batch, infos in tqdm(loader, desc=f"teacher {teacher}", unit="batch", dynamic_ncols=True):
            outputs = detect_batch(network, batch, device)
            for row, (output, info, size) in enumerate(zip(outputs, infos, batch["image_sizes"], strict=True)):
                levels = [level[row] for level in pyramid[0]]
                image_id = image_of[info["image_id"]]["id"]
                inside = map_boxes(boxes_of(labels_of[image_id]).float(), info["window"], (0, 0, *size.flip(0).tolist()))
                pooled = [box_features(levels, boxes, network.config.strides) if features else no_features for boxes in (output["boxes"].cpu(), inside)]
                entries = detections_of(output, map_to_picture(output, info, size)["boxes"], info["orig_size"], image_id, teacher,
                                        network.config, [category_ids[name] for name in checkpoint["classes"]])
                yield image_id, (entries, pooled[0]), (teacher, pooled[1])


def detections_of(output: dict, boxes, size: tuple, image_id, teacher: str, config, category_ids: list) -> list:
    """One picture's detections for detections.json, best first; boxes xyxy in the pixels of the picture of `size` (h, w)."""
    from util.boxes import xyxy_to_xywh
    scores = output["scores"].cpu().double()
    cls = output.get("class_scores", output["scores"]).cpu().double()
    root = getattr(config, "score_rule", None) == "sqrt" and config.quality != "none"
    rows = zip(xyxy_to_xywh(boxes.double()).tolist(), output["labels"].tolist(), scores.tolist(), cls.tolist(),
               ((scores ** 2 if root else scores) / cls).tolist(), strict=True)

    def rounded(bbox):
        sides = [max(round(side, 3), 0.001) for side in bbox[2:]]
        return [*(min(round(start, 3), round(limit - side, 3)) for start, side, limit in zip(bbox[:2], sides, size[::-1], strict=True)), *sides]
    return [{"image_id": image_id, "category_id": category_ids[label], "bbox": rounded(bbox),
             "score": round(score, 6), "cls": round(own, 6), "ctr": round(min(ctr, 1.0), 6), "teacher": teacher}
            for bbox, label, score, own, ctr in rows]


def refuse_foreign(output: Path) -> None:
    """Makes the folder. Raises ValueError where it holds a detections.json or features.npz that was not written here, and would be lost."""
    output.mkdir(parents=True, exist_ok=True)
    for name in ("detections.json", "features.npz"):
        if (output / name).exists() and not is_own(output / name):
            raise ValueError(f"--output {output}: holds {name}, which no earlier call has left there, and would be replaced; name another folder, or move it away")


def is_own(path: Path) -> bool:
    from pseudo_label.query_nearest_neighbors import ARRAYS
    try:
        if path.suffix == ".npz":
            with ZipFile(path) as file:
                return {f"{name}.npy" for name in ARRAYS} <= {*file.namelist()}
        found = read_json(path)
    except (OSError, ValueError, BadZipFile):
        return False
    return isinstance(found, list) and all(isinstance(each, dict) and {"cls", "ctr", "teacher"} <= each.keys() for each in found)


def write_found(detections: list, arrays: dict, output, features=True) -> None:
    import numpy as np
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    if features:
        part = output / "features.partial.npz"
        np.savez(part, **arrays)
        os.replace(part, output / "features.npz")
    else:
        (output / "features.npz").unlink(missing_ok=True)       # of other detections
    write_json(output / "detections.json", detections)


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="the labels that there are: COCO json, or a folder in VOC layout")
    add("--checkpoint", nargs="+", required=True, metavar="FILE", help="the teacher, or one for each fold, in their order")
    add("--folds", metavar="FILE", help="folds.json of make_folds")
    add("--output", required=True, metavar="DIR", help="where detections.json and features.npz go")
    add("--no-features", action="store_true", help="detections alone")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--batch-size", type=number(int, 1), default=8, metavar="N", help="pictures at a time")
    add("--workers", type=number(int, 0), default=2, metavar="N", help="loading processes; 0: the main one loads")
    add_place(parser)
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        labels = read_labels(flags.source, flags.images, flags.split, flags.skip_bad, need_images=True)
        if not labels.contents["images"]:
            raise ValueError(f"{flags.source}: lists no picture")
        teachers = teachers_of(labels.contents, flags.checkpoint, flags.folds)
        refuse_foreign(Path(flags.output))
        detections, arrays = extract(labels.contents, labels.images, teachers, flags.device, flags.batch_size, flags.workers,
                                     not flags.no_features)
        write_found(detections, arrays, flags.output, not flags.no_features)
        print(f"{len(detections)} detections, {len(arrays['kept_ids'])} labels, {len(labels.contents['images'])} pictures; {flags.output}")


if __name__ == "__main__":
    main()
