"""The online mode: what a detection is taken for, from its agreement with kept labels alone; burn-in, ramp, warnings, resume; the strong view."""
import copy
import random

import pytest
import torch
from colour_network import refusal
from test_train_voc import TINY, rows, same_weights, train

import dataset.strong_view
import engine.teacher
import train_voc
from dataset.augment import MEAN_COLOUR
from dataset.loader import collate
from dataset.sample import make_target
from engine.checkpoint import load_checkpoint
from engine.teacher import CHECKED_STEPS, Teacher, explain, repeats


def teacher(keep_rate=0.5, burn_in=0.0, pseudo_weight=1.0, num_classes=2):
    said = []
    return Teacher(num_classes, burn_in, keep_rate, pseudo_weight, said.append), said


def targets_of(*pictures):
    """[[(box, label) or (box, label, uncounted)]] of each picture -> targets, padded."""
    rows = max(1, *map(len, pictures))
    targets = {"boxes": torch.zeros(len(pictures), rows, 4), "labels": torch.full((len(pictures), rows), -1), "weights": torch.zeros(len(pictures), rows),
               "ignore": torch.zeros(len(pictures), rows, dtype=torch.bool), "zone_ignore": torch.zeros(len(pictures), rows, dtype=torch.bool),
               "uncounted": torch.zeros(len(pictures), rows, dtype=torch.bool)}
    for picture, objects in enumerate(pictures):
        for row, (box, label, *uncounted) in enumerate(objects):
            targets["boxes"][picture, row], targets["labels"][picture, row], targets["weights"][picture, row] = torch.tensor(box), label, 1
            targets["uncounted"][picture, row] = any(uncounted)
    return targets


def found(*objects):
    """[(box, label, score)] -> the detections of a picture."""
    boxes, labels, scores = zip(*objects, strict=True) if objects else ((), (), ())
    return {"boxes": torch.tensor(boxes).reshape(-1, 4).float(), "labels": torch.tensor(labels, dtype=torch.int64), "scores": torch.tensor(scores).float()}


def test_what_a_kept_box_explains_by_hand():
    targets = targets_of([((0.0, 0, 40, 40), 0), ((100.0, 0, 200, 100), 1), ((300.0, 0, 400, 100), 0)])
    targets["ignore"][0, 2] = True
    cases = [((0, 0, 40, 30), 0, True, False),          # IoU .75, its class: a hit
             ((0, 0, 40, 20), 0, False, False),         # IoU .5 is not over .5, but it lies inside: a part
             ((0, 0, 40, 31), 1, False, False),         # of another class, IoU over .75
             ((0, 0, 40, 30), 1, False, True),          # of another class, IoU .75: it may be real
             ((-30, -30, 70, 70), 0, False, False),     # around the kept box: a group
             ((110, 10, 120, 20), 0, False, True),      # inside an object of another class
             ((60, 60, 90, 90), 0, False, True),        # nothing near
             ((340, 20, 360, 50), 1, False, False),     # in a region to ignore
             ((390, 0, 420, 100), 0, False, True),      # a third of it in the region
             ((5, 5, 5, 5), 0, False, True)]            # without area
    boxes, labels = torch.tensor([[case[0] for case in cases]]).float(), torch.tensor([[case[1] for case in cases]])
    hit, free = explain(boxes, labels, targets)
    assert hit[0].tolist() == [case[2] for case in cases] and free[0].tolist() == [case[3] for case in cases]
    assert not explain(boxes, torch.full_like(labels, -1), targets)[1].any()
    targets["zone_ignore"][0, 0] = True             # a zone explains nothing
    assert explain(boxes, labels, targets)[1][0, :3].all()


