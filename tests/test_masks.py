"""Masks: pasted as torchvision pastes, run lengths as pycocotools writes them, read from COCO json, and with their boxes through everything."""
import json
import random

import numpy as np
import pytest
import torch
from colour_network import ColourNetwork, colour_checkpoint
from conftest import COLOURS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from test_coco_dataset import TINY, contents, write  # noqa: F401
from test_detect import draw_picture
from torchvision.models.detection.roi_heads import paste_masks_in_image

import detect
import eval_coco
import train_coco
from dataset.augment import Augment, mirror, rotate, show
from dataset.coco import COCODataset, choose_pair, segmentation_rle
from dataset.loader import TrainLoader, collate, eval_loader
from dataset.sample import check_target, keep_objects, make_target
from engine.predict import map_to_picture, merge_windows, predict
from evaluation.coco_ap import NUMBERS, evaluate
from evaluation.report import coco_results, format_table
from model.fcos import FCOS
from util.draw import TINT, class_colours, draw_detections
from util.masks import decode_rle, encode_rle, pack_bits, paste_masks, unpack_bits

SIZE = (50, 100)                # (h, w) of the pictures of test_coco_dataset


def rectangle(x1, y1, x2, y2, size=SIZE):
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


# pasting, run lengths

@pytest.mark.parametrize("seed", range(4))
def test_masks_are_pasted_as_torchvision_does(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(30, 2, 2, generator=generator) * torch.tensor([130.0, 90.0])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1).clamp(max=torch.tensor([120.0, 80, 120, 80]))
    boxes[0], boxes[1] = torch.tensor([0.0, 0, 120, 80]), torch.tensor([7.0, 7, 7, 7])
    masks = torch.rand(30, 28, 28, generator=generator)
    expected = paste_masks_in_image(masks[:, None], boxes, (80, 120))[:, 0] > 0.5
    assert torch.equal(paste_masks(masks, boxes, (80, 120)), expected)


def test_a_full_grid_fills_its_box_within_a_pixel_and_what_is_outside_the_picture_is_cut():
    pasted = paste_masks(torch.ones(3, 28, 28), torch.tensor([[10.0, 20, 40, 45], [-30, -30, 10, 10], [200, 200, 300, 300]]), SIZE)
    assert extent(pasted[0]).tolist() == [9, 20, 41, 45] and extent(pasted[1]).tolist() == [0, 0, 11, 11]     # as torchvision's
    assert pasted[0].sum() == 32 * 25 and not pasted[2].any()
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), SIZE).shape == (0, *SIZE)


def test_run_lengths_by_hand():
    # columns (0, 1), (1, 0), (0, 0): one 0, two 1s, three 0s
    mask = torch.tensor([[0, 1, 0], [1, 0, 0]], dtype=torch.uint8)
    assert encode_rle(mask[None]) == [{"size": [2, 3], "counts": "123"}]
    assert torch.equal(decode_rle({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3)), mask)
    with pytest.raises(ValueError, match="its RLE has the character 'é'"):
        decode_rle({"size": [1, 15], "counts": "é"}, (1, 15))         # which no "?", 15, stands for
    assert encode_rle(torch.ones(1, 2, 3))[0]["counts"] == "06" and encode_rle(torch.zeros(0, 2, 3)) == []


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
def test_run_lengths_are_those_of_pycocotools_and_lead_back(height, width, seed, share):
    mask = (torch.rand(height, width, generator=torch.Generator().manual_seed(seed)) < share).to(torch.uint8)
    rle, = encode_rle(mask[None])
    assert rle["counts"] == coco_mask.encode(np.asfortranarray(mask.numpy()))["counts"].decode()
    assert torch.equal(decode_rle(rle, (height, width)), mask)
    assert torch.equal(decode_rle(json.loads(json.dumps(rle)), (height, width)), mask)


@given(st.text(alphabet=[chr(code) for code in range(40, 120)], max_size=12))
def test_whatever_the_text_it_is_a_mask_or_refused(counts):
    try:
        mask = decode_rle({"size": [5, 7], "counts": counts}, (5, 7))
    except ValueError as error:
        assert str(error).startswith("its RLE")
        return
    assert mask.shape == (5, 7) and set(mask.flatten().tolist()) <= {0, 1}


# reading

def segmented(**segmentations):
    """The json of test_coco_dataset with the segmentations of its object ("0") and its crowd ("5")."""
    values = contents()
    for annotation in values["annotations"]:
        if f"_{annotation['id']}" in segmentations:
            annotation["segmentation"] = segmentations[f"_{annotation['id']}"]
    return values


