"""The loop on a network of one layer: exact resume, equal runs, the stop at a loss that is not finite."""
import csv
import os
import signal
import sys

import pytest
import torch
from torch import nn

from engine.checkpoint import load_checkpoint
from engine.fit import FitOptions, fit, parameter_groups, update_average
from engine.log import RunLog, claim_run_folder, next_run_folder

CHECKPOINT = {"config": {}, "classes": ["a"], "input": {}, "score_threshold": 0.3, "flags": {}}


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, images, image_sizes, targets):
        error = (self.layer(images) - targets["boxes"]).square().sum()
        return {"error": torch.stack([error, torch.tensor(float(len(images)))])[None]}


class Loader:
    """Five batches an epoch, each made from (epoch, number) alone; `poison` turns one into infinity."""

    def __init__(self, poison=None, interrupt=None):
        self.poison, self.interrupt = poison, interrupt

    def __len__(self):
        return 5

    def batches(self, epoch, first=0):
        for number in range(first, 5):
            torch_rng = torch.Generator().manual_seed(100 * epoch + number)
            x = torch.randn(4, 3, generator=torch_rng)
            if (epoch, number) == self.poison:
                x[0, 0] = float("inf")
            if (epoch, number) == self.interrupt:
                os.kill(os.getpid(), signal.SIGINT)
            one = torch.ones(4, 1)
            yield ({"images": x, "image_sizes": one, "boxes": x.sum(1, keepdim=True), "labels": one, "weights": one, "ignore": one},
                   [{"image_id": f"e{epoch}b{number}p{k}"} for k in range(4)])


def run_fit(folder, loader=None, options=None, resume=None, evaluate=None):
    network = Line()
    log = RunLog(folder)
    options = options or FitOptions(epochs=3, lr=0.05, warmup_steps=2, schedule="cosine", ema_decay=0.9)
    best = fit(network, loader or Loader(), evaluate, log, options, torch.device("cpu"), CHECKPOINT, resume)
    return network, best


def rows(folder, name="metrics.csv"):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a) and a.keys() == b.keys()


def test_it_learns_and_writes_best_last_and_a_row_an_epoch(tmp_path):
    network, best = run_fit(tmp_path, evaluate=lambda network: {"mAP": 10 - (network.layer.weight - 1).abs().sum().item(), "mAP_50_95": None})
    assert [row["epoch"] for row in rows(tmp_path)] == ["1", "2", "3"]
    assert float(rows(tmp_path)[-1]["loss"]) < 0.5 * float(rows(tmp_path)[0]["loss"])
    assert load_checkpoint(tmp_path / "best.pth")["metrics"]["mAP"] == best["mAP"] == pytest.approx(10, abs=1)
    assert "training" in load_checkpoint(tmp_path / "last.pth") and "training" not in load_checkpoint(tmp_path / "best.pth")


def test_steps_csv_has_the_mean_of_every_few_steps_across_epochs_and_once_where_a_run_was_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.fit.STEPS_A_ROW", 1)
    run_fit(tmp_path / "each")
    each = [float(row["loss"]) for row in rows(tmp_path / "each", "steps.csv")]
    monkeypatch.setattr("engine.fit.STEPS_A_ROW", 4)
    run_fit(tmp_path / "four")
    four = rows(tmp_path / "four", "steps.csv")
    assert [(row["step"], row["epoch"]) for row in four] == [("4", "1"), ("8", "2"), ("12", "3")]
    assert [float(row["loss"]) for row in four] == pytest.approx([sum(each[k:k + 4]) / 4 for k in (0, 4, 8)], abs=1e-4)
    run_fit(tmp_path / "four", resume=None, options=FitOptions(epochs=1, lr=0.05, warmup_steps=2, schedule="cosine", ema_decay=0.9))
    assert [row["step"] for row in rows(tmp_path / "four", "steps.csv")] == ["4"]      # what a resumed run makes again is there once