def test_what_lies_on_a_surer_detection_is_no_second_one():
    boxes = torch.tensor([[[0.0, 0, 100, 100], [0, 0, 100, 51], [0, 0, 100, 50], [0, 0, 100, 76], [0, 0, 100, 75], [0, 0, 0, 0]]])
    labels, scores = torch.tensor([[0, 0, 0, 1, 2, -1]]), torch.tensor([[0.5, 0.4, 0.9, 0.3, 0.2, 0.0]])
    among = torch.ones(1, 6, dtype=torch.bool)
    # the second lies on the third (IoU 0.98) and on the first (0.51), which itself has 0.5 with the third; the fourth on the first (0.76), the fifth on the fourth
    assert repeats(boxes, scores, labels, among).tolist() == [[False, True, False, True, True, False]]
    among[0, [0, 2]] = False
    assert repeats(boxes, scores, labels, among).tolist() == [[False, False, False, False, True, False]]
    assert not repeats(boxes[:, :0], scores[:, :0], labels[:, :0], among[:, :0]).any() and not repeats(boxes, torch.ones(1, 6), labels, among).any()


@pytest.mark.parametrize("field", ["sought", "difficult"])
def test_what_is_labelled_or_in_view_not_by_chance_explains_but_is_not_counted(field):
    target = make_target([(0, 0, 40, 40), (100, 0, 140, 40)], [0, 0], [False, False], "x", (64, 160))
    batch, _ = collate([(torch.zeros(3, 64, 160, dtype=torch.uint8), {**target, field: torch.tensor([True, False])})])
    targets = {name: tensor for name, tensor in batch.items() if name not in ("images", "image_sizes")}
    hit, free = explain(targets["boxes"], torch.zeros(1, 2, dtype=torch.int64), targets)
    assert hit.tolist() == [[False, True]] and not free.any()
    judge, _ = teacher()
    detections = [found(*[(tuple(box), 0, 0.9) for box in targets["boxes"][0].tolist()], ((60.0, 0, 90, 40), 0, 0.9))]
    for _ in range(8):
        filled, _ = judge(detections, targets, 0.5)
    counted = sum(engine.teacher.MEMORY ** step for step in range(8))            # a step: one hit, one other, one kept box
    assert judge.state["counts"].sum(0)[[90, 190, -1]].tolist() == pytest.approx([counted] * 3) and judge.state["counts"].sum() == pytest.approx(3 * counted)
    assert filled["labels"].tolist() == [[0, 0, 0]] and filled["uncounted"][0, -1].item() is False          # what the teacher adds is not one of these


def test_how_likely_by_hand(monkeypatch):
    # Half of the labels are kept. Of class 0, at .9: 60 hits and 59 others, all of them real; at .5: 20 hits and 179 others, of which 20 are.
    # Class 1 has at .5 one hit and nothing else: alone it would be believed, together with class 0 it is not.
    monkeypatch.setattr(engine.teacher, "NEAR", 0.001)         # nothing is near but the score itself
    judge, _ = teacher(keep_rate=0.5)
    hit, labels, bins = torch.tensor([[True] * 60 + [False] * 59 + [True] * 20 + [False] * 179 + [True]]), torch.zeros(1, 319, dtype=torch.int64), torch.full((1, 319), 90)
    bins[0, 119:], labels[0, -1] = 50, 1
    likely = judge.likely(hit, ~hit, labels, bins, torch.zeros(1, 160, dtype=torch.int64), torch.ones(1, 160, dtype=torch.bool))
    assert likely[0, 90:].tolist() == pytest.approx([1] * 10) and likely[:, :50].sum() == 0        # nothing seen there
    assert likely[1, 50:90].tolist() == pytest.approx([21 / 180] * 40)
    assert likely[0, 50:90].tolist() == pytest.approx([(20 + 5 * 21 / 180) / 184] * 40)
    judge.keep_rate = 0.8
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    later = judge.likely(nothing.bool(), nothing.bool(), nothing, nothing, nothing, nothing.bool())
    assert later[0, 90].item() == pytest.approx(0.25, abs=0.01) and later[1, 50].item() == pytest.approx(21 / 4 / 180, abs=0.01)


def test_what_is_near_a_score_counts_there_too():
    judge, _ = teacher(keep_rate=0.5)
    hit = torch.tensor([[True] * 50 + [False] * 100])
    bins = torch.where(hit, 80, 70)                             # the hits score higher: between the two it is the less likely the lower
    likely = judge.likely(hit, ~hit, torch.zeros_like(bins), bins, torch.zeros_like(bins), hit)
    assert likely[0, 60] < likely[0, 70] < 0.5 < likely[0, 80] <= likely[0, 90] and (likely.diff() >= 0).all() and torch.isfinite(likely).all()


