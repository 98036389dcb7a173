"""What only a CUDA device can show."""
import copy

import pytest
import torch

from dataset.strong_view import strong_view
from engine.distributed import combine, replicate
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