POLYGON = [[10, 20, 40, 20, 40, 40, 10, 40]]
CROWD = {"size": [50, 100], "counts": [0, 10, 40, 10, 4940]}


def test_polygons_and_both_kinds_of_rle_become_the_masks_of_a_target(write, tmp_path):  # noqa: F811
    dataset = COCODataset(write(segmented(_0=POLYGON, _5=CROWD)), tmp_path, with_masks=True)
    image, target = dataset[0]
    check_target(target, image.shape[-2:], 3, "a")
    assert torch.equal(target["masks"][0], rectangle(10, 20, 40, 40))
    assert torch.equal(target["masks"][1], rectangle(0, 0, 2, 10))
    assert dataset[1][1]["masks"].shape == (0, *SIZE) and not dataset.notes
    packed = encode_rle(target["masks"])
    again = COCODataset(write(segmented(_0=packed[0], _5=packed[1])), tmp_path, with_masks=True)
    assert torch.equal(again[0][1]["masks"], target["masks"]) and again.truth()["0"]["masks"] == packed
    assert "masks" not in COCODataset(write(segmented(_0=POLYGON)), tmp_path)[0][1]


def test_an_object_of_several_polygons_is_their_union_and_one_of_none_is_empty(write, tmp_path):  # noqa: F811
    two = [[10, 20, 20, 20, 20, 30, 10, 30], [15, 20, 40, 20, 40, 30, 15, 30]]
    dataset = COCODataset(write(segmented(_0=two)), tmp_path, with_masks=True)
    masks = dataset[0][1]["masks"]
    assert torch.equal(masks[0], rectangle(10, 20, 40, 30)) and not masks[1].any()
    assert "1 of 2 objects have no segmentation" in dataset.notes[0]
    for nothing in (None, [], [[]], {}):
        assert not COCODataset(write(segmented(_0=nothing)), tmp_path, with_masks=True)[0][1]["masks"].any()
    pseudo = segmented(_0=[[0.0, 0.0]])                 # as Jmq14/FCOS writes its pseudo labels
    pseudo["annotations"][0]["ispseudo"] = True
    assert pseudo["annotations"][0]["id"] == 0 and not COCODataset(write(pseudo), tmp_path, with_masks=True)[0][1]["masks"].any()


@pytest.mark.parametrize("segmentation, sentence", [
    ([[10, 20, 40, 20]], "annotation 0: (nail) segmentation holds [10, 20, 40, 20], must be an RLE, or polygons"),
    ([[10, 20, 40, 20, 40, 40, 10]], "must be an RLE, or polygons [x1, y1, x2, y2, x3, y3, ...] in the 100x50 picture"),
    ([POLYGON[0], [10, 20, 40, 20, 40, "a"]], "segmentation holds [10, 20, 40, 20, 40, 'a'], must"),
    ([[10, 20, 40, 20, 1e9, 40]], "must be"), ([[10, 20, 40, 20, float("nan"), 40]], "must be"),
    (POLYGON[0], "segmentation holds 10, must be"), ("abc", "segmentation holds abc, must be"),
    ({"size": [100, 50], "counts": [5000]}, "annotation 0: (nail) its RLE has size [100, 50], must be the picture's [height, width], [50, 100]"),
    ({"counts": [5000]}, "its RLE has size None"), ({"size": [50, 100]}, "its RLE has counts that are not whole numbers"),
    ({"size": [50, 100], "counts": [4000, 7]}, "its RLE counts 4007 pixels, a picture of 100x50 has 5000"),
    ({"size": [50, 100], "counts": [6000, -1000]}, "its RLE has counts that are not whole numbers of 0 and more"),
    ({"size": [50, 100], "counts": "o"}, "its RLE breaks off"), ({"size": [50, 100], "counts": "ä"}, "its RLE"),
])
def test_what_is_no_mask_is_named_and_left_out_if_asked_with_rows_still_alike(segmentation, sentence, write, tmp_path):  # noqa: F811
    path = write(segmented(_0=segmentation, _5=CROWD))
    with pytest.raises(ValueError) as error:
        COCODataset(path, tmp_path, with_masks=True)
    assert sentence in str(error.value) and str(error.value).startswith(str(path)) and "--skip-bad" in str(error.value)
    dataset = COCODataset(path, tmp_path, skip_bad=True, with_masks=True)
    target = dataset[0][1]
    assert target["boxes"].tolist() == [[0, 0, 100, 50]] and torch.equal(target["masks"], rectangle(0, 0, 2, 10)[None])
    assert len(COCODataset(path, tmp_path).target(0)["boxes"]) == 2       # who wants no masks is not bothered


