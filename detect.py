"""Find objects in pictures, folders of pictures, videos or a webcam's view; write drawn copies and detections.json.

    python detect.py                                        the newest checkpoint, or the shipped one, on test_images/
    python detect.py photo.jpg more_photos clip.mp4         pictures, folders, videos in any mixture
    python detect.py 'photos/**/*.jpg' --score-threshold 0.5
    python detect.py road --tile 640                        small objects: full resolution, overlapping tiles
    python detect.py --webcam 0 --show                      live, until q, Esc or Ctrl-C
    python detect.py photo.jpg --checkpoint checkpoint/voc-1/best.pth --device cpu --output found

Into --output go the drawn copies (videos as mp4), named as the inputs are below the folder that all of them have in
common, so that a/1.jpg and b/1.jpg both stay; and one detections.json:

    [{"image": "a/1.jpg", "width": 640, "height": 480,
      "detections": [{"box": [x1, y1, x2, y2], "score": 0.9, "label": "nail"}], "drawn": "/home/me/detections/a/1.jpg"}]

Boxes are in the pixels of the upright original, the best first. Where the network finds masks, each detection has a
"segmentation" too, the RLE of COCO json {"size": [h, w], "counts": "..."}, as pycocotools.mask.decode takes it. A video has an entry for each frame, with its "frame"
number from 0. What an earlier call left there, as its detections.json lists it, is no input and is replaced; any other file
that is there already stays, and is an error. Inputs that cannot be read, or not to their end, are named at the end, after
all others are done; the exit code is then 2.
"""
import argparse
import glob
import json
import os
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path

from flags import chosen_checkpoint, input_sizes, prediction_parser
from util.command_line import from_here, number, one_sentence_errors

HERE = Path(__file__).resolve().parent


def parse_flags(argv):
    parser = prediction_parser(__doc__, batch_size=4)
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", default=[from_here(HERE / "test_images")],
        help="pictures, folders, quoted globs, videos")
    add("--output", metavar="DIR", default="detections", help="where to write")
    add("--score-threshold", type=number(float, 0, 1), metavar="X", default=argparse.SUPPRESS,
        help="lowest score reported (default: the checkpoint's)")
    add("--workers", type=number(int, 1), default=4, metavar="N", help="threads that read pictures ahead")
    add("--show", action="store_true", help="show results in a window; a key for the next picture, q or Esc to stop")
    add("--webcam", type=number(int, 0), metavar="N", default=argparse.SUPPRESS, help="frames of camera N, not PATH")
    return parser.parse_args(argv)


def detect_inputs(args):
    """Does as the flags say, returns what detections.json holds. Raises ValueError for what a person can cause."""
    from dataset.video import check_opencv

    pictures, videos = ([], []) if "webcam" in args else find_inputs(args.paths)
    if videos or args.show or "webcam" in args:
        check_opencv(window=args.show)
    output = Path(args.output)
    earlier = earlier_copies(output)
    pictures, videos = leave_out(earlier, output, pictures, videos)
    targets = drawn_copies([*pictures, *videos], output)
    clips = [(str(video), video, targets[video]) for video in videos]
    if "webcam" in args:
        clips = [(args.webcam, Path(f"webcam_{args.webcam}"), output / f"webcam_{args.webcam}.mp4")]
    for target in (*targets.values(), *(clip[2] for clip in clips)):
        if os.path.abspath(target) not in earlier and target.exists():
            raise ValueError(f"--output {output}: {target} is there already and is no drawn copy that detections.json there lists; "
                             "name another folder, or move it away")
    detector = Detector(args)
    output.mkdir(parents=True, exist_ok=True)
    for path in earlier:
        Path(path).unlink(missing_ok=True)
    entries, failed, started = [], [], time.perf_counter()
    try:
        wanted = detect_pictures(pictures, targets, detector, args, entries, failed)
        for source, path, target in clips:
            wanted = wanted and detect_video(source, path, target, detector, args, entries, failed)
    finally:
        lines = ",\n".join(map(json.dumps, entries))  # an entry a line
        (output / "detections.json").write_text(f"[{lines}]\n", encoding="utf-8")
        seconds, objects = time.perf_counter() - started, sum(len(entry["detections"]) for entry in entries)
        print(f"{len(entries)} pictures, {objects} objects, {seconds / max(1, len(entries)):.3f} s a picture; "
              f"drawn copies and detections.json are in {output}")
    if failed:
        raise ValueError(f"{len(failed)} of {len(pictures) + len(clips)} inputs could not be read, others are done: "
                         f"{'; '.join(failed)}")
    return entries