def world(rng, keep, learnt, difficult=0.0, empty_score=0.25, pictures=4):
    """(detections, targets, for each detection without a kept box whether it is real): objects on a grid, detected with high scores,
    and places without an object, detected with low ones; those which keep a label score higher by `learnt` than the others. A share of
    the objects is difficult, and keeps its label always."""
    truth, results, kept_of = [], [], []
    for _ in range(pictures):
        objects, kept, real = [], [], []
        for place in range(16):
            x, y = 50.0 * (place % 4), 50.0 * (place // 4)
            box, label, is_object = (x, y, x + 30, y + 30), place % 2, rng.random() < 0.5
            score = min(max(rng.gauss(0.6, 0.15) if is_object else rng.gauss(empty_score, 0.15), 0.0), 1.0)
            is_difficult = is_object and difficult > 0 and rng.random() < difficult
            if is_difficult or is_object and rng.random() < keep:
                kept.append((box, label, is_difficult))
                score = min(score + learnt, 1.0)
            else:
                real.append((box, is_object))
            objects.append((box, label, score))
        truth.append(dict(real))
        results.append(found(*objects))
        kept_of.append(kept)
    return results, targets_of(*kept_of), truth


@pytest.mark.parametrize("keep, known, learnt", [(0.3, True, 0), (0.3, True, 0.2), (0.1, True, 0.2), (0.3, False, 0), (0.7, False, 0)])
def test_what_is_added_is_as_often_real_as_it_says_and_most_of_what_is_missing_is_found(keep, known, learnt):
    judge, said = teacher(keep_rate=keep if known else None)
    rng, added, real, missing, open_ = random.Random(0), 0, 0, 0, 0
    for step in range(120):
        detections, targets, truth = world(rng, keep, learnt)
        filled, numbers = judge(detections, targets, 0.5)
        assert torch.equal(filled["boxes"][:, :targets["boxes"].shape[1]], targets["boxes"])        # kept labels come first, untouched
        if step < 40:
            continue
        new = slice(targets["boxes"].shape[1], None)
        for boxes, labels, zones, weights, places in zip(*(filled[name][:, new] for name in ("boxes", "labels", "zone_ignore", "weights")), truth, strict=True):
            positive = (labels >= 0) & ~zones
            assert (weights[positive] >= 0.6).all() and (weights[~positive] == 0).all()
            is_real = [places[tuple(box.tolist())] for box in boxes[positive]]
            added, real, missing = added + len(is_real), real + sum(is_real), missing + sum(places.values())
            open_ += sum(places[tuple(box.tolist())] for box in boxes[zones])
    assert real / added > (0.9 if known else 0.85) and real / missing > 0.3 and (real + open_) / missing > (0.55 if learnt else 0.9)
    assert float(judge.rate()) == pytest.approx(keep, abs=0.1) and not said


def test_difficult_objects_which_are_all_labelled_do_not_make_the_others_more_likely():
    judge, _ = teacher(keep_rate=0.3)
    rng, added, real, believed = random.Random(0), 0, 0, 0.0
    for step in range(150):
        detections, targets, truth = world(rng, 0.3, 0, difficult=0.3, empty_score=0.45)
        filled, _ = judge(detections, targets, 0.5)
        new = slice(targets["boxes"].shape[1], None)
        for boxes, weights, places in zip(filled["boxes"][:, new], filled["weights"][:, new], truth, strict=True):
            if step >= 50:
                is_real = [places[tuple(box.tolist())] for box in boxes[weights > 0]]
                added, real, believed = added + len(is_real), real + sum(is_real), believed + float(weights.sum())
    assert added > 300 and real / added == pytest.approx(believed / added, abs=0.07)


def surely(judge, steps, progress, kept=5, free=2, score=0.9):
    """The last answer of a teacher that sees, so often, `kept` objects found and `free` without a label."""
    places = [((40.0 * k, 0.0, 40.0 * k + 30, 30.0), 0) for k in range(kept + free)]
    for _ in range(steps):
        answer = judge([found(*[(*place, score) for place in places])], targets_of(places[:kept]), progress)
    return answer


def test_burn_in_then_zones_then_a_ramp_then_the_whole_weight():
    judge, _ = teacher(burn_in=0.2, pseudo_weight=0.5)
    assert not judge.active(0.0999) and judge.active(0.1)
    added = {}
    for progress in (0.1, 0.2, 0.25, 0.3, 1.0):
        filled, numbers = surely(judge, 60, progress)
        added[progress] = filled["weights"][0, 5:].tolist(), filled["zone_ignore"][0, 5:].tolist(), numbers
    assert added[0.1] == added[0.2] == ([0, 0], [True, True], {"pseudo": 0, "zones": 2})
    assert added[0.25][0] == pytest.approx([0.25, 0.25]) and added[0.25][1] == [False, False]
    assert added[0.3] == added[1.0] == ([0.5, 0.5], [False, False], {"pseudo": 2, "zones": 0})


def test_no_detections_no_labels_and_no_pictures_with_any_change_nothing():
    judge, _ = teacher()
    targets = targets_of([((0.0, 0, 40, 40), 0)], [])
    filled, numbers = judge([found(), found()], targets, 0.5)
    assert all(torch.equal(filled[name], targets[name]) for name in targets) and numbers == {"pseudo": 0, "zones": 0}
    targets["masks"] = torch.ones(2, 1, 4, 4, dtype=torch.uint8)
    for _ in range(30):
        filled, _ = judge([found(((0.0, 0, 40, 40), 0, 0.9), ((90.0, 0, 99, 40), 0, 0.9)), found()], targets, 0.5)
    assert filled["masks"].shape == (2, 2, 4, 4) and not filled["masks"][:, 1].any()        # what a teacher does not give is 0
    assert filled["labels"].tolist() == [[0, 0], [-1, -1]]
    assert teacher()[0]([found(((0.0, 0, 9, 9), 1, 0.5)), found()], targets_of([], []), 0.5)[0]["labels"].shape[1] == 1


def test_complete_labels_get_no_boxes_and_a_warning_at_once_and_then_less_and_less_often():
    judge, said = teacher(keep_rate=None)
    _, numbers = surely(judge, CHECKED_STEPS - 1, 0.5, free=0)
    assert numbers == {"pseudo": 0, "zones": 0} and not said
    surely(judge, 1, 0.5, free=0)
    assert len(said) == 1 and said[0].startswith(
        "WARNING: the teacher has not added one pseudo box in the last 50 steps (kept boxes 5.00 a picture, keep rate 1.00 as estimated)")
    for step in range(CHECKED_STEPS + 1, 751):
        before = len(said)
        surely(judge, 1, 0.5, free=0)
        assert len(said) == before + (step in (150, 350, 750))


def test_boxes_that_vanish_or_explode_late_are_told_of_within_two_checks_and_also_after_a_resume():
    judge, said = teacher(keep_rate=0.5)
    surely(judge, 160, 0.5)
    resumed, said_then = teacher(keep_rate=0.5)
    resumed.state = copy.deepcopy(judge.state)
    surely(judge, 89, 0.5, free=0)
    assert not said                                         # steps 151 to 200 had some
    surely(judge, 1, 0.5, free=0)
    assert len(said) == 1 and "has not added one pseudo box in the last 50 steps" in said[0]
    judge.likely = resumed.likely = lambda *_: torch.ones(2, 100)
    surely(judge, 50, 0.5, kept=1, free=9)                  # another warning: the pause of the first is not its own
    assert len(said) == 2 and "adds 9.00 pseudo boxes a picture" in said[1]
    surely(resumed, 90, 0.5, kept=1, free=9)
    assert len(said_then) == 1 and "adds 9.00 pseudo boxes a picture, over 3 times" in said_then[0]


def test_more_boxes_than_there_can_be_objects_are_told_of():
    judge, said = teacher(keep_rate=0.5)
    judge.likely = lambda *_: torch.ones(2, 100)            # a teacher that believes itself
    surely(judge, CHECKED_STEPS, 0.5, kept=1, free=6)
    assert not said
    surely(judge, CHECKED_STEPS, 0.5, kept=1, free=7)
    assert said[0].startswith("WARNING: the teacher adds 7.00 pseudo boxes a picture, over 3 times as many as there can be objects (kept boxes 1.00 a picture, keep rate 0.50)")
    judge, said = teacher(keep_rate=0.5, burn_in=0.5)
    surely(judge, 2 * CHECKED_STEPS, 0.5, kept=1, free=7)
    assert not said                                            # before the burn-in is over nothing is expected


# The strong view

def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def strong_view(images, sizes, seed):
    torch.manual_seed(seed)
    return dataset.strong_view.strong_view(images, sizes)


def test_a_strong_view_is_another_picture_of_the_same_size_for_each_seed_and_the_same_for_one():
    images, sizes = noise(3, 3, 64, 96), torch.tensor([[64, 96], [50, 60], [1, 1]])
    first, again, other = (strong_view(images, sizes, seed) for seed in (1, 1, 2))
    assert first.dtype == torch.uint8 and first.shape == images.shape and torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], images[0])


