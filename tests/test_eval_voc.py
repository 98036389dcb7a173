import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from colour_network import BAD_CHECKPOINTS, bad_checkpoint, colour_checkpoint, real_checkpoint, refusal
from PIL import Image

import eval_voc
from flags import chosen_checkpoint, evaluation_parser
from util.command_line import one_sentence_errors

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path, voc_maker):
    return voc_maker(tmp_path / "voc", n=8, max_objects=1)


def run(checkpoint, folder, *flags):
    words = ["--checkpoint", checkpoint, "--data", str(folder), "--workers", "0", "--device", "cpu", *flags]
    return eval_voc.main(words)


def test_an_exact_network_reaches_ap_1_and_everything_is_written(tmp_path, folder, monkeypatch, capsys):
    metrics = run(colour_checkpoint(tmp_path / "best.pth", monkeypatch), folder)
    table, output = capsys.readouterr().out, tmp_path / "eval"
    assert metrics["mAP"] == metrics["voc07"]["mAP"] == 1 and metrics["split"] == "test"
    assert "AP50" in table and "all" in table and str(output) in table

    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert {"protocol", "mAP", "ap", "mAP_50_95", "voc07", "area", "per_class", "checkpoint", "data"} <= metrics.keys()
    results = json.loads((output / "detections.json").read_text())
    ids = (folder / "ImageSets" / "Main" / "test.txt").read_text().split()
    assert {each["image_id"] for each in results} == set(ids) and {each["category_id"] for each in results} <= {1, 2}
    assert all(len(each["bbox"]) == 4 and each["score"] == pytest.approx(0.9) for each in results)
    for picture in ("precision_recall.png", "confusion_matrix.png", f"pictures/{ids[0]}.jpg"):
        Image.open(output / picture).verify()


def test_pictures_of_an_earlier_evaluation_go_and_other_files_stay(tmp_path, folder, monkeypatch):
    checkpoint, pictures = colour_checkpoint(tmp_path / "best.pth", monkeypatch), tmp_path / "eval" / "pictures"
    run(checkpoint, folder, "--split", "train")
    (pictures / "notes.txt").write_text("mine")
    run(checkpoint, folder, "--split", "val")
    names = (folder / "ImageSets" / "Main" / "val.txt").read_text().split()
    assert sorted(path.name for path in pictures.iterdir()) == [*(f"{name}.jpg" for name in names), "notes.txt"]


def test_files_of_somebody_else_in_the_output_folder_are_kept(tmp_path, folder, monkeypatch, capsys):
    words = ["--checkpoint", colour_checkpoint(tmp_path / "best.pth", monkeypatch), "--data", folder, "--workers", 0, "--split", "val", "--output"]
    mine = tmp_path / "mine" / "pictures" / "holiday.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    for _ in range(2):                          # the second one replaces what the first one wrote
        eval_voc.main([*map(str, words), str(tmp_path / "mine")])
        assert mine.read_text() == "mine"
    for name in ("metrics.json", "precision_recall.png", f"pictures/{(folder / 'ImageSets/Main/val.txt').read_text().split()[0]}.jpg"):
        file = tmp_path / name.partition(".")[0] / name
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        assert f"holds {name}, which" in refusal(eval_voc.main, [*words, tmp_path / name.partition(".")[0]], capsys)
        assert file.read_text() == "{}"


def test_an_output_that_is_a_file_is_refused_before_anything_is_evaluated(tmp_path, folder, monkeypatch, capsys):
    checkpoint, file = colour_checkpoint(tmp_path / "best.pth", monkeypatch), tmp_path / "out"
    file.write_text("mine")
    monkeypatch.setattr("engine.predict.predict", lambda *_, **__: pytest.fail("it was evaluated"))
    assert f"--output {file}: is a file" in refusal(eval_voc.main, ["--checkpoint", checkpoint, "--data", folder, "--output", file], capsys)


def test_flags_override_the_checkpoint_and_choose_split_and_output(tmp_path, folder, monkeypatch):
    checkpoint = colour_checkpoint(tmp_path / "best.pth", monkeypatch)
    metrics = run(checkpoint, folder, "--split", "train", "--min-size", "192", "--score-threshold", "0.02", "--output", str(tmp_path / "out"))
    assert metrics["postprocess"]["score_threshold"] == 0.02
    assert metrics["all"]["pictures"] == 4 and metrics["mAP"] == 1
    assert metrics["input"] == {"min_size": 192, "max_size": 1000, "tile": None}
    assert (tmp_path / "out" / "metrics.json").exists() and not (tmp_path / "eval").exists()


def test_nms_and_the_number_of_detections_can_be_others_than_the_checkpoints(tmp_path):
    words = ["--checkpoint", str(real_checkpoint(tmp_path / "best.pth"))]
    as_trained, changed = (chosen_checkpoint(evaluation_parser("").parse_args([*words, *more]), tmp_path)[1]["config"]
                           for more in ([], ["--max-detections", "7", "--nms-iou-threshold", "0.3", "--score-threshold", "0.2"]))
    assert changed == as_trained | {"max_detections": 7, "nms_iou_threshold": 0.3, "score_threshold": 0.2} != as_trained