def find_inputs(paths):
    """(pictures, videos) that files, folders and globs lead to. Raises ValueError for a path that leads to neither."""
    from dataset.pictures import find_pictures
    from dataset.video import VIDEO_SUFFIXES

    pictures, videos = {}, {}
    for path in paths:
        pattern = os.path.join(glob.escape(path), "*") if os.path.isdir(path) else path
        found = [path] if os.path.isfile(path) else sorted(glob.glob(pattern, recursive=True))
        here = [Path(name) for name in found if name.lower().endswith(VIDEO_SUFFIXES) and os.path.isfile(name)]
        videos.update(dict.fromkeys(here))
        try:
            pictures.update((picture, None) for picture in find_pictures([path]) if picture not in here)
        except ValueError:
            if not here:
                raise
    return once(pictures), once(videos)


def once(paths):
    """The paths without those that lead to a file of an earlier one."""
    first = {}
    for path in paths:
        first.setdefault(os.path.abspath(path), path)
    return list(first.values())


def earlier_copies(output):
    """The absolute paths of the drawn copies that an earlier call left in `output`, as its detections.json lists them.

    Raises ValueError for a detections.json that is none of this program's, and would be replaced.
    """
    file = output / "detections.json"
    if not file.exists():
        return set()
    try:
        copies = {os.path.abspath(entry["drawn"]) for entry in json.loads(file.read_text(encoding="utf-8"))}
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"--output {output}: its detections.json is none that detect.py writes now, and would be replaced; "
                         "name another folder, or move it away") from None
    return {path for path in copies if Path(path).is_relative_to(os.path.abspath(output)) and os.path.isfile(path)}


def leave_out(earlier, output, pictures, videos):
    """(pictures, videos) without the drawn copies of an earlier call. Raises ValueError where there are no others."""
    inputs = len(pictures) + len(videos)
    pictures, videos = ([path for path in paths if os.path.abspath(path) not in earlier] for paths in (pictures, videos))
    count = inputs - len(pictures) - len(videos)
    if count and count == inputs:
        raise ValueError(f"--output {output}: all {count} inputs are drawn copies of an earlier call there; name another folder")
    if count:
        print(f"left out: {count} inputs that are drawn copies of an earlier call in {output}")
    return pictures, videos


def drawn_copies(inputs, output):
    """{input: where its drawn copy goes}: its path below the folder that all inputs have in common, below `output`."""
    from dataset.pictures import SUFFIXES
    from dataset.video import VIDEO_SUFFIXES

    sources = [Path(os.path.abspath(path)) for path in inputs]
    common = os.path.commonpath([source.parent for source in sources]) if sources else ""
    targets = {}
    for path, source in zip(inputs, sources, strict=True):
        suffix = source.suffix.lower()
        added = "" if suffix in (*SUFFIXES, ".mp4") else ".mp4" if suffix in VIDEO_SUFFIXES else ".jpg"
        targets[path] = output / (str(source.relative_to(common)) + added)
        if Path(os.path.abspath(targets[path])) == source:
            raise ValueError(f"--output {output}: the drawn copy would replace {path} itself; name another folder")
    takers = {}
    for path, target in targets.items():
        if (other := takers.setdefault(target, path)) is not path:
            raise ValueError(f"{other} and {path}: both drawn copies would be {target}; detect them in two calls, with an --output each")
    return targets


