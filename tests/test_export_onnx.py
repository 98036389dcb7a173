import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_network import BAD_CHECKPOINTS, bad_checkpoint, refusal
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import batched_nms

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

import onnx  # noqa: E402
import onnxruntime  # noqa: E402

import detect  # noqa: E402
from engine.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from model import build_model, load_model  # noqa: E402
from model.config import FCOSConfig  # noqa: E402
from tools import detect_onnx, export_onnx  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MODES = pytest.mark.parametrize("nms", [False, True], ids=["candidates", "nms"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """best.pth, of an untrained network whose scores lie far apart, and pictures/ of coloured noise, one of them on its side."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    config = FCOSConfig(num_classes=3, fpn_channels=32, head_convs=1).asdict()
    network = build_model(config)
    with torch.no_grad():
        for layer, factor in ((network.head.cls_logits, 60), (network.head.quality, 15), (network.head.ltrb, 20)):
            layer.weight *= factor
    save_checkpoint(folder / "best.pth", {
        "config": config, "model": network.state_dict(), "classes": ["disc", "slab", "ring"], "score_threshold": 0.3,
        "metrics": {}, "input": {"min_size": 120, "max_size": 200, "tile": None}})
    (folder / "pictures").mkdir()
    random, upright_by_exif = np.random.default_rng(0), Image.Exif()
    upright_by_exif[0x0112] = 6
    for name, (width, height), options in (("1.png", (160, 120), {}), ("2.png", (90, 130), {}), ("3.jpg", (300, 200), {"exif": upright_by_exif})):
        blocks = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        blocks.resize((width, height), Image.Resampling.NEAREST).save(folder / "pictures" / name, quality=95, **options)
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    """{nms: the file}, each written by the command."""
    files = {nms: folder / f"nms_{nms}.onnx" for nms in (False, True)}
    for nms, file in files.items():
        export_onnx.main(words(folder, file, *["--nms"] * nms))
    return files


def words(folder, file, *more):
    return [str(folder / "best.pth"), str(file), "--pictures", str(folder / "pictures"), *more]


@pytest.fixture
def session(exported, nms):
    return onnxruntime.InferenceSession(exported[nms], providers=["CPUExecutionProvider"])


def run(session, images, image_sizes):
    return session.run(None, {"images": images.numpy(), "image_sizes": image_sizes.numpy()})


@MODES
@pytest.mark.parametrize("shape, cut", [((1, 32, 32), 0), ((3, 96, 160), 7), ((2, 224, 64), 31), ((1, 320, 416), 1)])
def test_any_size_and_batch_gives_torchs_detections(session, folder, nms, shape, cut):
    batch, height, width = shape
    images = torch.randint(256, (batch, 3, height, width), generator=torch.manual_seed(cut), dtype=torch.uint8)
    image_sizes = torch.tensor([[height - cut, width - cut // 2 * row] for row in range(batch)]).clamp(min=1)
    checkpoint = load_checkpoint(folder / "best.pth")
    network = load_model(checkpoint["config"], checkpoint["model"])
    with torch.inference_mode():
        expected = network(images, image_sizes)
    assert sum(len(one["scores"]) for one in expected) > 5
    for one, boxes, scores, labels in zip(expected, *run(session, images, image_sizes), strict=True):
        real = scores > 1e-4
        rows = np.arange(real.sum()) if nms else detect_onnx.nms(boxes[real], scores[real], labels[real], 0.6)[:100]
        boxes, scores, labels = boxes[real][rows], scores[real][rows], labels[real][rows]
        sure = one["scores"] > 1e-4                 # ONNX Runtime's sigmoid is 0 where torch's is below 1e-8
        assert labels.tolist() == one["labels"][sure].tolist()
        assert np.abs(scores - one["scores"][sure].numpy()).max(initial=0) < 1e-4
        assert np.abs(boxes - one["boxes"][sure].numpy()).max(initial=0) < 0.01


def test_what_other_implementations_do_differently_is_exported_too(folder, tmp_path, capsys):
    checkpoint = load_checkpoint(folder / "best.pth")
    checkpoint["model"]["head.cls_logits.weight"] *= 0.4                        # no two classes of a location are both certain
    fields = {"strides_from_grid": True, "location_offset": 0.0, "distance": "relu", "pixel_order": "bgr", "quality_tower": "cls",
              "candidates": "argmax", "top_k_scope": "picture", "threshold_on": "score", "rank_by": "cls", "score_rule": "product"}
    save_checkpoint(tmp_path / "best.pth", checkpoint | {"config": checkpoint["config"] | fields})
    export_onnx.main([str(tmp_path / "best.pth"), str(tmp_path / "out.onnx"), "--pictures", str(folder / "pictures")])
    assert (tmp_path / "out.onnx").exists() and "for 5 shapes of input differ from torch's by at most" in capsys.readouterr().out


@MODES
def test_a_picture_of_no_area_has_no_boxes(session, nms):
    boxes, scores, labels = run(session, torch.zeros(2, 3, 64, 32, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.int64))
    assert boxes.shape == (*scores.shape, 4) and scores.shape == labels.shape and len(scores) == 2 and not scores.any()


@MODES
def test_the_file_says_what_it_takes_and_what_it_is(session, exported, nms):
    assert [(put.name, put.type, put.shape) for put in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", 3, "32*h", "32*w"]), ("image_sizes", "tensor(int64)", ["batch", 2])]
    rows = "detections" if nms else "candidates"
    assert [(put.name, put.type, put.shape) for put in session.get_outputs()] == [
        ("boxes", "tensor(float)", ["batch", rows, 4]), ("scores", "tensor(float)", ["batch", rows]), ("labels", "tensor(int64)", ["batch", rows])]
    assert {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()} == {
        "classes": ["disc", "slab", "ring"], "min_size": 120, "max_size": 200, "tile": None, "score_threshold": 0.3,
        "nms_iou_threshold": 0.6, "max_detections": 100, "nms": nms}
    model = onnx.load(exported[nms])
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert str(ROOT).encode() not in exported[nms].read_bytes()                 # the exporter notes source lines, with their paths


@MODES
def test_the_example_finds_what_detect_finds(exported, folder, tmp_path, nms, capsys):
    entries = detect.main([str(folder / "pictures"), "--checkpoint", str(folder / "best.pth"), "--device", "cpu", "--output", str(tmp_path)])
    assert [(entry["width"], entry["height"]) for entry in entries] == [(160, 120), (90, 130), (200, 300)]   # the last upright
    for entry in entries:
        capsys.readouterr()
        detect_onnx.main(exported[nms], entry["image"], tmp_path / "drawn.png")
        found = json.loads(capsys.readouterr().out)
        assert len(found) == len(entry["detections"]) > 5
        for one in found:           # the two ways to resize differ by a grey level in some pixels
            assert any(one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=0.003)
                       and one["box"] == pytest.approx(other["box"], abs=0.3) for other in entry["detections"]), one
        assert Image.open(tmp_path / "drawn.png").size == (entry["width"], entry["height"])


def test_the_example_says_in_a_sentence_what_it_cannot_read(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for model, picture, told in (("a.txt", "none.png", "No such file"), ("a.txt", "a.txt", "cannot identify image file"), ("none.onnx", "a.png", "none.onnx"), ("a.txt", "a.png", "a.txt")):
        with pytest.raises(SystemExit, match=f"^error: .*{told}"):
            detect_onnx.main(tmp_path / model, tmp_path / picture)


def test_the_example_is_a_page_without_torch():
    lines = (ROOT / "tools" / "detect_onnx.py").read_text(encoding="utf-8")
    tree = ast.parse(lines)
    imported = {node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
                for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    body = lines.split('"""', 2)[2].splitlines()
    assert sum(bool(line.strip()) for line in body) <= 44
    done = subprocess.run([sys.executable, ROOT / "tools" / "detect_onnx.py"], capture_output=True, text=True)
    assert done.returncode == 1 and "detector.onnx photo.jpg" in done.stderr


@given(st.integers(0, 40), st.integers(0, 2 ** 31), st.sampled_from([0.1237, 0.4999, 0.9001]))
def test_the_examples_nms_is_torchvisions(count, seed, threshold):
    random = np.random.default_rng(seed)
    corner, sides = random.integers(0, 30, (2, count, 2))                       # sides of 0 and equal boxes are among them; no IoU is a threshold
    boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    scores, labels = random.permutation(count).astype(np.float32), random.integers(0, 3, count)
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), threshold).tolist()
    with np.errstate(all="raise"):
        assert detect_onnx.nms(boxes, scores, labels, threshold) == expected