def test_an_epoch_that_was_stopped_within_has_one_row_in_the_end(tmp_path):
    options = {"epochs": 3, "lr": 0.05, "warmup_steps": 2, "schedule": "cosine", "ema_decay": 0.9}
    run_fit(tmp_path, options=FitOptions(**options, max_steps=7))
    assert [(row["epoch"], row["step"]) for row in rows(tmp_path)] == [("1", "5"), ("2", "7")]
    run_fit(tmp_path, options=FitOptions(**options), resume=load_checkpoint(tmp_path / "last.pth"))
    assert [(row["epoch"], row["step"]) for row in rows(tmp_path)] == [("1", "5"), ("2", "10"), ("3", "15")]


def test_two_runs_with_one_seed_are_equal(tmp_path):
    assert same(run_fit(tmp_path / "a")[0].state_dict(), run_fit(tmp_path / "b")[0].state_dict())


def test_a_run_interrupted_in_mid_epoch_goes_on_as_if_unbroken(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.fit.STEPS_A_ROW", 3)
    whole, _ = run_fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_fit(tmp_path / "broken", Loader(interrupt=(1, 2)))
    last = load_checkpoint(tmp_path / "broken" / "last.pth")
    assert last["training"]["epoch"] == 1 and last["training"]["batch"] == 3
    resumed, _ = run_fit(tmp_path / "broken", resume=last)
    assert same(whole.state_dict(), resumed.state_dict())
    a, b = (load_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "broken"))
    assert same(a["model"], b["model"]) and a["training"]["step"] == b["training"]["step"] == 15
    for name in ("metrics.csv", "steps.csv"):
        assert [(row["step"], row["loss"]) for row in rows(tmp_path / "broken", name)] == [(row["step"], row["loss"]) for row in rows(tmp_path / "whole", name)]


@pytest.mark.parametrize("error, save_every, steps", [
    (RuntimeError, -1, 7),                  # a run that is killed goes on from its last checkpoint within the epoch
    (KeyboardInterrupt, 600, 5)])           # a second Ctrl-C raises at once, wherever the step is: that of the end of the first epoch stays
def test_a_step_broken_off_half_made_leaves_the_checkpoint_of_before(tmp_path, monkeypatch, error, save_every, steps):
    whole, _ = run_fit(tmp_path / "whole")
    clip = nn.utils.clip_grad_norm_

    def broken(parameters, norm, calls=[]):
        calls.append(norm)
        if len(calls) == 8:
            raise error
        return clip(parameters, norm)
    monkeypatch.setattr("engine.fit.SAVE_EVERY", save_every)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", broken)
    with pytest.raises(error):
        run_fit(tmp_path / "broken")
    monkeypatch.undo()
    last = load_checkpoint(tmp_path / "broken" / "last.pth")
    assert last["training"]["step"] == steps
    resumed, _ = run_fit(tmp_path / "broken", resume=last)
    assert same(whole.state_dict(), resumed.state_dict())


def test_a_device_whose_memory_is_too_small_ends_in_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", full)
    with pytest.raises(ValueError, match=r"step 0: the memory of cpu is too small for a batch of \[4, 3\]; take a smaller --batch-size"):
        run_fit(tmp_path)
    assert not (tmp_path / "last.pth").exists()


def test_a_tensorboard_that_cannot_be_loaded_stops_no_run(tmp_path, monkeypatch):
    class Broken:
        def __getattr__(self, name):
            raise TypeError("Descriptors cannot be created directly.")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Broken())
    RunLog(tmp_path).say("it goes on")
    assert (tmp_path / "log.txt").read_text() == "it goes on\n"


def test_max_steps_ends_a_run_that_can_be_resumed(tmp_path):
    options = FitOptions(epochs=3, lr=0.05, warmup_steps=2, schedule="cosine", ema_decay=0.9)
    whole, _ = run_fit(tmp_path / "whole", options=options)
    run_fit(tmp_path / "short", options=FitOptions(**{**vars(options), "max_steps": 7}))
    resumed, _ = run_fit(tmp_path / "short", options=options, resume=load_checkpoint(tmp_path / "short" / "last.pth"))
    assert same(whole.state_dict(), resumed.state_dict())


