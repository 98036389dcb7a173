"""Draws what each location, anchor or proposal of a network is trained on, level by level: the picture that teaches, and finds bugs.

    python tools/show_targets.py                                          the embedded set, as train_voc.py shows it to its network
    python tools/show_targets.py --data my_pictures --crop 416 --levels 3
    python tools/show_targets.py --train-json a.json --train-images pictures --assignment atss
    python tools/show_targets.py --config checkpoint/voc-1/config.yaml --mosaic 1
    python tools/show_targets.py --checkpoint checkpoint/voc-1/best.pth   network, data and flags of that run

It takes every flag of train_voc.py and train_coco.py, so that a command of theirs needs another name only; those which change
neither the network nor what it sees do nothing here. Without --checkpoint the network's weights are random: the assignment of
locations and anchors does not depend on them, that of proposals does.

A PNG for each training sample, after augmentation: first the objects, each in a colour of its own, then what each level answers
for. Coloured: trained to find the object of this colour. Grey: left out of the loss. All else is trained as background. What tiles
the picture, as FCOS's locations do, is drawn as its cells; anchors and proposals as their outlines, ignored ones as dots.
The legend says how often each object is answered for; one with "none" is not learnt from. Dashed among the objects: regions and zones
to ignore, which are none.
"""
import argparse
import sys
from itertools import islice
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.log import next_run_folder  # noqa: E402
from flags import OF_THIS_CALL, add_training_flags, augmentation, every_size, model_fields, read_training_flags, trained_detector  # noqa: E402
from util.command_line import Parser, file_words, from_here, number, one_sentence_errors  # noqa: E402

PANEL = 640                     # px, longer side of each picture on the sheet
GREY, WHITE = (110, 110, 110), (255, 255, 255)


def parse_flags(argv):
    """(flags, checkpoint or None); where the command line says nothing, the flags are those the checkpoint was trained with."""
    parser = Parser(__doc__)
    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--data", nargs="+", default=[from_here(ROOT / "foreign_object_dataset")], metavar="DIR", help="folders in VOC layout, or one in COCO's")
    add("--train-split", nargs="+", default=["auto"], metavar="S", help="list in ImageSets, one for all folders or one for each; all: every XML file; auto: train, or all where there are no lists")
    add("--zero-based", action="store_true", help="VOC coordinates start at 0 (VOC's own start at 1)")
    add("--train-json", metavar="FILE", help="instances, instead of those in --data")
    add("--train-images", metavar="DIR", help="the pictures of --train-json")
    for name in ("--val-data", "--val-split", "--val-json", "--val-images"):
        add(name, nargs="+", help=argparse.SUPPRESS)
    add("--pictures", type=number(int, 1), default=4, metavar="N", help="training samples to draw")
    add("--checkpoint", metavar="FILE", help="a trained network")
    add_training_flags(parser, data, "targets")
    argv, checkpoint, words = sys.argv[1:] if argv is None else list(argv), None, []
    if file := parser.parse_args(argv).checkpoint:
        checkpoint = trained_detector(file)
        known = vars(parser.parse_args([])).keys() - {*OF_THIS_CALL}
        if any(word.partition("=")[0] == "--data" for word in argv):
            known -= {"train_json", "train_images"}         # of the checkpoint's own data
        words = file_words(parser, {name: value for name, value in checkpoint.get("flags", {}).items() if name in known}, file)
    return read_training_flags(parser, argv, ROOT / "checkpoint", words)[0], checkpoint