def rows(*found):
    boxes, scores, labels = zip(*found, strict=True) if found else ((), (), ())
    return torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)


A, B = ([0.0, 0.0, 10.0, 10.0], 0.9, 0), ([5.0, 5.0, 20.0, 20.0], 0.5, 1)


@pytest.mark.parametrize("found, pixels, score", [
    ([A, B], 0, 0),
    ([B, A], 0, 0),
    ([A, ([5.0, 5.0, 20.0, 20.25], 0.5, 1)], 0.25, 0),
    ([A, ([5.0, 5.0, 20.0, 20.0], 0.50005, 1)], 0, 5e-5),
    ([A, ([5.0, 5.0, 20.0, 20.0], 0.5, 0)], float("inf"), 0),                   # of another class
    ([A], 0, 0.5),
    ([A, B, B], 0, 0.5),
    ([A, B, ([0.0, 0.0, 0.0, 0.0], 0.0, 0)], 0, 0),                             # a row without a box
    ([], 0, 0.9),
])
def test_the_difference_by_hand(found, pixels, score):
    assert export_onnx.difference(rows(*found), torch.tensor([0.9, 0.5, 0.0]), rows(A, B)).tolist() == pytest.approx([pixels, score], abs=1e-6)


def test_no_rows_do_not_differ_from_none():
    assert export_onnx.difference(rows(), torch.zeros(0), rows()).tolist() == [0, 0]