def test_a_strength_of_nothing_leaves_the_pixels_and_only_patches_are_erased(monkeypatch):
    monkeypatch.setattr(dataset.strong_view, "STRENGTH", 0.0)
    monkeypatch.setattr(dataset.strong_view, "GREY_SHARE", 0.0)
    images, sizes = noise(40, 3, 64, 96), torch.tensor([[64, 96]] * 40)
    colour = torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None]
    seen = strong_view(images, sizes, 3)
    erased = (seen == colour).all(1)
    assert torch.equal(seen, torch.where(erased[:, None], colour, images))
    assert 0.005 < erased.float().mean() < 0.06 and erased.flatten(1).float().mean(1).max() <= 3 * 0.21 ** 2 and (erased.flatten(1).sum(1) == 0).any()
    monkeypatch.setattr(dataset.strong_view, "PATCH_SIDE", (0.0, 0.0))
    assert torch.equal(strong_view(images, sizes, 3), images)


def test_grey_pictures_keep_three_equal_channels_and_their_mean_without_brightness(monkeypatch):
    monkeypatch.setattr(dataset.strong_view, "PATCH_SIDE", (0.0, 0.0))
    images = noise(1, 1, 32, 32).clamp(100, 150).expand(8, 3, 32, 32).contiguous()
    images[:, :, :, 16:] = 0                                   # padding: not part of the mean
    seen = strong_view(images, torch.tensor([[32, 16]] * 8), 0)
    assert (seen.float().std(1) < 1).all()
    spread = seen[:, 0, :, :16].float()
    assert (spread.mean((1, 2)) > 50).all() and (spread.mean((1, 2)).std() > 5)


