import os
import pickle

import pytest
import torch

from engine import checkpoint
from engine.checkpoint import load_checkpoint, newest_checkpoint, newest_run, save_checkpoint
from flags import trained_detector

CONTENTS = {"config": {"num_classes": 1}, "model": {"w": torch.ones(2)}, "classes": ["a"], "input": {"min_size": 1, "max_size": 2, "tile": None},
            "score_threshold": 0.3}


def test_what_is_saved_comes_back_with_versions(tmp_path):
    save_checkpoint(tmp_path / "new" / "a.pth", CONTENTS)
    state = load_checkpoint(tmp_path / "new" / "a.pth")
    assert state["classes"] == ["a"] and torch.equal(state["model"]["w"], torch.ones(2)) and state["versions"]["torch"] == str(torch.__version__)


def test_a_save_that_dies_leaves_the_previous_file_whole(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pth", CONTENTS)

    def die(state, file):
        file.write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(checkpoint.torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "a.pth", {**CONTENTS, "classes": ["b"]})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "a.pth")["classes"] == ["a"]


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


@pytest.mark.parametrize("write, sentence", [
    (lambda path: None, "no such checkpoint file"),
    (lambda path: path.write_bytes(b"hello"), "is not a checkpoint|could run code"),
    (lambda path: path.write_bytes(b""), "is not a checkpoint"),
    (lambda path: path.write_text("torch>=2.6\ntorchvision\nnumpy\n"), "is not a checkpoint|could run code"),
    (lambda path: path.write_text("# the requirements of this repository\ntorch\n"), "is not a checkpoint|could run code"),
    (lambda path: path.write_text("Jabc"), "is not a checkpoint"),
    (lambda path: path.write_bytes(pickle.dumps(Bomb())), "could run code"),
    (lambda path: torch.save({"model": Bomb()}, path), "could run code"),
    (lambda path: torch.save({"model": {}}, path), "has no 'format'"),
    (lambda path: torch.save([1, 2], path), "has no 'format'"),
    (lambda path: torch.save({**CONTENTS, "format": 99}, path), "has checkpoint format 99"),
])
def test_what_is_no_checkpoint_of_ours_is_refused_in_one_sentence(tmp_path, write, sentence):
    path = tmp_path / "x.pth"
    write(path)
    with pytest.raises(ValueError, match=sentence) as error:
        load_checkpoint(path)
    assert "x.pth" in str(error.value) and "\n" not in str(error.value)


def test_a_network_that_this_version_does_not_know_is_refused_by_the_name_of_its_file(tmp_path):
    save_checkpoint(tmp_path / "newer.pth", {**CONTENTS, "config": {"num_classes": 1, "foo": 2}})
    with pytest.raises(ValueError, match="newer.pth: model config: unknown field 'foo'"):
        trained_detector(tmp_path / "newer.pth")


def test_a_run_folder_is_no_checkpoint_but_its_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="is a folder; name .*best.pth, or .*last.pth to go on"):
        load_checkpoint(tmp_path)


def test_the_run_to_resume_is_the_newest_of_the_same_command(tmp_path):
    for number, (name, flags) in enumerate({"voc-1": "data: [a]\nepochs: 1\n", "coco-1": "train_json: a\nepochs: 1\n", "odd": ""}.items()):
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.pth").touch()
        (tmp_path / name / "config.yaml").write_text(flags)
        os.utime(tmp_path / name / "last.pth", (number, number))
    assert newest_run(tmp_path, ["data", "epochs", "seed"]) == tmp_path / "voc-1" / "last.pth"
    assert newest_run(tmp_path, ["train_json", "epochs"]) == tmp_path / "coco-1" / "last.pth"
    with pytest.raises(ValueError, match="holds no run to resume"):
        newest_run(tmp_path, ["epochs"])
    (tmp_path / "voc-2").mkdir()
    (tmp_path / "voc-2" / "config.yaml").write_text("data: [a]\nepochs: 1\n")
    with pytest.raises(ValueError, match="voc-2: is newer than .*voc-1, and has no checkpoint .yet.; .*--resume .*voc-1.last.pth"):
        newest_run(tmp_path, ["data", "epochs", "seed"])


def test_the_newest_run_wins_over_the_shipped_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="train first"):
        newest_checkpoint(tmp_path)
    (tmp_path / checkpoint.SHIPPED).touch()
    assert newest_checkpoint(tmp_path) == tmp_path / checkpoint.SHIPPED
    for number, name in enumerate(("voc-2", "voc-1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.pth").touch()
        os.utime(tmp_path / name / "best.pth", (number, number))
    assert newest_checkpoint(tmp_path) == tmp_path / "voc-1" / "best.pth"
