"""Draws labels, pseudo labels, ignored boxes and what is still missing on the pictures.

    python -m pseudo_label.visualize_pseudo_labels pseudo.json --images pictures --full full.json --output drawn
    python -m pseudo_label.visualize_pseudo_labels pseudo --output drawn --pictures 30                    a VOC folder, nothing missing known

Kept: a human's label. Pseudo: positive, with class and probability, or score. Ignored: blue. Missing: dashed; in the full
file, and found by no positive of its class with an IoU of 0.5 or more. Below each picture stands the legend, with how many there are.
The pictures are spread evenly over those with a pseudo label, an ignored box or a missing one.
"""
from pathlib import Path

from pseudo_label.labels import add_place, by_image, is_neutral, missing_labels, read_labels, with_ids
from util.command_line import Parser, number, one_sentence_errors

COLOURS = {"kept": (70, 220, 90), "pseudo": (255, 190, 20), "ignored": (60, 170, 255), "missing": (255, 70, 200)}
DASHED = ("missing",)               # what lies below shows through


def kinds_of(annotations: list, missing: list) -> dict:
    """{kind: [annotations]} of one picture, missing without those that a positive pseudo label finds."""
    from pseudo_label.policies import boxes_of
    from util.boxes import box_iou
    kinds = {kind: [] for kind in COLOURS}
    for each in annotations:
        kinds["kept" if not each.get("ispseudo") else "ignored" if each.get("zone") == "ignore" else "pseudo"].append(each)
    iou = box_iou(boxes_of(missing), boxes_of(kinds["pseudo"]))
    kinds["missing"] = [each for row, each in zip(iou, missing, strict=True) if not is_neutral(each) and not any(
        overlap >= 0.5 and other["category_id"] == each["category_id"] for overlap, other in zip(row, kinds["pseudo"], strict=True))]
    return kinds


def draw(image, kinds: dict, names: dict):
    """A copy of the picture with the boxes of each kind and the legend below it."""
    from PIL import ImageDraw

    from pseudo_label.policies import boxes_of
    from util.draw import draw_plate, frame_around, lettering, to_pil
    picture = to_pil(image)
    mean_side = (picture.width + picture.height) / 2
    line, (font, spelled) = max(2, round(mean_side / 420)), lettering(tuple(names.values()), max(12, round(mean_side / 60)))
    pen, plates, covered = ImageDraw.Draw(picture), [], []
    for kind, own in kinds.items():
        for each, box in zip(own, boxes_of(own).tolist(), strict=True):
            frame = frame_around(box, line, picture.size)
            draw_frame(pen, frame, kind, line)
            covered.append((frame, 1))
            if kind == "pseudo":
                chance = each.get("p_real", each.get("score"))
                plates.append((frame, spelled[names[each["category_id"]]] + (f" {chance:.2f}" if chance is not None else "")))
    for frame, text in plates:
        covered.append((draw_plate(pen, frame, text, font, COLOURS["pseudo"], picture.size, covered), 20))
    return with_legend(picture, {kind: len(own) for kind, own in kinds.items()}, font, line)


def draw_frame(pen, frame, kind: str, line: int) -> None:
    from util.draw import draw_dashes
    if kind in DASHED:
        draw_dashes(pen, frame, COLOURS[kind], line, dash=4 * line)
    else:
        pen.rectangle(frame, outline=COLOURS[kind], width=line)


def with_legend(picture, counts: dict, font, line: int):
    """The picture above a strip with a small box, the name and the count of each kind, in as many lines as they need."""
    from PIL import Image, ImageDraw

    from util.draw import BACKGROUND
    height = sum(font.getmetrics()) + 4 * line
    side, places, x, y = height - 4 * line, [], 2 * line, 0
    for kind, count in counts.items():
        text = f"{kind} {count}"
        width = side + 6 * line + int(font.getlength(text)) + 8 * line
        if x > 2 * line and x + width > picture.width:
            x, y = 2 * line, y + height
        places.append((x, y, kind, text))
        x += width
    sheet = Image.new("RGB", (picture.width, picture.height + y + height), BACKGROUND)
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for x, y, kind, text in places:
        top = picture.height + y + 2 * line
        draw_frame(pen, (x, top, x + side + 3 * line, top + side - 1), kind, line)
        pen.text((x + side + 6 * line, top), text, fill=(255, 255, 255), font=font)
    return sheet


def draw_pictures(contents: dict, missing: list, images: Path, output: Path, count: int, replace: bool = False) -> list:
    """Writes up to `count` PNGs, and returns their paths. Raises ValueError where no picture has anything but kept labels, and, without
    `replace`, where a file that is to be written is there already."""
    from dataset.pictures import flat_names, read_picture
    names = {each["id"]: each["name"] for each in contents["categories"]}
    missing_of = by_image({**contents, "annotations": missing})
    kinds_in = {id: kinds_of(own, missing_of[id]) for id, own in by_image(contents).items()}
    worth = [image for image in contents["images"] if any(own for kind, own in kinds_in[image["id"]].items() if kind != "kept")]
    if not worth:
        raise ValueError(f"there is nothing to draw: no pseudo label, ignored box or missing label in {len(kinds_in)} pictures")
    chosen = worth[::max(1, -(-len(worth) // count))]
    paths = [output / f"{name}.png" for name in flat_names(Path(image["file_name"]).with_suffix("").as_posix() for image in chosen)]
    pictures = {(images / image["file_name"]).resolve() for image in contents["images"]}
    if output.resolve() in {path.parent for path in pictures} or pictures & {path.resolve() for path in paths}:
        raise ValueError(f"--output {output}: is a folder of the pictures, among which the drawings would lie; name another folder")
    if not replace and (there := [path for path in paths if path.exists()]):
        raise ValueError(f"--output {output}: {there[0]} is there already; name another folder, or move it away")
    output.mkdir(parents=True, exist_ok=True)
    for image, path in zip(chosen, paths, strict=True):
        draw(read_picture(images / image["file_name"]), kinds_in[image["id"]], names).save(path)
    return paths


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="labels with pseudo labels: COCO json, or a folder in VOC layout")
    add("--full", metavar="SOURCE", help="the labels before some were dropped, likewise; without it nothing is known to be missing")
    add("--pictures", type=number(int, 1), default=12, metavar="N", help="how many to draw")
    add("--output", required=True, metavar="DIR", help="where the PNGs go")
    add_place(parser)
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        labels = read_labels(flags.source, flags.images, flags.split, flags.skip_bad, need_images=True)
        full = read_labels(flags.full, flags.images, flags.split, flags.skip_bad).contents if flags.full else labels.contents
        full = with_ids(full, None, {each["name"]: each["id"] for each in labels.contents["categories"]})     # classes are one by their names
        missing = missing_labels(labels.contents, full, flags.source, flags.full) if flags.full else []
        for path in draw_pictures(labels.contents, missing, labels.images, Path(flags.output), flags.pictures):
            print(path)


if __name__ == "__main__":
    main()
