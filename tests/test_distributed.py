"""One gradient, however a batch is split: one device, replicas in one process, ranks under DDP (gloo)."""
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from engine.distributed import RunningCounts, combine, count_devices, everywhere, replicate, select_device
from engine.teacher import Teacher
from model import build_model
from reporting import describe_devices

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"num_classes": 2, "backbone": "regnet_x_400mf", "backbone_freeze": "norm", "fpn_channels": 32}
CONFIGS = {                                 # of two stages all anchors and proposals are samples; were they drawn, each would draw its own
    "fcos": SMALL | {"head_convs": 1, "levels": 3},
    "mask_rcnn": SMALL | {"model": "mask_rcnn", "pyramid": "p3-p5", "box_channels": 32, "mask_convs": 1, "mask_channels": 8, "rpn_samples": 10 ** 4,
                          "rpn_positives": 1.0, "roi_samples": 10 ** 4, "roi_positives": 1.0, "training_proposals": 40}}


def network_and_batch(model):
    torch.manual_seed(0)
    network = build_model(CONFIGS[model])
    # The first two pictures have objects, one many; the last two have none: a rank without positives is an ordinary case.
    boxes = torch.zeros(4, 3, 4)
    boxes[0] = torch.tensor([[4, 4, 30, 40], [30, 10, 60, 50], [0, 0, 64, 64]])
    boxes[1, 0] = torch.tensor([20, 20, 44, 44])
    labels = torch.tensor([[0, 1, 1], [0, -1, -1], [-1] * 3, [-1] * 3])
    no = torch.zeros(4, 3, dtype=torch.bool)
    zones = no.clone()
    zones[0, 2] = True
    weights = torch.tensor([[1, 0.5, 0], [0.25, 0, 0], [0] * 3, [0] * 3])
    targets = {"boxes": boxes, "labels": labels, "weights": weights, "ignore": no, "zone_ignore": zones, "uncounted": no,
               "masks": torch.randint(0, 256, (4, 3, 64, 8), dtype=torch.uint8)}
    return network, torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8), torch.full((4, 2), 64), targets


def part(values, rows):
    return {name: tensor[rows] for name, tensor in values.items()}


def taught(targets, rows):
    """The weights of some pictures' labels with the rows that a teacher adds, who finds what is labelled, and one thing more in each picture."""
    more = torch.tensor([[2.0, 50, 12, 60]])
    found = [{"boxes": torch.cat([boxes[labels >= 0], more]), "labels": torch.cat([labels[labels >= 0], torch.ones(1, dtype=torch.int64)]),
              "scores": torch.full((int((labels >= 0).sum()) + 1,), 0.9)} for boxes, labels in zip(targets["boxes"], targets["labels"], strict=True)]
    teacher = Teacher(2, burn_in=0.0, keep_rate=0.4, pseudo_weight=1.0, say=print)
    return teacher(found[rows], part(targets, rows), 0.5)[0]["weights"]


def gradient(network):
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])


def whole_batch(model):
    network, images, sizes, targets = network_and_batch(model)
    loss, parts, _ = combine(network(images, sizes, targets))
    loss.backward()
    return gradient(network), {name: value.item() for name, value in parts.items()}


def assert_same(got, got_parts, expected, parts):
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert all(abs(got_parts[name] - value) < 1e-4 for name, value in parts.items())


@pytest.mark.parametrize("model", CONFIGS)
def test_replicas_in_one_process_give_the_gradient_of_one_device(model):
    expected, parts = whole_batch(model)
    network, images, sizes, targets = network_and_batch(model)
    replicas = [network(images[rows], sizes[rows], part(targets, rows)) for rows in (slice(0, 2), slice(2, 3), slice(3, 4))]
    gathered = {name: torch.cat([losses[name] for losses in replicas]) for name in replicas[0]}    # as DataParallel gathers
    loss, split_parts, _ = combine(gathered)
    loss.backward()
    assert_same(gradient(network), {name: value.item() for name, value in split_parts.items()}, expected, parts)