def without_export(monkeypatch, file, change=lambda model: None):
    """The command, with the model of `file`, changed, in place of what it would export; ten times as fast."""
    model = onnx.load(file)
    del model.metadata_props[:]
    change(model)
    monkeypatch.setattr("model.export.onnx_model", lambda network, nms, opset: model)


def shift_boxes(model):
    tensor, = (tensor for tensor in model.graph.initializer if tensor.name.endswith("head.ltrb.weight"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))


def loosen_nms(model):
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    node, = (node for node in model.graph.node if node.op_type == "NonMaxSuppression")
    tensor = values[node.input[3]]
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), 0.7, np.float32), tensor.name))


@pytest.mark.parametrize("nms, change", [(False, shift_boxes), (True, shift_boxes), (True, loosen_nms)])
def test_what_differs_from_torch_is_not_written(exported, folder, tmp_path, monkeypatch, capsys, nms, change):
    without_export(monkeypatch, exported[nms], change)
    file = tmp_path / "out.onnx"
    sentence = refusal(export_onnx.main, words(folder, file, *["--nms"] * nms), capsys)
    assert str(file) in sentence and "not written" in sentence and "differ from torch" in sentence and "0.01 px" in sentence
    assert not file.exists()


def test_a_check_on_nothing_is_none(exported, folder, tmp_path, monkeypatch, capsys):
    without_export(monkeypatch, exported[True])
    nothing = {"images": torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "image_sizes": torch.zeros(1, 2, dtype=torch.int64)}
    monkeypatch.setattr(export_onnx, "batches", lambda pictures, sizes: [nothing])
    assert "--pictures" in refusal(export_onnx.main, words(folder, tmp_path / "out.onnx", "--nms"), capsys)
    assert not (tmp_path / "out.onnx").exists()


def test_a_checked_file_is_written_and_told(exported, folder, tmp_path, monkeypatch, capsys):
    without_export(monkeypatch, exported[False])
    file = tmp_path / "new" / "out.onnx"
    export_onnx.main(words(folder, file))
    assert file.read_bytes() == exported[False].read_bytes()
    told = capsys.readouterr().out
    assert f"{file}: " in told and "opset 18, NMS left to the caller" in told and "for 5 shapes of input" in told


def test_tiles_are_checked_as_tiles(folder):
    from dataset.pictures import Pictures

    found = export_onnx.batches(Pictures([folder / "pictures" / "3.jpg"]), {"min_size": 120, "max_size": 200, "tile": 80})
    assert [batch["images"].shape for batch in found] == [(1, 3, 96, 96)] * 2 + [(3, 3, 64, 64)] * 2 + [(2, 3, 64, 64)] * 2


@pytest.mark.parametrize("package", export_onnx.PACKAGES)
def test_a_missing_package_is_named(folder, tmp_path, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = refusal(export_onnx.main, words(folder, tmp_path / "out.onnx"), capsys)
    assert f"needs {package}: pip install onnx onnxscript onnxruntime" in sentence


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_by_name(kind, tmp_path, capsys):
    path = bad_checkpoint(kind, tmp_path / "some.pth")
    assert path in refusal(export_onnx.main, [path, tmp_path / "out.onnx"], capsys)


def test_wrong_flags_are_refused(folder, tmp_path, capsys):
    assert "--opset: is 17, must be 18 or more" in refusal(export_onnx.main, words(folder, tmp_path / "out.onnx", "--opset", "17"), capsys)
    assert "no picture here" in refusal(export_onnx.main, [folder / "best.pth", tmp_path / "out.onnx", "--pictures", tmp_path], capsys)
    before = (folder / "best.pth").read_bytes()
    assert "best.pth: is there already; name another file" in refusal(export_onnx.main, words(folder, folder / "best.pth"), capsys)
    assert (folder / "best.pth").read_bytes() == before
