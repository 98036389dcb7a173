import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dataset.augment import Augment
from dataset.loader import TrainLoader, collate, eval_loader
from dataset.pictures import Pictures
from dataset.sample import make_target
from dataset.voc import VOCDataset

ROOT = Path(__file__).resolve().parent.parent
AUGMENT = Augment(zoom=(0.5, 1.5), mosaic=0.3, rotate_probability=0.5)


@pytest.fixture
def dataset(tmp_path, voc_maker):
    return VOCDataset(voc_maker(tmp_path / "voc", 20), "train")


def loader(dataset, batch_size=2, **keywords):
    return TrainLoader(dataset, AUGMENT, batch_size, (64, 96), 160, **{"seed": 5, **keywords})


def assert_same(first, second):
    assert len(first) == len(second)
    for (batch, infos), (other, other_infos) in zip(first, second, strict=True):
        assert infos == other_infos and batch.keys() == other.keys()
        assert all(torch.equal(batch[key], other[key]) for key in batch)


def test_collate_pads_right_and_bottom_to_a_multiple_of_32():
    two_objects = make_target([[0, 0, 5, 5], [1, 1, 3, 3]], [1, 0], [True, False], "wide", (66, 128))
    wide = torch.full((3, 33, 64), 7, dtype=torch.uint8), two_objects
    tall = torch.full((3, 40, 20), 9, dtype=torch.uint8), make_target([], [], [], "tall", (40, 20))
    batch, infos = collate([wide, tall])
    assert batch["images"].shape == (2, 3, 64, 64) and batch["images"].dtype == torch.uint8
    assert batch["image_sizes"].tolist() == [[33, 64], [40, 20]]
    assert (batch["images"][1, :, :40, :20] == 9).all() and batch["images"][1].sum() == 9 * 3 * 40 * 20
    assert batch["labels"].tolist() == [[1, 0], [-1, -1]] and batch["weights"].tolist() == [[1, 1], [0, 0]]
    assert batch["uncounted"].tolist() == [[True, False], [False, False]]          # the difficult one
    assert batch["boxes"].shape == (2, 2, 4) and not batch["ignore"].any() and batch["ignore"].shape == (2, 2)
    assert infos == [{"image_id": "wide", "orig_size": (66, 128), "window": (0, 0, 128, 66)},
                     {"image_id": "tall", "orig_size": (40, 20), "window": (0, 0, 20, 40)}]


def test_a_batch_without_any_object_still_has_a_row():
    batch, _ = collate([(torch.zeros(3, 32, 32, dtype=torch.uint8), make_target([], [], [], "x", (32, 32)))])
    assert batch["boxes"].shape == (1, 1, 4) and batch["labels"].tolist() == [[-1]]
    assert batch["images"].shape == (1, 3, 32, 32)


def test_batches_do_not_depend_on_the_number_of_workers_nor_on_where_the_epoch_began(dataset):
    whole = list(loader(dataset).batches(3))
    assert len(whole) == len(loader(dataset)) == 5
    for workers in (0, 1, 2):
        each = loader(dataset, workers=workers)
        abandoned = each.batches(2)
        next(abandoned)
        abandoned.close()
        assert_same(list(each.batches(3)), whole)
        assert_same(list(each.batches(3, first=2)), whole[2:])


def test_epochs_and_seeds_differ_and_each_epoch_shows_each_picture_once(dataset):
    def ids(**keywords):
        epoch = keywords.pop("epoch", 0)
        return [info["image_id"] for _, infos in loader(dataset, **keywords).batches(epoch) for info in infos]
    assert sorted(ids()) == sorted(dataset.ids)
    assert ids() == ids() and ids() != ids(epoch=1) and ids() != ids(seed=6)


def test_the_loader_leaves_the_global_random_numbers_alone(dataset):
    torch.manual_seed(0)
    expected = torch.rand(3)
    for workers in (0, 1):
        torch.manual_seed(0)
        list(loader(dataset, workers=workers).batches(0))
        assert torch.equal(torch.rand(3), expected)


def test_two_ranks_together_see_what_one_process_sees(dataset):
    whole = list(loader(dataset, batch_size=4).batches(1))
    ranks = [list(loader(dataset, rank=rank, world_size=2).batches(1)) for rank in (0, 1)]
    assert len(whole) == len(ranks[0]) == len(ranks[1]) == 2
    for (_, infos), *parts in zip(whole, *ranks, strict=True):
        assert infos == [info for _, part_infos in parts for info in part_infos]
    assert torch.equal(ranks[1][0][0]["image_sizes"], whole[0][0]["image_sizes"][2:])


def test_a_data_set_smaller_than_a_batch_is_repeated_with_other_augmentation(dataset):
    (batch, infos), = loader(dataset, batch_size=13).batches(0)
    assert len(infos) == 13 and infos[0]["image_id"] == infos[10]["image_id"]
    assert not torch.equal(batch["images"][0], batch["images"][10])