def test_what_a_rank_draws_at_a_step_does_not_depend_on_where_the_run_was_broken(tmp_path, monkeypatch):
    def draws(rank, folder, max_steps=None, resume=None):
        def forward(network, *batch):
            drawn.append(torch.rand(2 + 3 * rank)[-1].item())         # the ranks do not draw as many
            return plain(network, *batch)
        drawn = []
        monkeypatch.setattr("engine.fit.rank", lambda: rank)
        monkeypatch.setattr(Line, "forward", forward)
        run_fit(folder, options=FitOptions(epochs=3, lr=0.05, warmup_steps=2, max_steps=max_steps), resume=resume)
        return drawn

    plain = Line.forward
    first, second = draws(0, tmp_path / "whole"), draws(1, tmp_path / "other")
    assert draws(0, tmp_path / "broken", max_steps=7) == first[:7] and len({*first, *second}) == 30
    last = load_checkpoint(tmp_path / "broken" / "last.pth")            # there is one, of the first rank
    assert draws(1, tmp_path / "other", resume=last) == second[7:] and draws(0, tmp_path / "broken", resume=last) == first[7:]


class UnevenLoader(Loader):
    def batches(self, epoch, first=0):
        for number, (batch, infos) in enumerate(super().batches(epoch, first), first):
            yield {name: tensor[:1 + number % 4] for name, tensor in batch.items()}, infos


def test_a_running_mean_of_the_counts_is_resumed_too(tmp_path):
    options, loader = FitOptions(epochs=3, lr=0.05, warmup_steps=2, normalizer_momentum=0.9), UnevenLoader()
    whole, _ = run_fit(tmp_path / "whole", loader, options=options)
    run_fit(tmp_path / "short", loader, options=FitOptions(**{**vars(options), "max_steps": 7}))
    resumed, _ = run_fit(tmp_path / "short", loader, options=options, resume=load_checkpoint(tmp_path / "short" / "last.pth"))
    assert same(whole.state_dict(), resumed.state_dict())
    plain, _ = run_fit(tmp_path / "plain", loader, options=FitOptions(**{**vars(options), "normalizer_momentum": 0.0}))
    assert not same(whole.state_dict(), plain.state_dict())


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_batch(tmp_path):
    with pytest.raises(ValueError, match=r"step 8: the loss is not finite \(loss (inf|nan), error (inf|nan)\) on pictures e1b3p0, e1b3p1"):
        run_fit(tmp_path, Loader(poison=(1, 3)))
    kept = torch.load(tmp_path / "nonfinite_rank0.pth", weights_only=True)
    assert kept["images"][0] == "e1b3p0" and kept["step"] == 8 and kept["batch"]["images"].isinf().any()
    assert all(value.isfinite().all() for value in kept["model"].values())
    assert load_checkpoint(tmp_path / "last.pth")["training"]["step"] == 5


def test_biases_norms_and_scales_do_not_decay_and_frozen_parameters_are_left_out():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 1))
    network[2].requires_grad_(False)
    groups = {group["weight_decay"]: len(group["params"]) for group in parameter_groups(network, FitOptions(epochs=1, lr=1))}
    assert groups == {1e-4: 1, 0.0: 3}


def test_run_folders_are_numbered_after_all_in_use(tmp_path):
    assert next_run_folder(tmp_path, "voc").name == "voc-1"
    for name in ("voc-1", "voc-12", "voc-old", "other-40"):
        (tmp_path / name).mkdir()
    assert next_run_folder(tmp_path, "voc").name == "voc-13"