# The command

ONLINE = ("--teacher", "ema", "--burn-in", "0", "--keep-rate", "0.3", "--score-threshold", "0.001", "--val-split", "none")


def test_the_online_mode_logs_its_boxes_and_is_resumed_as_if_unbroken(tmp_path, voc_folder, monkeypatch):
    monkeypatch.setattr(engine.teacher, "SAME_CLASS_IOU", 0.1)             # an untrained network hits nothing else
    whole = train(voc_folder, tmp_path / "whole", *ONLINE)
    added = [float(row["pseudo"]) + float(row["zones"]) for row in rows(tmp_path / "whole")]
    assert len(added) == 2 and min(added) > 0 and whole["training"]["teacher"]["counts"].sum() > 0
    assert train(voc_folder, tmp_path / "broken", *ONLINE, "--max-steps", 3)["training"]["step"] == 3
    train_voc.main(["--resume", str(tmp_path / "broken/last.pth")])
    resumed = load_checkpoint(tmp_path / "broken/last.pth")
    assert same_weights(whole, resumed) and torch.equal(whole["training"]["teacher"]["counts"], resumed["training"]["teacher"]["counts"])


def test_another_network_teaches_first_and_then_the_averaged_one_from_counts_of_its_own():
    first, averaged = torch.nn.Identity(), torch.nn.Identity().train()
    judge = Teacher(2, 0.0, 0.5, 1.0, print, first)
    surely(judge, 3, 0.5)
    assert judge.network(averaged, 0.0) is judge.network(averaged, 0.59) is first and judge.state["counts"].sum() > 0
    assert judge.network(averaged, 0.6) is averaged and not averaged.training and judge.state["counts"].sum() == 0
    surely(judge, 1, 0.6)
    assert judge.network(averaged, 0.7) is averaged and judge.state["counts"].sum() > 0       # anew once
    assert teacher()[0].network(averaged, 0.0) is averaged