def open_data(flags, classes):
    """The training set, with the given classes, or its own where these are None."""
    from dataset.coco import COCODataset, choose_pair
    from dataset.voc import VOCDataset
    from dataset.voc_folder import training_split
    if bool(flags.train_json) != bool(flags.train_images):
        raise ValueError("--train-json and --train-images go together")
    pair = (flags.train_json, flags.train_images) if flags.train_json else None
    if not pair and len(flags.data) == 1 and any(Path(flags.data[0]).glob("annotations/instances_*.json")):
        pair = choose_pair(flags.data[0], "train")
        if not pair:
            raise ValueError(f"--data {flags.data[0]}: has no annotations/instances_train*.json")
    if pair:
        return COCODataset(*pair, classes, flags.skip_bad)
    return VOCDataset(flags.data, training_split(flags.data, flags.train_split), classes, one_based=not flags.zero_based, skip_bad=flags.skip_bad)


def build_network(flags, checkpoint, num_classes):
    from model import build_model, load_model
    if checkpoint:
        return load_model(checkpoint["config"], checkpoint["model"])
    return build_model({"num_classes": num_classes, "model": flags.model, **model_fields(flags)}).eval()


def draw_targets(image, boxes, names, ignore, zones, levels):
    """The sheet for one sample.

    image          uint8 [3, H, W]
    boxes, names, ignore, zones    of its M objects: xyxy in its pixels; class names; bool [M], True: a region to leave out; bool [M],
                   True: no object, its class alone is left open
    levels         [{"name", "boxes" [N, 4], "matched_gt" [N]}], as a network's `assigned` gives them, of this sample
    """
    from util.draw import class_colours, draw_detections, grid, to_pil
    picture = to_pil(image)
    scale = PANEL / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
    colours, numbered, boxes = class_colours(len(names)), [f"{row} {name}" for row, name in enumerate(names, start=1)], boxes * scale
    left_out, everything = ignore | zones, picture
    for shown, dashed in ((left_out, True), (~left_out, False)):
        everything = draw_detections(everything, boxes[shown], [numbered[row] for row in shown.nonzero()], classes=numbered, dashed=dashed)
    panels, answers, idle = [under_title(everything, "objects of this sample")], [[] for _ in names], []
    for level in levels:
        matched = level["matched_gt"]
        positive, ignored = (int(chosen.sum()) for chosen in (matched >= 0, matched == -2))
        for row, count in enumerate(matched[matched >= 0].bincount(minlength=len(names)).tolist()):
            answers[row] += [f"{level['name']} {count}"] if count else []
        if positive or ignored:
            title = f"{level['name']}: {positive} of {len(matched)} for objects" + f", {ignored} ignored" * bool(ignored)
            panels.append(under_title(draw_level(picture, boxes, level["boxes"] * scale, matched, colours), title))
        else:
            idle.append(level["name"])
    lines = [(colour, f"{name}: " + ("a region to leave out" if region else "a zone to ignore, where its class is left open" if zone
                                     else ", ".join(counts) or "none"))
             for colour, name, region, zone, counts in zip(colours, numbered, ignore.tolist(), zones.tolist(), answers, strict=True)]
    lines += [(GREY, "ignored"), (None, f"all else: background{', in a zone for the other classes' if zones.any() else ''}; dashed: the object")] + [(None, f"nothing on {', '.join(idle)}")] * bool(idle)
    return above_legend(grid(panels, max(2, -(-len(panels) // 2)), side=2 * PANEL), lines)


def draw_level(picture, gt_boxes, boxes, matched_gt, colours):
    """What one level answers for, over a pale copy of the picture; everything in the copy's pixels."""
    from PIL import Image, ImageDraw

    from util.draw import draw_dashes
    pale = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, WHITE), 0.45)
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    sides = boxes[:, 2:] - boxes[:, :2]
    after = boxes[1:, :2] > boxes[:-1, 2:] - sides[1:] / 4
    tiles = bool(((sides - sides[:1]).abs() < 1).all() and after.any(1).all())
    for row in [*(matched_gt == -2).nonzero().flatten().tolist(), *(matched_gt >= 0).nonzero().flatten().tolist()]:
        (x1, y1, x2, y2), gt = boxes[row].tolist(), int(matched_gt[row])
        colour, x, y, radius = GREY if gt < 0 else colours[gt], (x1 + x2) / 2, (y1 + y2) / 2, 1 + (gt >= 0)
        if tiles:
            cell = x1 + 1, y1 + 1, max(x1 + 1, x2 - 1), max(y1 + 1, y2 - 1)
            draw.rectangle(cell, fill=(*colour, 120), outline=(*colour, 255) if gt >= 0 else None)
        elif gt >= 0:
            draw.rectangle((x1, y1, x2, y2), outline=(*colour, 255), width=2)
        if not tiles or gt >= 0 and x2 - x1 > 12:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*colour, 255))
    for gt in matched_gt[matched_gt >= 0].unique().tolist():
        draw_dashes(draw, [round(edge) for edge in gt_boxes[gt].tolist()], colours[gt], width=2, dash=6)
    return Image.alpha_composite(pale.convert("RGBA"), layer).convert("RGB")