def test_masks_follow_the_upright_picture(write, tmp_path):  # noqa: F811
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((100, 50, 3), np.uint8)      # the stored picture: its upper left corner is the upright one's upper right
    pixels[:20, :10] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    dataset = COCODataset(write(segmented(_0=[[80, 0, 100, 0, 100, 10, 80, 10]])), tmp_path, with_masks=True)
    image, target = dataset[0]
    assert torch.equal(image[0] > 127, target["masks"][0].bool())


def test_a_polygon_may_stick_out_of_its_picture_a_little():
    rle = segmentation_rle([[-10, -10, 30, -10, 30, 20, -10, 20]], SIZE)
    assert torch.equal(decode_rle(rle, SIZE), rectangle(0, 0, 30, 20))


@pytest.mark.skipif(not TINY.is_dir(), reason=f"{TINY} is not here")
def test_the_masks_of_coco_tiny_have_the_areas_of_the_file_and_lie_in_their_boxes():
    dataset = COCODataset(*choose_pair(TINY, "val"), with_masks=True)
    areas = torch.tensor([coco_mask.area({"size": rle["size"], "counts": rle["counts"]}) for each in dataset.truth().values() for rle in each["masks"]])
    assert ((areas - dataset._written[:, 4]).abs() <= 0.05 * dataset._written[:, 4] + 30).float().mean() > 0.99
    for index in range(3):
        image, target = dataset[index]
        check_target(target, image.shape[-2:], 80, "tiny")
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            assert (extent(mask) - box).abs().max() <= 2


# the way to the network

def extent(mask):
    """float32 [4]: the box around a mask."""
    y, x = mask.nonzero(as_tuple=True)
    return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()


class Drawn:
    """Grey pictures on which each object is an ellipse of its own brightness, whose mask is known exactly."""

    classes = ["a", "b", "c"]
    values = (220, 180, 250)

    def __init__(self, boxes=((10, 5, 45, 30), (30, 35, 90, 55), (70, 4, 96, 28)), size=(60, 100)):
        y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
        self.boxes, self.size = torch.tensor(boxes).float().reshape(-1, 4), size
        self.masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(self.masks, boxes, strict=True):
            mask[((x - (x1 + x2) / 2) / (x2 - x1) * 2) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1) * 2) ** 2 <= 1] = 1

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = torch.zeros(3, *self.size, dtype=torch.uint8)
        for mask, value in zip(self.masks, self.values, strict=False):
            image[:, mask.bool()] = value
        target = make_target(self.boxes, list(range(len(self.boxes))), [False] * len(self.boxes), str(index), self.size)
        return image, {**target, "masks": self.masks.clone()}


AUGMENTS = {"mirrored": Augment(flip=1, jitter=0, rotate=0), "upside down": Augment(flip=0, vertical_flip=1, jitter=0, rotate=0),
            "rotated": Augment(flip=0, jitter=0, rotate=30, rotate_probability=1), "coloured": Augment(flip=0, jitter=0.05, rotate=0), "zoomed": Augment(jitter=0, zoom=(0.5, 2)),
            "cropped": Augment(jitter=0, crop=96, zoom=(0.7, 1.5)), "mosaic": Augment(jitter=0, mosaic=1, zoom=(0.5, 1.5)),
            "everything": Augment(jitter=0, vertical_flip=0.5, rotate_probability=0.5, zoom=(0.5, 2), mosaic=0.5)}


def seen_masks(image, target):
    """How many masks of a picture of Drawn are large enough to look at; what lies under each is its object."""
    seen = 0
    for label, mask in zip(target["labels"].tolist(), target["masks"].bool(), strict=True):
        inner = mask & (torch.nn.functional.avg_pool2d(mask.float()[None, None], 5, 1, 2)[0, 0] > 0.99)     # not along the rim
        seen += int(inner.sum() > 20)
        assert ((image[0][inner].int() - Drawn.values[label]).abs() > 25).sum() <= 0.01 * inner.sum()
    return seen


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("min_size", [50, 90])
def test_masks_stay_on_their_objects_and_pixels_and_boxes_are_what_they_are_without_masks(name, min_size):
    dataset, plain, seen = Drawn(), Plain(), 0
    for seed in range(3):
        image, target = AUGMENTS[name](dataset, 0, min_size, 1000, random.Random(seed))
        check_target(target, image.shape[-2:], 3, name)
        same, without = AUGMENTS[name](plain, 0, min_size, 1000, random.Random(seed))
        assert torch.equal(image, same) and all(torch.equal(target[field], without[field]) for field in ("boxes", "labels", "weights"))
        seen += seen_masks(image, target)
        bright = image.amin(0) > 160
        if len(target["boxes"]) == 3:                     # none was dropped: all that is bright belongs to one
            assert (bright & ~target["masks"].bool().any(0)).sum() <= 0.02 * bright.sum() + 60
    assert seen > 4


