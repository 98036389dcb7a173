"""Makes pseudo labels of detections, and adds them to the labels that there are.

    python -m pseudo_label.generate_pseudo_labels partial.json --detections found/detections.json --output pseudo.json
    python -m pseudo_label.generate_pseudo_labels partial.json --detections found/detections.json --policy seed --output seed.json

--policy    positive                                                     ignored
seed        score >= --confidence; the box that overlaps a kept one      -
            most is dropped, whatever its class (Jmq14/FCOS's way)
fixed       score >= --confidence, and on no kept box                    -
count       the best half of the boxes that are missing of its class     the other half
precision   probability that an object is there >= --positive            probability >= --ignore

count and precision need the share of the objects that are labelled: --keep-rate, or it is estimated from the detections, for
which these must be those of a teacher that did not train on the same pictures (--folds of extract_features). precision looks at
no label that was dropped: how often a class's detections of some score lie on a kept box says how many of the others are real.

Humans' labels stay as they are; pseudo labels that the source has already are replaced. What a pseudo label says of itself:
pseudo_label/labels.py. train_coco.py and train_voc.py train on the result, with --pseudo-weight.
"""
from pseudo_label.labels import add_place, first_free, human, read_json, read_labels, refuse_existing, trouble_with, write_labels
from util.command_line import Parser, number, one_sentence_errors

POLICIES = ("seed", "fixed", "count", "precision")      # of pseudo_label/policies.py, which imports torch


def read_detections(path, contents: dict) -> list:
    """COCO results of the pictures and categories of `contents`. Raises ValueError, naming the file and the place, for others."""
    detections = read_json(path)
    images, categories = ({each["id"]: each for each in contents[part]} for part in ("images", "categories"))
    for place, each in enumerate(detections if isinstance(detections, list) else [None], start=1):
        if not isinstance(each, dict) or not {"image_id", "category_id", "bbox", "score"} <= each.keys():
            raise ValueError(f"{path}: entry {place} must be a detection in COCO results format, with image_id, category_id, bbox and score")
        if trouble := trouble_with(each, images, categories) or trouble_with_place_and_score(each, images[each["image_id"]]):
            raise ValueError(f"{path}: detection {place}: {trouble}")
    return detections


def trouble_with_place_and_score(detection: dict, image: dict) -> str | None:
    from dataset.coco import xywh_edges
    score = detection["score"]
    if not isinstance(score, (int, float)) or not 0 <= score <= 1:
        return f"score is {score!r}, must be a number in 0..1"
    try:
        if image.get("width") and image.get("height"):
            xywh_edges(detection["bbox"], (image["height"], image["width"]))        # as training judges what is made of it
    except (TypeError, ValueError) as error:
        return f"bbox is {detection['bbox']}, in {image['file_name']} it {error}"
    return None


def generate(contents: dict, detections: list, policy: str, options, first_id: int | None = None) -> dict:
    """The contents with pseudo labels instead of those before; they may all be zones to ignore. Raises ValueError where there is none."""
    from pseudo_label import policies
    kept = human(contents)
    chosen, told = policies.POLICIES[policy]({**contents, "annotations": kept}, detections, options)
    if not chosen:
        best = max((each["score"] for each in detections), default=0)
        raise ValueError(f"policy {policy} makes not one pseudo label of {len(detections)} detections (best score {best:.3f}; "
                         f"{', '.join(f'{name} {value:.3g}' for name, value in told.items())}); training on none would be training as before")
    used = [int(each["id"]) for each in kept if str(each["id"]).isdigit()]
    start = first_id or first_free(contents["info"], used)
    pseudo = [{"id": id, "image_id": each["image_id"], "category_id": each["category_id"], "bbox": each["bbox"], "segmentation": [],
               "area": each["bbox"][2] * each["bbox"][3], "iscrowd": 0, "ispseudo": True, **more}
              for id, (each, more) in enumerate(chosen, start=start)]
    if clash := {*used} & {each["id"] for each in pseudo}:
        raise ValueError(f"--first-id {first_id}: annotation {min(clash)} is there already; the largest id is {max(used)}")
    return {**contents, "info": {**contents["info"], "pseudo": {"policy": policy, **told}}, "annotations": [*kept, *pseudo]}


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add, share = parser.add_argument, number(float, 0, 1)
    add("source", metavar="SOURCE", help="the labels that there are: COCO json, or a folder in VOC layout")
    add("--detections", required=True, metavar="FILE", help="detections.json of extract_features, or COCO results of any detector")
    add("--policy", default="precision", choices=POLICIES, help="how detections are chosen")
    add("--confidence", type=share, default=0.5, metavar="X", help="least score; seed and fixed")
    add("--keep-rate", type=number(float, 1e-6, 1), metavar="X", help="share of the objects that are labelled; count and precision "
        "(default: estimated)")
    add("--positive", type=share, default=0.6, metavar="P", help="least probability of a positive; precision")
    add("--ignore", type=share, default=0.2, metavar="P", help="least probability of an ignored box; precision")
    add("--first-id", type=number(int, 1), metavar="N", help="of the pseudo labels (default: after all ids of the file, and of the full "
        "one where make_partial made it)")
    add("--output", required=True, metavar="PATH", help="a file *.json, or a folder in VOC layout to make")
    add_place(parser)
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        if flags.ignore > flags.positive:
            raise ValueError(f"--ignore is {flags.ignore:g}, must not be above --positive {flags.positive:g}")
        refuse_existing(flags.output, flags.source, flags.detections)
        labels = read_labels(flags.source, flags.images, flags.split, flags.skip_bad)
        detections = read_detections(flags.detections, labels.contents)
        from pseudo_label.policies import Options
        options = Options(flags.confidence, flags.keep_rate, flags.positive, flags.ignore)
        result = generate(labels.contents, detections, flags.policy, options, flags.first_id)
        write_labels(result, flags.output, labels.images, labels.split)
        print(told(result, flags.output))


def told(contents: dict, output) -> str:
    """One line on what was generated, to be read before training: as many pseudo labels as are missing is what to expect. Crowds and
    difficult objects are never missing."""
    from pseudo_label.policies import kept_counts
    pseudo = [each for each in contents["annotations"] if each.get("ispseudo")]
    ignored = sum(each.get("zone") == "ignore" for each in pseudo)
    kept, info = human(contents), contents["info"]["pseudo"]
    rate, counted = info.get("keep_rate"), sum(kept_counts({**contents, "annotations": kept}).values())
    expected = f"; at a keep rate of {rate:.3f} about {round(counted * (1 / rate - 1))} are missing" if rate else ""
    return f"{len(kept)} labels, {len(pseudo) - ignored} pseudo labels, {ignored} ignored boxes by policy {info['policy']}{expected}; {output}"


if __name__ == "__main__":
    main()