def under_title(panel, title):
    from PIL import Image, ImageDraw, ImageFont

    from util.draw import BACKGROUND
    font = ImageFont.load_default(18)
    framed = Image.new("RGB", (max(panel.width, int(font.getlength(title)) + 1), panel.height + 28), BACKGROUND)
    ImageDraw.Draw(framed).text((0, 2), title, fill=WHITE, font=font)
    framed.paste(panel, (0, 28))
    return framed


def above_legend(sheet, lines):
    """The sheet with a legend below: [(colour or None, text)] in as many columns as fit."""
    from PIL import Image, ImageDraw

    from util.draw import BACKGROUND, lettering
    height, (font, spelled) = 26, lettering(tuple(text for _, text in lines), 18)
    width = max(int(font.getlength(spelled[text])) for _, text in lines) + 60
    columns = max(1, sheet.width // width)
    rows = -(-len(lines) // columns)
    whole = Image.new("RGB", (max(sheet.width, width), sheet.height + rows * height + 12), BACKGROUND)
    whole.paste(sheet)
    draw = ImageDraw.Draw(whole)
    for place, (colour, text) in enumerate(lines):
        x, y = 8 + place // rows * width, sheet.height + place % rows * height
        if colour:
            draw.rectangle((x, y + 2, x + 20, y + 20), fill=colour, outline=WHITE)
        draw.text((x + 30, y), spelled[text], fill=WHITE, font=font)
    return whole


def main(argv=None):
    with one_sentence_errors():
        flags, checkpoint = parse_flags(argv)
        from dataset.augment import Augment
        from dataset.loader import TrainLoader
        from dataset.pictures import flat_name
        dataset = open_data(flags, checkpoint and checkpoint["classes"])
        network = build_network(flags, checkpoint, len(dataset.classes))
        loader = TrainLoader(dataset, Augment(**augmentation(flags)), 1, every_size(flags.min_size), flags.max_size, seed=flags.seed)
        output = Path(flags.output) if flags.output else next_run_folder(ROOT / "checkpoint", "targets")
        output.mkdir(parents=True, exist_ok=True)
        for count, (batch, (info,)) in enumerate(islice(loader.batches(0), flags.pictures), start=1):
            targets = {name: tensor for name, tensor in batch.items() if name not in ("images", "image_sizes")}
            levels = [{"name": level["name"], "boxes": level["boxes"][0], "matched_gt": level["matched_gt"][0]}
                      for level in network.assigned(batch["images"], batch["image_sizes"], targets)]
            (height, width), real = batch["image_sizes"][0].tolist(), batch["labels"][0] >= 0
            names = [dataset.classes[label] for label in batch["labels"][0][real]]
            file = output / f"{count}_{flat_name(info['image_id'])}.png"
            boxes, ignore, zones = (batch[name][0][real] for name in ("boxes", "ignore", "zone_ignore"))
            draw_targets(batch["images"][0, :, :height, :width], boxes, names, ignore, zones, levels).save(file)
            print(file)


if __name__ == "__main__":
    main()