@pytest.fixture(scope="module")
def of_all_kinds(tmp_path_factory):
    """The picture of Drawn from a json: a polygon, an RLE of numbers, and a crowd whose RLE is packed."""
    folder, (image, target) = tmp_path_factory.mktemp("kinds"), Drawn()[0]
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "a.png")
    (x1, y1, x2, y2), angles = Drawn().boxes[0].tolist(), torch.arange(40) * torch.pi / 20
    polygon = torch.stack([(x1 + x2) / 2 + (x2 - x1) / 2 * angles.cos(), (y1 + y2) / 2 + (y2 - y1) / 2 * angles.sin()], 1).flatten().tolist()
    columns = target["masks"][1].T.flatten()
    counts = torch.unique_consecutive(columns, return_counts=True)[1].tolist()
    kinds = [[polygon], {"size": [60, 100], "counts": [0] * int(columns[0]) + counts}, encode_rle(target["masks"][2:])[0]]
    annotations = [{"id": row, "image_id": 1, "category_id": row + 1, "iscrowd": int(row == 2), "segmentation": kind,
                    "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]}
                   for row, (kind, box) in enumerate(zip(kinds, Drawn().boxes, strict=True))]
    (folder / "a.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(Drawn.classes)]}))
    return COCODataset(folder / "a.json", folder, with_masks=True)


@pytest.mark.parametrize("name", AUGMENTS)
def test_polygons_run_lengths_and_crowds_of_a_json_go_through_every_augmentation(name, of_all_kinds):
    seen, crowds = 0, 0
    for seed in range(4):
        image, target = AUGMENTS[name](of_all_kinds, 0, 80, 1000, random.Random(seed))
        check_target(target, image.shape[-2:], 3, name)
        assert torch.equal(target["ignore"], target["labels"] == 2)        # each field of a row is still that of its object
        seen, crowds = seen + seen_masks(image, target), crowds + int(target["ignore"].sum())
    assert seen > 3 and crowds


class Plain(Drawn):
    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image, {field: value for field, value in target.items() if field != "masks"}


def test_masks_by_hand():
    image, target = Drawn([[0, 0, 100, 50]], size=SIZE)[0]
    target["masks"] = rectangle(10, 20, 40, 40)[None]
    assert torch.equal(mirror(image, target)[1]["masks"][0], rectangle(60, 20, 90, 40))
    assert torch.equal(mirror(image, target, vertical=True)[1]["masks"][0], rectangle(10, 10, 40, 30))
    assert torch.equal(rotate(image, target, 180.0)[1]["masks"][0], rectangle(60, 10, 90, 30))
    _, half = show(image, target, (0, 0, 100, 50), (25, 50))
    assert torch.equal(half["masks"][0], rectangle(5, 10, 20, 20, (25, 50)))
    _, beside = show(image, target, (-100, 0, 100, 100), (50, 100))        # half as large, in the upper right quarter
    assert torch.equal(beside["masks"][0], rectangle(55, 10, 70, 20))
    _, nothing = show(image, target, (500, 0, 600, 100), (30, 40))
    assert nothing["masks"].shape == (0, 30, 40)
    assert keep_objects(target, torch.tensor([False]))["masks"].shape == (0, *SIZE)


def test_pictures_without_objects_keep_an_empty_stack_of_masks():
    for seed in range(6):
        image, target = AUGMENTS["everything"](Drawn([]), 0, 64, 200, random.Random(seed))
        check_target(target, image.shape[-2:], 3, "empty")
        assert target["masks"].shape == (0, *image.shape[-2:])


@pytest.mark.parametrize("change", [lambda m: m[:, :-1], lambda m: m.float(), lambda m: m * 255, lambda m: m[:-1]])
def test_masks_that_break_the_contract_are_refused(change):
    image, target = Drawn()[0]
    with pytest.raises(ValueError, match="here: masks must be 0 or 1"):
        check_target({**target, "masks": change(target["masks"])}, image.shape[-2:], 3, "here")


def test_eight_pixels_of_a_mask_are_a_byte():
    mask = torch.tensor([[[1, 0, 0, 0, 0, 0, 1, 1, 0, 1]]], dtype=torch.uint8)
    assert pack_bits(mask).tolist() == [[[131, 64]]] and unpack_bits(pack_bits(mask))[..., :10].tolist() == mask.tolist()
    masks = torch.randint(0, 2, (2, 3, 5, 32), dtype=torch.uint8)
    assert torch.equal(unpack_bits(pack_bits(masks)), masks) and unpack_bits(pack_bits(masks[:0])).shape == (0, 3, 5, 32)


def test_masks_reach_the_batch_padded_like_the_images():
    (image, target), (small, none) = Drawn()[0], Drawn([], size=(40, 30))[0]
    batch, _ = collate([(image, target), (small, none)])
    masks = unpack_bits(batch["masks"])
    assert masks.shape == (2, 3, 64, 128) and masks.dtype == torch.uint8 and batch["masks"].shape == (2, 3, 64, 16)
    assert torch.equal(masks[0, :, :60, :100], target["masks"]) and masks.sum() == target["masks"].sum()
    assert "masks" not in collate([Plain()[0]])[0]
    loader = TrainLoader(Drawn(), AUGMENTS["everything"], batch_size=2, min_sizes=[64], max_size=100)
    batch, _ = next(iter(loader.batches(0)))
    assert unpack_bits(batch["masks"]).shape[1:] == (batch["boxes"].shape[1], *batch["images"].shape[-2:])


# the way back

class Finder(torch.nn.Module):
    """Finds one box a picture, whose grid is full on the left only."""

    def forward(self, images, image_sizes):
        grid = torch.zeros(1, 28, 28)
        grid[:, :, :14] = 1
        return [{"boxes": torch.tensor([[10.0, 10, 40, 30]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([1]), "masks": grid} for _ in images]


def test_predict_hands_masks_on_with_their_boxes(write, tmp_path):  # noqa: F811
    dataset = COCODataset(write(contents()), tmp_path, with_masks=True)
    found = predict(Finder(), eval_loader(dataset, 100, 200), "cpu", progress=False)
    assert found["0"]["masks"].shape == (1, 28, 28) and found["0"]["boxes"].tolist() == [[5, 5, 20, 15]]
    assert not found["0"]["masks"].is_inference()


def test_masks_of_tiles_are_merged_with_their_boxes():
    rows = [([160, 50, 180, 70], 0.8, 0.25), ([0, 0, 9, 9], 0.3, 0.5)], [([161, 50, 181, 70], 0.9, 0.75)]
    parts = [({"boxes": torch.tensor([row[0] for row in each]).float(), "scores": torch.tensor([row[1] for row in each]),
               "labels": torch.zeros(len(each)).long(), "masks": torch.stack([torch.full((28, 28), row[2]) for row in each])},
              {"image_id": "a", "window": window, "orig_size": (200, 350)}) for each, window in zip(rows, ((0, 0, 200, 200), (150, 0, 350, 200)))]
    merged = merge_windows(parts)
    assert merged["masks"].mean((1, 2)).tolist() == [0.75, 0.5] and merged["boxes"].tolist() == [[161, 50, 181, 70], [0, 0, 9, 9]]
    assert map_to_picture({**merged, "masks": merged["masks"].half()}, parts[0][1], torch.tensor([200, 200]))["masks"].dtype == torch.float32


def test_results_have_run_lengths_that_pycocotools_reads():
    found = {"boxes": torch.tensor([[10.0, 20, 40, 45]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1]), "masks": torch.ones(1, 28, 28)}
    empty = {name: values[:0] for name, values in found.items()}
    result, = json.loads(json.dumps(coco_results({"a": found, "b": empty}, [1, 7], {"a": 3, "b": 4}, {"a": SIZE, "b": SIZE})))
    assert result["category_id"] == 7 and result["image_id"] == 3 and isinstance(result["segmentation"]["counts"], str)
    assert np.array_equal(coco_mask.decode(result["segmentation"]), rectangle(9, 20, 41, 45))


# the twelve numbers of masks

def judged(*objects, found=(), size=(100, 100), classes=("a", "b")):
    """Metrics of one picture: objects [(box, mask [h, w], label, crowd)], found [(box, grid [28, 28], label, score)]."""
    boxes, masks, labels, crowds = zip(*objects, strict=True)
    truth = {**make_target(boxes, labels, crowds, "x", size, ignore=crowds), "masks": encode_rle(torch.stack(masks))}
    boxes, grids, labels, scores = zip(*found, strict=True) if found else ((), (), (), ())
    detections = {"boxes": torch.tensor(boxes).float().reshape(-1, 4), "scores": torch.tensor(scores).float(), "labels": torch.tensor(labels).long(),
                  "masks": torch.stack(grids) if grids else torch.zeros(0, 28, 28)}
    return evaluate({"x": detections}, {"x": truth}, list(classes))


WHOLE, UPPER, LOWER, FULL = [0.0, 0, 100, 100], [0.0, 0, 100, 50], [0.0, 50, 100, 100], torch.ones(28, 28)
# a full grid is pasted from 1 to 100: of the upper half 99 x 49 pixels, IoU 0.97; of the whole 99 x 99, IoU 0.98


def part(*edges):
    return rectangle(*edges, size=(100, 100))


def test_a_mask_of_iou_072_reaches_five_of_ten_thresholds_though_its_box_is_perfect():
    # 73 x 99 of 7400 + 9801 - 73 x 99 pixels
    metrics = judged((WHOLE, part(0, 0, 74, 100), 0, False), found=[(WHOLE, FULL, 0, 0.9)])
    assert metrics["mAP"] == pytest.approx(1) and list(metrics["segm"]) == list(NUMBERS)
    assert metrics["segm"]["AP"] == pytest.approx(0.5) and metrics["segm"]["AP50"] == pytest.approx(1) and metrics["segm"]["AP75"] == 0
    assert metrics["per_class"]["a"]["AP_masks"] == pytest.approx(0.5) and metrics["per_class"]["b"]["AP_masks"] is None
    assert metrics["all"]["AP_masks"] == metrics["segm"]["AP"] and json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    table = format_table(metrics).splitlines()
    assert table[0].endswith("AP masks") and table[-2].startswith("boxes: AP 1.000") and table[-1].startswith("masks: AP 0.500  AP50 1.000")


def test_two_objects_by_hand():
    # the upper one is found; of the lower one, which is the left of its box, all of the box is found: 51 x 49 of 2600 + 4851 - 51 x 49, IoU 0.505
    metrics = judged((UPPER, part(0, 0, 100, 50), 0, False), (LOWER, part(0, 50, 52, 100), 0, False),
                     found=[(UPPER, FULL, 0, 0.9), (LOWER, FULL, 0, 0.8)])
    half = 51 / 101                         # of the 101 recalls, 0.00 to 0.50 are reached
    assert metrics["segm"]["AP50"] == pytest.approx(1) and metrics["segm"]["AP75"] == pytest.approx(half)
    assert metrics["segm"]["AP"] == pytest.approx((1 + 9 * half) / 10) and metrics["segm"]["AR100"] == pytest.approx((1 + 9 * 0.5) / 10)
    assert metrics["mAP"] == pytest.approx(1)


def test_perfect_masks_are_1_also_for_the_first_annotation_and_beside_a_crowd():
    metrics = judged((WHOLE, part(0, 0, 100, 100), 1, False), (LOWER, part(0, 50, 100, 100), 0, True), (UPPER, part(0, 0, 100, 50), 0, False),
                     found=[(WHOLE, FULL, 1, 0.9), (UPPER, FULL, 0, 0.8), ([20.0, 60, 40, 80], FULL, 0, 0.85)])
    assert [metrics["segm"][name] for name in ("AP", "AR100", "APm")] == pytest.approx([1, 1, 1])


def test_an_object_without_a_mask_is_neither_a_miss_nor_makes_false_alarms():
    objects = (UPPER, part(0, 0, 100, 50), 0, False), (LOWER, part(0, 0, 0, 0), 0, False)
    assert judged(*objects, found=[(UPPER, FULL, 0, 0.8)])["segm"]["AP"] == pytest.approx(1)
    assert judged(*objects, found=[(UPPER, FULL, 0, 0.8), ([10.0, 60, 90, 90], FULL, 0, 0.9)])["segm"]["AP"] == pytest.approx(1)
    assert judged(objects[1], found=[(LOWER, FULL, 0, 0.8)])["segm"]["AP"] is None


def test_no_detection_and_empty_masks_are_zero():
    whole = WHOLE, part(0, 0, 100, 100), 0, False
    assert judged(whole)["segm"]["AP"] == 0 and judged(whole, found=[(WHOLE, FULL * 0, 0, 0.9)])["segm"]["AP"] == 0
    assert "segm" not in evaluate({}, {"x": make_target([WHOLE], [0], [False], "x", (100, 100))}, ["a"])


@pytest.mark.skipif(not TINY.is_dir(), reason=f"{TINY} is not here")
def test_random_detections_on_coco_tiny_agree_with_pycocotools_used_plainly(tmp_path):
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    path, images = choose_pair(TINY, "val")
    values = json.loads(path.read_text())
    values["images"] = values["images"][:12]
    values["annotations"] = [each for each in values["annotations"] if each["image_id"] in {image["id"] for image in values["images"]}]
    values["categories"] = [each for each in values["categories"] if each["id"] in {annotation["category_id"] for annotation in values["annotations"]}]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(values))
    dataset, detections, generator = COCODataset(path, images, with_masks=True), {}, torch.Generator().manual_seed(0)
    for image_id, target in dataset.truth().items():
        count, (height, width) = len(target["boxes"]), target["orig_size"]
        boxes = target["boxes"].float() + torch.randn(count, 4, generator=generator) * 3
        boxes = torch.stack([side.clamp(0, limit) for side, limit in zip(boxes.unbind(1), (width, height) * 2)], 1)
        boxes[:, 2:] = boxes[:, 2:].maximum(boxes[:, :2] + 1)
        grids = [grid_of(decode_rle(rle, (height, width)), box) for rle, box in zip(target["masks"], boxes, strict=True)]
        grids = torch.stack(grids) if grids else torch.zeros(0, 28, 28)
        detections[image_id] = {"boxes": boxes, "scores": torch.rand(count, generator=generator), "labels": target["labels"], "masks": grids}
    metrics = evaluate(detections, dataset.truth(), dataset.classes)
    sizes = {id: dataset.size(index) for index, id in enumerate(dataset.ids)}
    with contextlib.redirect_stdout(io.StringIO()):
        plain = COCO(str(path))
        results = coco_results(detections, dataset.category_ids, dataset.image_ids, sizes)
        judge = COCOeval(plain, plain.loadRes([{name: value for name, value in result.items() if name != "bbox"} for result in results]), "segm")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert [-1 if value is None else value for value in metrics["segm"].values()] == pytest.approx(judge.stats.tolist(), abs=1e-9)
    assert 0.3 < metrics["segm"]["AP"] < 0.95


def grid_of(mask, box):
    """The [28, 28] grid that shows a mask within a box."""
    x1, y1, x2, y2 = (int(edge) for edge in box.round())
    part = mask[y1:max(y2, y1 + 1), x1:max(x2, x1 + 1)].float()
    return torch.nn.functional.interpolate(part[None, None], (28, 28), mode="area")[0, 0] if part.numel() else torch.zeros(28, 28)


# drawing

def test_a_mask_is_tinted_within_and_solid_along_its_rim_and_leaves_the_rest_alone():
    mask = rectangle(20, 10, 80, 40)
    drawn = np.asarray(draw_detections(Image.new("RGB", (100, 50), (128, 128, 128)), [[20, 10, 80, 40]], ["a"], plates=False, masks=mask[None]))
    plain = np.asarray(draw_detections(Image.new("RGB", (100, 50), (128, 128, 128)), [[20, 10, 80, 40]], ["a"], plates=False))
    colour = np.array(class_colours(1)[0])
    assert (drawn[~mask.numpy().astype(bool)] == plain[~mask.numpy().astype(bool)]).all()
    assert np.abs(drawn[25, 50] - (TINT * colour + (1 - TINT) * 128)).max() <= 2
    assert np.abs(drawn[25, 20].astype(int) - colour).max() < np.abs(drawn[25, 50].astype(int) - colour).max() / 2


def test_masks_at_the_border_full_and_empty_ones_are_drawn():
    grey = Image.new("RGB", (40, 30), (128, 128, 128))
    masks = torch.stack([torch.ones(30, 40), torch.zeros(30, 40), rectangle(39, 29, 40, 30, (30, 40))]).bool()
    drawn = np.asarray(draw_detections(grey, torch.zeros(3, 4), ["a", "b", "c"], plates=False, masks=masks))
    assert (drawn[15, 20] != 128).any() and drawn.shape == (30, 40, 3)
    assert draw_detections(grey, [], [], masks=torch.zeros(0, 30, 40)).tobytes() == grey.tobytes()


# the commands

class MaskNetwork(ColourNetwork):
    """Its masks fill their boxes, as the rectangles of these tests do."""

    def find(self, image):
        found = super().find(image)
        return found | {"masks": torch.ones(len(found["labels"]), 28, 28)}


@pytest.fixture
def mask_network(tmp_path, monkeypatch):
    """(checkpoint, json, folder of pictures): two pictures of 128 x 96, the first with two objects, each with its mask."""
    monkeypatch.chdir(tmp_path)
    checkpoint = colour_checkpoint(tmp_path / "best.pth", monkeypatch)
    monkeypatch.setattr("model.build_model", MaskNetwork)
    monkeypatch.setattr("model.needs_masks", lambda name: True)
    boxes = (16, 8, 56, 48), (64, 32, 120, 88)
    draw_picture(tmp_path / "in" / "1.png", *boxes)
    draw_picture(tmp_path / "in" / "2.png")
    annotations = [{"id": row, "image_id": 1, "category_id": (30, 10)[row], "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]} for row, (x1, y1, x2, y2) in enumerate(boxes)]
    (tmp_path / "a.json").write_text(json.dumps({
        "images": [{"id": number, "file_name": f"{number}.png"} for number in (1, 2)], "annotations": annotations,
        "categories": [{"id": 30, "name": "disc"}, {"id": 10, "name": "slab"}]}))
    return checkpoint, tmp_path / "a.json", tmp_path / "in"


def test_eval_coco_prints_and_writes_both_sets_of_twelve_numbers(mask_network, tmp_path, capsys):
    checkpoint, path, images = mask_network
    metrics = eval_coco.main(["--checkpoint", checkpoint, "--json", str(path), "--images", str(images), "--device", "cpu", "--workers", "0",
                              "--output", "out"])
    assert metrics["mAP"] == pytest.approx(1) and metrics["segm"]["AP50"] == pytest.approx(1) and metrics["segm"]["AP"] > 0.8
    assert json.loads((tmp_path / "out/metrics.json").read_text())["segm"] == metrics["segm"]
    printed = capsys.readouterr().out
    assert "boxes: AP 1.000" in printed and "masks: AP 0." in printed and "AP masks" in printed
    results = json.loads((tmp_path / "out/detections.json").read_text())
    assert sorted(result["category_id"] for result in results) == [10, 30]
    assert all(result["image_id"] == 1 and coco_mask.decode(result["segmentation"]).shape == (96, 128) for result in results)
    assert len(list((tmp_path / "out/pictures").glob("*.jpg"))) == 2


def test_detect_writes_masks_and_draws_them(mask_network):
    checkpoint, _, images = mask_network
    first, second = detect.main([str(images), "--checkpoint", checkpoint, "--device", "cpu", "--output", "found"])
    disc, = (found for found in first["detections"] if found["label"] == "disc")
    assert (extent(decode_rle(disc["segmentation"], (96, 128))) - torch.tensor(disc["box"])).abs().max() <= 1 and not second["detections"]
    drawn = Image.open("found/1.png").convert("RGB")
    assert drawn.getpixel((36, 28)) != COLOURS[0] and drawn.getpixel((5, 90)) == (110, 110, 110)


def test_training_opens_the_masks_that_the_network_needs_and_hands_them_over(mask_network, tmp_path, monkeypatch):
    _, path, images = mask_network
    monkeypatch.undo()
    seen, forward = [], FCOS.forward
    monkeypatch.setattr("model.needs_masks", lambda name: True)
    monkeypatch.setattr("model.fcos.FCOS.forward", lambda self, *arguments: (seen.append(arguments), forward(self, *arguments))[1])
    train_coco.main(["--train-json", str(path), "--train-images", str(images), "--output", str(tmp_path / "run"), "--max-steps", "1", "--epochs", "1",
                     "--batch-size", "2", "--min-size", "64", "--max-size", "96", "--backbone", "resnet18", "--weights", "none", "--channels", "32",
                     "--levels", "3", "--head-convs", "1", "--workers", "0", "--device", "cpu"])
    images, _, targets = seen[0]
    assert unpack_bits(targets["masks"]).shape == (*targets["labels"].shape, *images.shape[-2:]) and targets["masks"].any()


def test_the_truth_of_masks_is_without_labels_of_a_network(write, tmp_path):  # noqa: F811
    values = segmented(_0=POLYGON, _5=CROWD)
    values["annotations"][0]["ispseudo"] = True
    truth = COCODataset(write(values), tmp_path, with_masks=True).truth()["0"]
    assert len(truth["boxes"]) == len(truth["masks"]) == 1 and torch.equal(decode_rle(truth["masks"][0], SIZE), rectangle(0, 0, 2, 10))