def _rank(rank, model, size, file, results):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size))
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    assert everywhere(True) and not everywhere(rank == 0) and count_devices(torch.device("cpu")) == size
    network, images, sizes, targets = network_and_batch(model)
    rows = slice(rank * 2, rank * 2 + 2)
    parallel = replicate(network, torch.device("cpu"))          # DDP reduces only while it is alive
    loss, parts, _ = combine(parallel(images[rows], sizes[rows], part(targets, rows)))
    loss.backward()
    torch.save((gradient(network), {name: value.item() for name, value in parts.items()}, taught(targets, rows)), f"{results}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("model", CONFIGS)
def test_ranks_under_ddp_give_the_gradient_of_one_device(model, tmp_path):
    expected, parts = whole_batch(model)
    targets = network_and_batch(model)[-1]
    filled = taught(targets, slice(0, 4))
    assert (filled[:, -1] >= 0.6).all() and (taught(targets, slice(0, 2))[:, -1] != filled[:2, -1]).all()     # a rank alone would be less sure
    mp.spawn(_rank, args=(model, 2, tmp_path / "store", str(tmp_path)), nprocs=2)
    for rank in range(2):
        got, rank_parts, weights = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert_same(got, rank_parts, expected, parts)
        assert torch.equal(weights, filled[rank * 2:rank * 2 + 2])
    assert (taught(targets, slice(0, 2))[:, -1] > 0.7).all()
    assert taught(targets, slice(2, 4)).shape == (2, 3)             # alone the second rank has nothing to count on


@pytest.mark.parametrize("last, code", [("leave_process_group()", 0), ("raise ValueError('no such picture')", 1)])
def test_a_rank_that_fails_does_not_wait_for_the_others_to_leave(last, code):
    program = ("import torch, torch.distributed as dist; from engine.distributed import leave_process_group, start_process_group\n"
               "leave = dist.destroy_process_group; dist.destroy_process_group = lambda: print('left') or leave()\n"
               f"start_process_group(torch.device('cpu')); print('joined'); {last}")
    alone = os.environ | {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=alone, timeout=100)
    assert (done.returncode, done.stdout.split()) == (code, ["joined"] + ["left"] * (code == 0)) and (code == 0) == ("no such picture" not in done.stderr)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto").type == "cpu"
    for name, words in (("cuda", "sees no CUDA device"), ("tpu3", "not one of auto"),
                        *((name, "not one of auto, cpu, cuda, cuda:N") for name in ("mps", "meta", "xpu", "cuda:", "cuda:-1", "cpu:1"))):
        try:
            select_device(name)
            raise AssertionError(name)
        except ValueError as error:
            assert words in str(error)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_stays_with_the_process():
    code = ("import resource, torch; from engine.distributed import keep_freed_memory; kept = KEEP\n"
            "faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt for turn in range(40) if torch.ones(25_000_000) is not None]\n"
            "print(kept, faults[-1] - faults[-10])")      # it takes some turns to settle
    faults = {}
    for keep in ("keep_freed_memory()", "False"):
        said = subprocess.run([sys.executable, "-c", code.replace("KEEP", keep)], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        faults[said[0]] = int(said[1])
    assert faults["True"] < faults["False"] / 10        # nine times 100 MB


def test_autocast_reaches_the_threads_that_dataparallel_runs_replicas_in():
    class Kind(torch.nn.Module):
        def forward(self, x):
            kinds.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return x

    kinds = []
    replica = replicate(Kind(), torch.device("cpu"), torch.bfloat16)
    thread = threading.Thread(target=replica, args=(torch.zeros(1),))
    thread.start()
    thread.join()
    assert kinds == [torch.bfloat16]


def test_what_one_rank_asks_travels_with_the_sums():
    losses = {"a": torch.tensor([[6.0, 3.0]])}
    assert combine(losses, asked=True)[2] == 1 and combine(losses)[2] == 0
    assert combine(losses, asked=True)[0] == 2.0


def test_the_counts_that_losses_are_divided_by_can_be_a_running_mean():
    few, many = {"a": torch.tensor([[6.0, 2.0]])}, {"a": torch.tensor([[6.0, 12.0]])}
    smooth = RunningCounts(momentum=0.9)
    assert [combine(losses, smooth=smooth)[0].item() for losses in (few, many)] == pytest.approx([3.0, 2.0])      # 6 / 2, 6 / (0.9 * 2 + 0.1 * 12)
    smooth = RunningCounts(momentum=0.0)
    assert [combine(losses, smooth=smooth)[0].item() for losses in (few, many)] == [3.0, 0.5]


def test_the_counts_that_losses_are_divided_by_can_have_a_floor_that_the_running_mean_does_not_know_of():
    few, many = {"a": torch.tensor([[6.0, 2.0]])}, {"a": torch.tensor([[6.0, 12.0]])}
    smooth = RunningCounts(momentum=0.0, floor=4.0)
    assert [combine(losses, smooth=smooth)[0].item() for losses in (few, many)] == [1.5, 0.5]                     # 6 / 4, 6 / 12
    smooth = RunningCounts(momentum=0.5, floor=4.0)
    assert [combine(losses, smooth=smooth)[0].item() for losses in (few, many)] == pytest.approx([1.5, 6 / 7])    # the mean: 2, (2 + 12) / 2


def test_counts_below_one_do_not_make_a_loss_louder_and_what_is_printed_holds_no_graph():
    pair = torch.tensor([[6.0, 0.25]], requires_grad=True)
    loss, parts, asked = combine({"a": pair})
    assert loss.item() == parts["a"].item() == 6.0 and loss.requires_grad and not parts["a"].requires_grad and not asked.requires_grad


def test_devices_are_counted_from_0_and_a_rank_takes_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert select_device("auto") == torch.device("cuda") and select_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="--device cuda:2: this machine has 2 CUDA devices, counted from 0"):
        select_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device("auto") == torch.device("cuda:1") and select_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="--device cuda:0: under torchrun each process takes the GPU of its own rank"):
        select_device("cuda:0")


def test_what_a_run_is_computed_on_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert describe_devices(torch.device("cuda"), torch.float16) == "4 cuda devices, float16"
    assert describe_devices(torch.device("cuda:1"), torch.bfloat16) == "cuda:1, bfloat16" and describe_devices(torch.device("cpu"), None) == "cpu"


def test_all_gpus_are_used_unless_one_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.nn, "DataParallel", lambda network: "on all")
    network = torch.nn.Identity()
    assert replicate(network, torch.device("cuda")) == "on all"
    assert replicate(network, torch.device("cuda:1")) is network and replicate(network, torch.device("cpu")) is network