def test_two_runs_that_chose_one_number_get_two_folders(tmp_path):
    chosen = next_run_folder(tmp_path, "voc")
    assert [claim_run_folder(chosen).name for _ in range(3)] == ["voc-1", "voc-2", "voc-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["voc-1", "voc-2", "voc-3"]


def test_a_run_stopped_at_the_end_of_an_epoch_evaluates_it_when_resumed(tmp_path):
    def evaluate(network):
        return {"mAP": 0.5, "mAP_50_95": None}
    run_fit(tmp_path / "whole", evaluate=evaluate)
    with pytest.raises(KeyboardInterrupt):
        run_fit(tmp_path / "broken", Loader(interrupt=(1, 4)), evaluate=evaluate)
    run_fit(tmp_path / "broken", resume=load_checkpoint(tmp_path / "broken" / "last.pth"), evaluate=evaluate)
    assert [(row["epoch"], row["mAP"]) for row in rows(tmp_path / "broken")] == [(row["epoch"], row["mAP"]) for row in rows(tmp_path / "whole")]


def test_a_run_stopped_in_its_first_evaluation_keeps_the_losses_of_its_epoch(tmp_path):
    def interrupted(network):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_fit(tmp_path, evaluate=interrupted)
    run_fit(tmp_path, resume=load_checkpoint(tmp_path / "last.pth"), evaluate=lambda network: {"mAP": 0.5, "mAP_50_95": None})
    assert [(row["epoch"], row["mAP"]) for row in rows(tmp_path)] == [(number, "0.5") for number in "123"]
    run_fit(tmp_path / "whole")
    assert [row["loss"] for row in rows(tmp_path)] == [row["loss"] for row in rows(tmp_path / "whole")]


def test_a_crash_in_the_evaluation_loses_no_training(tmp_path):
    def evaluate(network):
        raise RuntimeError("evaluation")
    with pytest.raises(RuntimeError, match="evaluation"):
        run_fit(tmp_path, evaluate=evaluate)
    assert load_checkpoint(tmp_path / "last.pth")["training"]["step"] == 5


def test_a_resumed_run_with_other_steps_an_epoch_is_refused(tmp_path):
    run_fit(tmp_path, options=FitOptions(epochs=3, lr=0.05, max_steps=2))
    last = load_checkpoint(tmp_path / "last.pth")
    last["training"]["steps_per_epoch"] = 7
    with pytest.raises(ValueError, match="had 7 steps an epoch, with this data and batch size they are 5"):
        run_fit(tmp_path, resume=last)


class Weights(nn.Module):
    """Two numbers, one of them under the name of a backbone, whose loss falls as fast as they do: each gradient is 1."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head, self.modes = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), []
        self.norm = nn.BatchNorm1d(1)               # a counter among its buffers
        for layer in (self.backbone, self.head):
            nn.init.zeros_(layer.weight)

    def forward(self, images, image_sizes, targets):
        self.modes.append(self.training)
        return {"sum": torch.stack([self.backbone.weight.sum() + self.head.weight.sum(), torch.tensor(1.0)])[None]}


def fit_weights(folder, evaluate=None, resume=None, epochs=3, **options):
    """The network after steps of rate 0.1, and its last.pth."""
    network = Weights()
    options = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "warmup_steps": 0, "drops": (), "clip_norm": 0.0, "ema_decay": 0.0, **options}
    fit(network, Loader(), evaluate, RunLog(folder), FitOptions(epochs=epochs, **options), torch.device("cpu"), CHECKPOINT, resume)
    return network, load_checkpoint(folder / "last.pth")


def test_steps_are_those_of_nesterovs_momentum(tmp_path):
    # velocities 1, 1.9; each step looks ahead: 1 + 0.9 * 1, 1 + 0.9 * 1.9
    network, _ = fit_weights(tmp_path / "a", momentum=0.9, max_steps=2)
    assert network.head.weight.item() == pytest.approx(-0.1 * (1.9 + 2.71))
    assert fit_weights(tmp_path / "b", max_steps=2)[0].head.weight.item() == pytest.approx(-0.2)


def test_the_backbone_has_a_rate_of_its_own(tmp_path):
    network, _ = fit_weights(tmp_path, pretrained_lr=0.5, max_steps=1)
    assert (network.backbone.weight.item(), network.head.weight.item()) == pytest.approx((-0.05, -0.1))


def test_gradients_are_clipped_to_the_norm(tmp_path):
    network, _ = fit_weights(tmp_path, clip_norm=0.5, max_steps=1)         # of two gradients of 1: sqrt(2)
    assert network.head.weight.item() == pytest.approx(-0.1 * 0.5 / 2 ** 0.5, rel=1e-4)


def test_weights_of_linear_layers_decay_too():
    groups = {group["weight_decay"]: len(group["params"]) for group in parameter_groups(nn.Linear(2, 3), FitOptions(epochs=1, lr=1))}
    assert groups == {1e-4: 1, 0.0: 1}


def test_the_average_moves_more_at_the_beginning_and_counters_are_copied():
    averaged, network = Weights(), Weights()
    nn.init.ones_(network.head.weight)
    network.norm.num_batches_tracked.fill_(7)
    update_average(averaged, network, 0.99, updates=0)
    assert averaged.head.weight.item() == pytest.approx(0.9) and averaged.norm.num_batches_tracked == 7       # 1 / 10 of it stays
    update_average(averaged, network, 0.99, updates=10 ** 6)
    assert averaged.head.weight.item() == pytest.approx(0.99 * 0.9 + 0.01)


def test_the_averaged_weights_are_judged_and_kept_and_the_network_goes_on_with_its_own(tmp_path):
    judged = []

    def evaluate(network):
        judged.append(network.head.weight.item())
        return {"mAP": 0.5}
    network, last = fit_weights(tmp_path, evaluate, ema_decay=0.9, max_steps=1)
    assert judged == pytest.approx([-0.09]) and network.head.weight.item() == pytest.approx(-0.1)         # 9 / 10 of the first step
    assert last["model"]["head.weight"].item() == pytest.approx(-0.09) and last["training"]["model"]["head.weight"].item() == pytest.approx(-0.1)
    assert load_checkpoint(tmp_path / "best.pth")["model"]["head.weight"].item() == pytest.approx(-0.09)


def test_every_second_epoch_is_evaluated_and_the_last_one(tmp_path):
    fit_weights(tmp_path, lambda network: {"mAP": 0.5}, evaluate_every=2)
    assert [row["mAP"] for row in rows(tmp_path)] == ["", "0.5", "0.5"]


def test_of_equal_epochs_the_newest_is_the_best_also_where_nothing_is_hit(tmp_path):
    for number, value in enumerate((0.5, None)):
        fit_weights(tmp_path / str(number), lambda network: {"mAP": value}, epochs=2)
        assert load_checkpoint(tmp_path / str(number) / "best.pth")["model"]["head.weight"].item() == pytest.approx(-1.0)     # ten steps


def test_an_evaluation_that_leaves_the_network_in_its_mode_does_not_change_the_next_epoch(tmp_path):
    network, _ = fit_weights(tmp_path, lambda network: {"mAP": network.eval() and 0.5}, epochs=2)
    assert network.modes == [True] * 10


def test_the_score_threshold_of_the_newest_evaluation_is_kept_also_by_a_resumed_run_without_one(tmp_path):
    _, last = fit_weights(tmp_path, lambda network: {"mAP": 0.5, "score_threshold": 0.7}, max_steps=5)
    assert last["score_threshold"] == load_checkpoint(tmp_path / "best.pth")["score_threshold"] == 0.7
    assert fit_weights(tmp_path, resume=last)[1]["score_threshold"] == 0.7
    _, last = fit_weights(tmp_path / "none", lambda network: {"mAP": 0.0, "score_threshold": None}, max_steps=5)
    assert last["score_threshold"] == 0.3                   # of the checkpoint that was given


@pytest.mark.parametrize("steps", [5, 7])           # an epoch, and two steps more
def test_a_run_that_is_through_is_left_as_it_is(tmp_path, steps):
    _, last = fit_weights(tmp_path, lambda network: {"mAP": 0.5}, max_steps=steps)
    before = rows(tmp_path)
    fit_weights(tmp_path, lambda network: pytest.fail("it was evaluated"), resume=last, max_steps=steps)
    assert rows(tmp_path) == before