def test_in_tiles_objects_are_found_once_each(tmp_path, folder, monkeypatch):
    checkpoint = colour_checkpoint(tmp_path / "best.pth", monkeypatch)
    metrics = run(checkpoint, folder, "--split", "all", "--tile", "80", "--overlap", "0.6")
    assert metrics["mAP"] == 1 and metrics["all"]["detections"] == 8


def test_folders_without_a_common_list_are_refused_rather_than_judged_with_their_training_pictures(folder, voc_maker, tmp_path):
    other = voc_maker(tmp_path / "other", n=8)
    assert eval_voc.default_split([folder, other]) == "test"
    for name in ("test", "val"):
        (other / "ImageSets" / "Main" / f"{name}.txt").unlink()
    with pytest.raises(ValueError, match=r"no list to judge by that all folders of --data have \(.*voc: test, train, trainval, val; .*other: train, trainval\)"):
        eval_voc.default_split([folder, other])
    shutil.rmtree(other / "ImageSets")
    with pytest.raises(ValueError, match="other: none"):
        eval_voc.default_split([folder, other])


def test_the_split_is_test_else_val_else_all(tmp_path, folder, monkeypatch, capsys):
    lists = folder / "ImageSets" / "Main"
    assert eval_voc.default_split([folder]) == "test"
    (lists / "test.txt").unlink()
    assert eval_voc.default_split([folder]) == "val"
    shutil.rmtree(folder / "ImageSets")
    assert eval_voc.default_split([folder]) == "all"
    run(colour_checkpoint(tmp_path / "best.pth", monkeypatch), folder)
    assert "note: there is no list 'test' or 'val': all pictures are judged" in capsys.readouterr().out


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_by_name(kind, tmp_path, folder, capsys):
    checkpoint = bad_checkpoint(kind, tmp_path / "some.pth")
    assert checkpoint in refusal(eval_voc.main, ["--checkpoint", checkpoint, "--data", folder], capsys)


def test_bad_data_is_refused_by_name(tmp_path, folder, monkeypatch, capsys):
    checkpoint = ["--checkpoint", colour_checkpoint(tmp_path / "best.pth", monkeypatch), "--workers", 0]

    def sentence(*flags):
        return refusal(eval_voc.main, checkpoint + list(flags), capsys)

    assert "nowhere: no such folder" in sentence("--data", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty" in sentence("--data", tmp_path / "empty")
    assert "no split 'dev'" in sentence("--data", folder, "--split", "dev")

    xml = next((folder / "Annotations").glob("*.xml"))
    text = xml.read_text()
    xml.write_text(text.replace("<name>disc", "<name>dics").replace("<name>slab", "<name>dics"))
    assert f"{xml}: object 1 is 'dics', not one of disc, slab" in sentence("--data", folder, "--split", "all")
    xml.write_text(text)
    other = colour_checkpoint(tmp_path / "other.pth", monkeypatch, classes=("cat", "dog"))
    assert "other.pth: finds cat, dog, and no object of the data is one of these" in refusal(
        eval_voc.main, ["--checkpoint", other, "--workers", 0, "--data", folder, "--skip-bad"], capsys)

    picture = next((folder / "JPEGImages").glob("*.jpg"))
    picture.write_bytes(picture.read_bytes()[:800])
    assert str(picture) in sentence("--data", folder, "--split", "all")
    assert eval_voc.main([*map(str, checkpoint), "--data", str(folder), "--split", "all", "--skip-bad"])["skipped"] == 1
    for each in (folder / "Annotations").glob("*.xml"):         # background alone is judged too
        each.write_text("<annotation></annotation>")
    assert eval_voc.main([*map(str, checkpoint), "--data", str(folder), "--split", "all", "--skip-bad"])["all"]["objects"] == 0


def test_the_script_itself_evaluates_a_real_network(tmp_path, folder):
    words = [sys.executable, ROOT / "eval_voc.py", "--checkpoint", real_checkpoint(tmp_path / "best.pth"),
             "--data", folder, "--device", "cpu", "--workers", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "eval" / "metrics.json").exists() and "mAP" not in done.stderr


def test_the_commands_answer_help_without_importing_torch():
    code = "import sys, detect, eval_voc, engine.log, flags; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
                                   RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_is_too_small_is_one_sentence_and_other_faults_of_ours_keep_their_traceback(error, capsys):
    with pytest.raises(SystemExit) as ended, one_sentence_errors():
        raise error
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("error: the memory is too small; a smaller --batch-size") and told.count("\n") == 1
    with pytest.raises(RuntimeError, match="ours"), one_sentence_errors():
        raise RuntimeError("ours")