class Detector:
    """The network of a checkpoint: detector([(path, image), ...]) yields (image, entry of detections.json) in order."""

    def __init__(self, args):
        from engine.distributed import select_device
        from model import load_model

        self.device = select_device(args.device)
        path, checkpoint = chosen_checkpoint(args, HERE / "checkpoint")
        self.classes = checkpoint["classes"]
        self.threshold = getattr(args, "score_threshold", checkpoint["score_threshold"])
        self.batch_size = 1 if "webcam" in args else args.batch_size        # a camera does not wait
        self.loader_options = input_sizes(args, checkpoint) | {
            "overlap": args.overlap, "batch_size": args.batch_size, "pin_memory": self.device.type == "cuda"}
        config = checkpoint["config"]
        if "score_threshold" in args:       # a score sqrt(class score * quality) >= t needs a class score >= t * t; the checkpoint's own was found with its own candidates
            config = config | {"score_threshold": min(config["score_threshold"], self.threshold**2)}
        self.network = load_model(config, checkpoint["model"], self.device)
        print(f"{path} ({', '.join(self.classes)}), score threshold {self.threshold:g}, {self.device}")

    def __call__(self, frames):
        for _, alike in groupby(frames, key=lambda frame: frame[1].shape[1] > frame[1].shape[2]):  # upright ones apart
            while chunk := list(islice(alike, self.batch_size)):
                yield from self.detect(chunk)

    def detect(self, frames):
        from dataset.loader import eval_loader
        from engine.predict import predict

        samples = Samples((image, {"image_id": place, "orig_size": tuple(image.shape[-2:])})
                          for place, (_, image) in enumerate(frames))
        found = predict(self.network, eval_loader(samples, **self.loader_options), self.device, progress=False,
                        nms_iou_threshold=self.network.config.nms_iou_threshold)
        return [(image, self.entry(path, image, found[place])) for place, (path, image) in enumerate(frames)]

    def entry(self, path, image, found):
        from util.masks import paste_as_rle

        sure = found["scores"].double() >= self.threshold
        found = {name: values[sure] for name, values in found.items()}
        masks = [{"segmentation": rle} for rle in paste_as_rle(found, image.shape[1:])] if "masks" in found else [{}] * len(found["scores"])
        rows = zip(found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), masks, strict=True)
        detections = [{"box": [round(edge, 1) for edge in box], "score": round(score, 4), "label": self.classes[label], **mask}
                      for box, score, label, mask in rows]
        return {"image": path.as_posix(), "width": image.shape[2], "height": image.shape[1], "detections": detections}

    def draw(self, image, entry):
        from util.draw import draw_detections
        from util.masks import OneByOne, decode_rle

        boxes, labels, scores = ([found[key] for found in entry["detections"]] for key in ("box", "label", "score"))
        drawn = [found["segmentation"] for found in entry["detections"] if "segmentation" in found]
        masks = OneByOne(lambda row: decode_rle(drawn[row], tuple(image.shape[1:]))) if drawn else None
        return draw_detections(image, boxes, labels, scores, self.classes, masks=masks)


class Samples(list):
    """Pictures in memory as the data set that eval_loader takes: [(image, {"image_id", "orig_size"})]."""

    def size(self, index):
        return self[index][1]["orig_size"]


def read_ahead(paths, workers, failed):
    """(path, image) of each picture in order, read by threads a little ahead; `failed` gets what cannot be read."""
    from dataset.pictures import read_picture

    paths = iter(paths)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque((path, pool.submit(read_picture, path)) for path in islice(paths, 2 * workers))
        while waiting:
            path, reading = waiting.popleft()
            waiting.extend((path, pool.submit(read_picture, path)) for path in islice(paths, 1))
            try:
                yield path, reading.result()
            except ValueError as error:
                failed.append(str(error))


def detect_pictures(pictures, targets, detector, args, entries, failed):
    """Whether to go on: False where the person who watches has stopped it."""
    from dataset.video import show

    for image, entry in detector(read_ahead(pictures, args.workers, failed)):
        target = targets[Path(entry["image"])]
        entries.append(entry | {"drawn": os.path.abspath(target)})
        drawn = detector.draw(image, entry)
        target.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(target, quality=92)
        print(f"{entry['image']}  {entry['width']}x{entry['height']}  {describe([entry])}")
        if args.show and not show(drawn, wait_ms=0):
            return False
    return True


def detect_video(source, path, target, detector, args, entries, failed):
    """Whether to go on, as detect_pictures."""
    from tqdm import tqdm

    from dataset.video import VideoReader, VideoWriter, show

    first, wanted = len(entries), True
    try:
        with VideoReader(source) as video, VideoWriter(target, video.rate) as writer:
            bar = tqdm(video, desc=str(path), total=video.count, unit="frame", dynamic_ncols=True)
            for image, entry in detector((path, frame) for frame in bar):
                entries.append(entry | {"frame": len(entries) - first, "drawn": os.path.abspath(target)})
                drawn = detector.draw(image, entry)
                writer.write(drawn)
                if args.show and not (wanted := show(drawn, wait_ms=1)):
                    break
            else:
                video.check_end()
    except ValueError as error:
        failed.append(str(error))
    print(f"{path}  {len(entries) - first} frames  {describe(entries[first:])}")
    return wanted


def describe(entries):
    counts = Counter(found["label"] for entry in entries for found in entry["detections"])
    return ", ".join(f"{count} {label}" for label, count in counts.most_common()) or "nothing"


def main(argv=None):
    args = parse_flags(argv)
    with one_sentence_errors():
        return detect_inputs(args)


if __name__ == "__main__":
    main()