def test_a_run_with_a_teacher_from_a_file_is_resumed_as_if_unbroken_and_one_of_other_classes_is_refused(tmp_path, voc_folder, monkeypatch, capsys):
    monkeypatch.setattr(engine.teacher, "SAME_CLASS_IOU", 0.1)
    train(voc_folder, tmp_path / "first", "--score-threshold", "0.001", "--val-split", "none")
    file = tmp_path / "first/last.pth"
    flags = "--teacher", file, *ONLINE[4:]
    whole = train(voc_folder, tmp_path / "whole", *flags)
    assert whole["training"]["teacher"]["averaged"] and not same_weights(whole, train(voc_folder, tmp_path / "ema", *ONLINE))
    for step in (2, 3):                             # before the takeover, and after it
        train(voc_folder, tmp_path / f"broken-{step}", *flags, "--max-steps", step)
        train_voc.main(["--resume", str(tmp_path / f"broken-{step}/last.pth")])
        assert same_weights(whole, load_checkpoint(tmp_path / f"broken-{step}/last.pth"))
    other = load_checkpoint(file)
    torch.save({**other, "classes": ["cat", *other["classes"][1:]]}, tmp_path / "other.pth")
    assert "other.pth: has the classes cat, " in refusal(
        train_voc.main, ["--data", str(voc_folder), "--output", str(tmp_path / "no"), *TINY, "--teacher", str(tmp_path / "other.pth")], capsys)
    assert not (tmp_path / "no").exists()


def test_a_burn_in_of_the_whole_run_is_the_strong_view_alone_and_a_teacher_cannot_be_changed(tmp_path, voc_folder, capsys):
    brief = "--max-steps", 1, "--val-split", "none"
    never = train(voc_folder, tmp_path / "never", "--teacher", "ema", "--burn-in", 1, *brief)
    view = train(voc_folder, tmp_path / "view", "--strong-view", "on", *brief)
    assert same_weights(never, view) and view["training"]["teacher"] is None
    assert not same_weights(view, train(voc_folder, tmp_path / "plain", *brief))
    assert "--teacher is ema, but" in refusal(train_voc.main, ["--resume", str(tmp_path / "plain/last.pth"), "--teacher", "ema"], capsys)


@pytest.mark.parametrize("flags, words_of_it", [
    (["--teacher", "ema", "--ema", "0"], "--teacher ema takes the averaged weights, but with --ema 0 there are none"),
    (["--keep-rate", "0"], "--keep-rate: is 0, must be in 0.01..1"), (["--burn-in", "2"], "--burn-in: is 2, must be in 0..1"),
    (["--pseudo-weight", "-1"], "--pseudo-weight: is -1, must be 0 or more"), (["--teacher", "fixed"], "--teacher fixed: is neither none nor ema, and there is no such file")])
def test_a_wrong_flag_ends_in_one_sentence(flags, words_of_it, tmp_path, voc_folder, capsys):
    assert words_of_it in refusal(train_voc.main, ["--data", str(voc_folder), "--output", str(tmp_path / "run"), *TINY, *flags], capsys)


def test_only_ordinary_labels_and_detections_that_there_are_are_counted():
    judge, _ = teacher()
    targets = targets_of([((0.0, 0, 40, 40), 0), ((100.0, 0, 140, 40), 0), ((200.0, 0, 240, 40), 0)], [])
    targets["ignore"][0, 1] = targets["zone_ignore"][0, 2] = True
    judge([found(((300.0, 0, 340, 40), 1, 0.5)), found()], targets, 0.5)
    assert judge.state["counts"].nonzero().tolist() == [[0, 200], [1, 150]] and judge.state["counts"].sum() == 2     # one label, one detection without


def test_the_estimated_keep_rate_has_a_floor():
    judge, _ = teacher(keep_rate=None)
    judge.state["counts"][0, 199], judge.state["counts"][0, 200] = 1000, 2          # a thousand sure ones, and none hits
    assert float(judge.rate()) == pytest.approx(0.05)
