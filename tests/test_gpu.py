"""What only a CUDA device can show."""
import copy
import json

import pytest
import torch

import eval_voc
import train_voc
from dataset.strong_view import strong_view
from engine.distributed import combine, replicate
from engine.predict import detect_batch
from model import build_model
from model.config import PRESETS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CONFIG = {"num_classes": 2, "backbone": "resnet18", "backbone_freeze": "norm", "fpn_channels": 32, "head_convs": 1}


def batch(device):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 128, 160), dtype=torch.uint8, generator=generator).to(device)
    targets = {"boxes": torch.tensor([[[8.0, 8, 60, 70], [30, 10, 150, 120]], [[0, 0, 0, 0]] * 2], device=device),
               "labels": torch.tensor([[0, 1], [-1, -1]], device=device), "weights": torch.ones(2, 2, device=device),
               "ignore": torch.zeros(2, 2, dtype=torch.bool, device=device), "zone_ignore": torch.tensor([[False, True], [False] * 2], device=device)}
    return images, torch.tensor([[128, 160]] * 2, device=device), targets


def test_the_gpu_gives_the_losses_of_the_cpu():
    torch.manual_seed(0)
    network = build_model(CONFIG)
    on_cpu, on_gpu = (combine(copy.deepcopy(network).to(device)(*batch(device)))[1] for device in ("cpu", "cuda"))
    for name in on_cpu:
        assert on_gpu[name].item() == pytest.approx(on_cpu[name].item(), rel=1e-2)


@pytest.mark.parametrize("fields", [{}, {"assignment": "atss", "quality": "iou"}, PRESETS["torchvision"] | CONFIG], ids=["default", "atss", "torchvision"])
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_forward_losses_and_backward_never_wait_for_the_device(amp, fields):
    torch.manual_seed(0)
    network = build_model({**CONFIG, **fields}).to("cuda", memory_format=torch.channels_last)
    parallel = replicate(network, torch.device("cuda:0"), amp)
    inputs = batch("cuda")
    combine(parallel(*inputs))[0].backward()                 # the first step fills caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        combine(parallel(strong_view(*inputs[:2]), *inputs[1:]))[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["", "--teacher ema --burn-in 0 --keep-rate 0.5", "--model faster_rcnn --pyramid p3-p5"], ids=["fcos", "teacher", "faster_rcnn"])
def test_a_run_trains_goes_on_and_is_judged_on_the_gpu(kind, amp, tmp_path, voc_folder):
    words = ["--data", str(voc_folder), "--device", "cuda:0"]
    kind = kind.split() if "rcnn" in kind else [*kind.split(), "--levels", "3", "--head-convs", "1"]
    train_voc.main([*words, *kind, "--backbone", "regnet_x_400mf", "--channels", "32", "--weights", "none", "--min-size", "64", "--max-size", "96", "--batch-size", "3",
                    "--epochs", "2", "--workers", "0", "--amp", amp, "--output", str(tmp_path / "run"), "--max-steps", "3"])
    train_voc.main(["--resume", str(tmp_path / "run" / "last.pth"), "--device", "cuda:0"])
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3 and not {"nan", "inf"} & {*",".join(rows).lower().split(",")}
    eval_voc.main([*words, "--checkpoint", str(tmp_path / "run" / "best.pth"), "--workers", "0", "--output", str(tmp_path / "eval")])
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["device"].startswith("cuda")


@torch.inference_mode()
def test_detections_on_the_gpu_are_those_of_the_cpu():
    torch.manual_seed(0)
    network = build_model(CONFIG | {"score_threshold": 0.0}).eval()
    torch.nn.init.normal_(network.head.cls_logits.weight, std=0.3)          # scores far enough apart to keep their order
    images, sizes, _ = batch("cpu")
    found, expected = (detect_batch(copy.deepcopy(network).to(device), {"images": images, "image_sizes": sizes}, torch.device(device)) for device in ("cuda:0", "cpu"))
    for one, other in zip(found, expected, strict=True):
        best = {name: values[:10].cpu() for name, values in one.items()}
        assert torch.allclose(best["scores"], other["scores"][:10], atol=2e-3) and best["labels"].tolist() == other["labels"][:10].tolist()
        assert torch.allclose(best["boxes"], other["boxes"][:10], atol=0.5)