def test_each_batch_has_one_size(dataset):
    sizes = {tuple(sorted(set(batch["image_sizes"][:, 0].tolist()))) for epoch in range(3)
             for batch, _ in loader(dataset).batches(epoch)}
    assert sizes == {(64,), (96,)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_breaks_during_training_is_one_sentence_from_any_worker(dataset, workers):
    dataset.pictures[3].write_bytes(b"gone")
    sentence = None
    try:  # pytest.raises would keep the loader in a reference cycle, and torch then waits 5 s for its worker
        list(loader(dataset, workers=workers).batches(0))
    except ValueError as error:
        sentence = str(error)
    assert sentence == f"{dataset.pictures[3]}: is no picture of a known kind"


def test_a_broken_target_is_named_before_it_reaches_the_network(dataset):
    dataset._labels[0] = 7
    with pytest.raises(ValueError, match="object .* must have a label in 0..1"):
        list(TrainLoader(dataset, Augment(rotate=0, jitter=0), 2, (96,), 160).batches(0))


def test_everything_a_worker_gets_can_be_pickled(dataset):
    for each in (loader(dataset), eval_loader(dataset, 64, 160)):
        pickle.loads(pickle.dumps(each._loader.dataset))


def test_evaluation_shows_each_picture_once_resized_and_without_targets(dataset):
    for workers in (0, 2):
        batches = list(eval_loader(dataset, 64, 160, batch_size=4, workers=workers))
        infos = [info for _, each in batches for info in each]
        assert sorted(info["image_id"] for info in infos) == sorted(dataset.ids)
        assert all(info["window"] == (0, 0, 128, 96) and info["orig_size"] == (96, 128) for info in infos)
        assert {batch.keys() == {"images", "image_sizes"} for batch, _ in batches} == {True}
        assert batches[0][0]["images"].shape == (4, 3, 64, 96)
        assert batches[0][0]["image_sizes"].tolist() == [[64, 85]] * 4
        assert len(batches) == len(eval_loader(dataset, 64, 160, batch_size=4)) == 3


def test_large_pictures_share_a_batch_with_fewer_others(dataset, monkeypatch):
    for most, sizes in ((64 * 85 * 2.5, [2] * 5), (64 * 85 * 3, [3, 3, 3, 1]), (10, [1] * 10)):
        monkeypatch.setattr("dataset.loader.MOST_PIXELS", most)
        assert [len(infos) for _, infos in eval_loader(dataset, 64, 160, batch_size=4)] == sizes
    monkeypatch.setattr("dataset.loader.MOST_PIXELS", 64 * 64)
    assert {len(infos) for _, infos in eval_loader(dataset, 1, 1, tile=64, batch_size=4)} == {1}


def test_tiles_show_every_pixel_at_full_resolution(dataset):
    seen = {id: torch.full((3, 96, 128), -1, dtype=torch.int16) for id in dataset.ids}
    for batch, infos in eval_loader(dataset, 1, 1, tile=64, overlap=0.25, batch_size=4, workers=1):
        for image, size, info in zip(batch["images"], batch["image_sizes"].tolist(), infos, strict=True):
            x1, y1, x2, y2 = info["window"]
            assert size == [y2 - y1, x2 - x1]
            seen[info["image_id"]][:, y1:y2, x1:x2] = image[:, : y2 - y1, : x2 - x1]
    for index, id in enumerate(dataset.ids):
        assert torch.equal(seen[id], dataset[index][0].short())


def test_pictures_without_annotations_go_through_the_same_door_in_like_shapes(voc_folder, tmp_path):
    from PIL import Image
    for number in range(3):
        Image.new("RGB", (40, 90)).save(tmp_path / f"tall{number}.png")
    pictures = Pictures([voc_folder / "JPEGImages", tmp_path])
    batches = list(eval_loader(pictures, 64, 160, batch_size=3))
    shapes = [{tuple(size) for size in batch["image_sizes"].tolist()} for batch, _ in batches]
    assert len(batches) == 5 and all(len(each) == 1 for each in shapes)


@pytest.mark.parametrize("start", ["fork", "forkserver"])           # the latter from Python 3.14 on
def test_workers_leave_signals_to_the_main_process_and_end_when_it_says_so(dataset, start):
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(start, force=True)
    try:
        each = loader(dataset, workers=2)
        batches = each.batches(0)
        next(batches)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    workers = each._loader._iterator._workers
    for number in (signal.SIGINT, signal.SIGTERM):                  # from another process than theirs
        subprocess.run(["kill", f"-{int(number)}", *(str(worker.pid) for worker in workers)], check=True)
    assert len(list(batches)) == len(each) - 1
    assert all(worker.is_alive() for worker in workers)
    workers[0].terminate()
    workers[0].join(10)
    assert workers[0].exitcode == 0


EARLY = """
import multiprocessing, subprocess
from dataset.loader import _Batches, _data_loader, _started

class Bad(_Batches):
    def samples(self, job):
        raise ValueError(f"job {job}")

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    batches = _started(_data_loader(Bad(), range(4), 2, False))
    subprocess.run(["kill", "-15", *(str(worker.pid) for worker in batches._workers)], check=True)
    print([loaded.complaint for loaded in batches], all(worker.is_alive() for worker in batches._workers))
"""


def test_workers_of_a_fork_server_leave_signals_to_the_main_process_while_they_start_too(tmp_path):
    (tmp_path / "early.py").write_text(EARLY)
    done = subprocess.run([sys.executable, "early.py"], capture_output=True, text=True, cwd=tmp_path, timeout=100, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout == "['job 0', 'job 1', 'job 2', 'job 3'] True\n", done.stderr


def test_memory_is_pinned_only_for_who_asks(dataset):
    for make in (loader, lambda data, **options: eval_loader(data, 64, 160, **options)):
        assert not make(dataset)._loader.pin_memory and make(dataset, pin_memory=True)._loader.pin_memory
