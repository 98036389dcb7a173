import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from colour_network import BAD_CHECKPOINTS, bad_checkpoint, colour_checkpoint, real_checkpoint, refusal
from conftest import COLOURS
from PIL import Image, ImageDraw

import detect
import eval_voc

ROOT = Path(__file__).resolve().parent.parent


def draw_picture(path, *boxes, size=(128, 96)):
    """A grey picture of `size` (w, h) with a rectangle of the k-th colour in the k-th box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, (110, 110, 110))
    for colour, (x1, y1, x2, y2) in zip(COLOURS, boxes, strict=False):
        ImageDraw.Draw(picture).rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
    picture.save(path)
    return path


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return colour_checkpoint(tmp_path / "best.pth", monkeypatch)


def run(checkpoint, *words):
    """What detections.json holds after detect.py has done its job."""
    entries = detect.main([*map(str, words), "--checkpoint", checkpoint, "--device", "cpu", "--output", "out"])
    assert json.loads(Path("out/detections.json").read_text()) == entries
    return entries


def boxes_of(entry):
    return {found["label"]: found["box"] for found in entry["detections"]}


def test_boxes_are_in_the_pixels_of_the_original(checkpoint, tmp_path, capsys):
    draw_picture(tmp_path / "in" / "1.png", (16, 8, 48, 40), (64, 32, 120, 88))
    draw_picture(tmp_path / "in" / "2.png", size=(96, 128))
    entries = run(checkpoint, "in", "--min-size", 192)
    first, second = entries
    assert first.keys() == {"image", "width", "height", "detections", "drawn"}
    assert (first["image"], first["width"], first["height"]) == ("in/1.png", 128, 96)
    assert boxes_of(first)["disc"] == pytest.approx([16, 8, 48, 40], abs=1.0)
    assert boxes_of(first)["slab"] == pytest.approx([64, 32, 120, 88], abs=1.0)
    assert first["detections"][0]["score"] == 0.9
    assert second == {"image": "in/2.png", "width": 96, "height": 128, "detections": [], "drawn": str(tmp_path / "out/2.png")}

    drawn = Image.open("out/1.png")
    assert drawn.size == (128, 96) and drawn.tobytes() != Image.open("in/1.png").tobytes()
    printed = capsys.readouterr().out
    assert "in/1.png  128x96  1 disc, 1 slab" in printed and "in/2.png  96x128  nothing" in printed
    assert "2 pictures, 2 objects" in printed and "s a picture" in printed


def test_names_that_clash_do_not_overwrite_each_other(checkpoint, tmp_path):
    for folder in "ab":
        draw_picture(tmp_path / folder / "1.png", (0, 0, 20, 20))
    assert [entry["image"] for entry in run(checkpoint, "a", "b", "a/1.png")] == ["a/1.png", "b/1.png"]
    assert Path("out/a/1.png").exists() and Path("out/b/1.png").exists()


def test_an_unexpanded_glob_is_expanded(checkpoint, tmp_path):
    for name in ("x/1.png", "x/y/2.png", "x/3.bmp"):
        draw_picture(tmp_path / name)
    assert [entry["image"] for entry in run(checkpoint, "x/**/*.png")] == ["x/1.png", "x/y/2.png"]
    assert Path("out/1.png").exists() and Path("out/y/2.png").exists()


def test_a_file_name_of_another_encoding_stops_nothing(checkpoint, tmp_path, capsys):
    draw_picture(tmp_path / "in" / os.fsdecode(b"caf\xe9.png"), (0, 0, 20, 20))
    draw_picture(tmp_path / "in" / "z.png", (0, 0, 20, 20))
    assert len(run(checkpoint, "in")) == 2
    assert "in/caf\\udce9.png  128x96  1 disc" in capsys.readouterr().out


def test_the_score_threshold_is_the_checkpoints_unless_given(checkpoint, tmp_path):
    picture = draw_picture(tmp_path / "1.png", (16, 8, 48, 40))
    assert len(run(checkpoint, picture)[0]["detections"]) == 1
    assert run(checkpoint, picture, "--score-threshold", 0.95)[0]["detections"] == []


def test_tiles_find_an_object_once_that_several_of_them_show(checkpoint, tmp_path):
    picture = draw_picture(tmp_path / "1.png", (180, 90, 230, 130), size=(400, 200))
    entry, = run(checkpoint, picture, "--tile", 128, "--overlap", 0.5, "--batch-size", 3)
    assert [found["box"] for found in entry["detections"]] == [[180, 90, 230, 130]]


def test_an_unreadable_picture_among_good_ones_costs_only_itself(checkpoint, tmp_path, capsys):
    for name in "123":
        draw_picture(tmp_path / "in" / f"{name}.png", (16, 8, 48, 40))
    Path("in/2.png").write_bytes(Path("in/2.png").read_bytes()[:-60])
    sentence = refusal(detect.main, ["in", "--checkpoint", checkpoint, "--output", "out"], capsys)
    assert "1 of 3 inputs could not be read" in sentence and "in/2.png" in sentence
    entries = json.loads(Path("out/detections.json").read_text())
    assert [entry["image"] for entry in entries] == ["in/1.png", "in/3.png"]
    assert Path("out/1.png").exists() and Path("out/3.png").exists() and not Path("out/2.png").exists()


def test_what_leads_to_no_picture_is_refused_by_name(checkpoint, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for path in ("empty", "missing.jpg", "no/*.jpg"):
        assert path in refusal(detect.main, [path, "--checkpoint", checkpoint], capsys)


def test_the_originals_are_never_overwritten(checkpoint, tmp_path, capsys):
    draw_picture(tmp_path / "in" / "1.png")
    assert "--output in" in refusal(detect.main, ["in", "--checkpoint", checkpoint, "--output", "in"], capsys)


def test_files_of_somebody_else_in_the_output_folder_are_kept(checkpoint, tmp_path, capsys):
    own, _ = (draw_picture(tmp_path / name, (0, 0, 20, 20)).read_bytes() for name in ("ph/a.png", "ph/sub/a.png"))
    words = ["--checkpoint", checkpoint, "--output"]
    assert "ph/a.png is there already" in refusal(detect.main, ["ph/sub", *words, "ph"], capsys)
    run(checkpoint, "ph/sub")
    Path("ph/detections.json").write_bytes(Path("out/detections.json").read_bytes())      # beside the pictures it says nothing of them
    assert "ph/a.png is there already" in refusal(detect.main, ["ph/sub", *words, "ph"], capsys)
    assert Path("ph/a.png").read_bytes() == own
    Path("ph/detections.json").write_text('[{"image_id": 1}]')
    assert "its detections.json is none that detect.py writes" in refusal(detect.main, ["ph/sub", *words, "ph"], capsys)


def test_drawn_copies_of_an_earlier_call_are_no_input_and_are_replaced(checkpoint, tmp_path, capsys):
    for name in ("1.png", "sub/2.png"):
        draw_picture(tmp_path / name, (0, 0, 20, 20))
    for _ in range(2):
        assert [entry["image"] for entry in run(checkpoint, "**/*.png")] == ["1.png", "sub/2.png"]
    assert "left out: 2 inputs that are drawn copies of an earlier call in out" in capsys.readouterr().out
    os.chdir("sub")
    assert len(detect.main(["../1.png", "--checkpoint", str(checkpoint), "--output", "../out"])) == 1      # also seen from another folder
    os.chdir("..")
    Path("out/notes.txt").write_text("mine")
    run(checkpoint, "1.png")
    assert sorted(path.name for path in Path("out").rglob("*.*")) == ["1.png", "detections.json", "notes.txt"]
    assert "all 1 inputs are drawn copies" in refusal(detect.main, ["out/1.png", "--checkpoint", checkpoint, "--output", "out"], capsys)


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_by_name(kind, tmp_path, capsys):
    picture, path = draw_picture(tmp_path / "1.png"), bad_checkpoint(kind, tmp_path / "some.pth")
    assert path in refusal(detect.main, [picture, "--checkpoint", path, "--output", tmp_path / "out"], capsys)


def test_ctrl_c_keeps_what_is_done(checkpoint, tmp_path, monkeypatch, capsys):
    for name in "123":
        draw_picture(tmp_path / "in" / f"{name}.png", (16, 8, 48, 40))

    def interrupted(detector, frames, detect_frames=detect.Detector.detect):
        if frames[0][0].name == "2.png":
            raise KeyboardInterrupt
        return detect_frames(detector, frames)

    monkeypatch.setattr(detect.Detector, "detect", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(checkpoint, "in", "--batch-size", 1)
    assert stop.value.code == 130
    assert [entry["image"] for entry in json.loads(Path("out/detections.json").read_text())] == ["in/1.png"]


def test_a_video_comes_back_drawn_with_an_entry_a_frame(checkpoint, tmp_path):
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96))
    for x in range(0, 50, 10):
        frame = torch.full((96, 128, 3), 110, dtype=torch.uint8)
        frame[20:60, x:x + 40] = torch.tensor(COLOURS[0]).flip(0).to(torch.uint8)  # OpenCV's order is BGR
        writer.write(frame.numpy())
    writer.release()
    draw_picture(tmp_path / "still.png", (16, 8, 48, 40))
    still, *frames = run(checkpoint, "clip.avi", "still.png")
    assert still["image"] == "still.png" and "frame" not in still
    assert [(entry["image"], entry["frame"]) for entry in frames] == [("clip.avi", number) for number in range(5)]
    for number, entry in enumerate(frames):
        assert boxes_of(entry)["disc"] == pytest.approx([10 * number, 20, 10 * number + 40, 60], abs=2)
    capture = cv2.VideoCapture("out/clip.avi.mp4")
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)


def test_a_video_of_any_rate_comes_back(checkpoint):
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    for rate in (119.943, 239.7623, 90.0067, 29.97):
        writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), rate, (128, 96))
        for _ in range(3):
            writer.write(torch.full((96, 128, 3), 110, dtype=torch.uint8).numpy())
        writer.release()
        assert len(run(checkpoint, "clip.avi")) == 3
        assert cv2.VideoCapture("out/clip.avi.mp4").get(cv2.CAP_PROP_FPS) == pytest.approx(rate, abs=0.4)


def test_inputs_whose_drawn_copies_would_be_one_file_are_refused(checkpoint, tmp_path, capsys):
    for name in ("a.avi", "a.avi.mp4"):
        (tmp_path / name).touch()
    assert "both drawn copies would be" in refusal(detect.main, ["a.avi", "a.avi.mp4", "--output", "out", "--checkpoint", checkpoint], capsys)
    assert not Path("out").exists()
    draw_picture(tmp_path / "1.png", (16, 8, 48, 40))
    assert detect.find_inputs(["1.png", str(tmp_path / "1.png"), "./1.png"]) == ([Path("1.png")], [])
    Path("folder.mp4").mkdir()
    assert Path("folder.mp4") not in detect.find_inputs(["."])[1]


def test_a_video_that_ends_early_is_named(checkpoint, tmp_path, capsys):
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96))
    for seed in range(40):
        writer.write(torch.randint(0, 256, (96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)).numpy())
    writer.release()
    data = Path("clip.avi").read_bytes()
    Path("clip.avi").write_bytes(data[:len(data) // 2])
    with pytest.raises(SystemExit) as stop:
        run(checkpoint, "clip.avi")
    entries = json.loads(Path("out/detections.json").read_text())
    assert stop.value.code == 2 and 10 < len(entries) < 30
    assert f"clip.avi: ends after {len(entries)} of the 40 frames" in capsys.readouterr().err


def test_a_camera_is_drawn_shown_and_kept_until_a_key_ends_it(checkpoint, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    view = torch.full((96, 128, 3), 110, dtype=torch.uint8)
    view[20:60, 30:70] = torch.tensor(COLOURS[0]).flip(0).to(torch.uint8)
    shown, file_capture = [], cv2.VideoCapture

    class Camera:                                   # as OpenCV's, which says 0 where a camera does not know
        def __init__(self, number):
            assert number == 3

        def get(self, what):
            return 0.0

        def read(self):
            return True, view.numpy().copy()

        def release(self):
            shown.append("released")

    monkeypatch.setattr(cv2, "VideoCapture", lambda source: Camera(source) if isinstance(source, int) else file_capture(source))
    monkeypatch.setattr(cv2, "imshow", lambda title, frame: shown.append(frame))
    monkeypatch.setattr(cv2, "waitKey", lambda wait_ms: ord("q") if len(shown) == 4 else -1)
    monkeypatch.setattr("dataset.video.check_opencv", lambda window=False: None)
    frames = run(checkpoint, "--webcam", 3, "--show")
    assert [(entry["image"], entry["frame"]) for entry in frames] == [("webcam_3", number) for number in range(4)]
    assert boxes_of(frames[0])["disc"] == pytest.approx([30, 20, 70, 60], abs=2)
    assert shown[4:] == ["released"] and shown[0].shape == (96, 128, 3) and (shown[0] != view.numpy()).any()      # drawn on
    assert file_capture("out/webcam_3.mp4").get(cv2.CAP_PROP_FRAME_COUNT) == 4


def test_who_stops_the_pictures_is_not_shown_the_videos(checkpoint, tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    for name in ("1.png", "2.png"):
        draw_picture(tmp_path / name, (16, 8, 48, 40))
    Path("clip.mp4").write_bytes(b"not looked at")
    monkeypatch.setattr(cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda wait_ms: ord("q"))
    monkeypatch.setattr("dataset.video.check_opencv", lambda window=False: None)
    assert [entry["image"] for entry in run(checkpoint, "1.png", "2.png", "clip.mp4", "--show")] == ["1.png"]


def test_what_is_no_video_is_refused_by_name(checkpoint, tmp_path, capfd):
    pytest.importorskip("cv2", exc_type=ImportError)
    Path("clip.mp4").write_bytes(b"not a video")
    with pytest.raises(SystemExit) as stop:
        run(checkpoint, "clip.mp4")
    assert stop.value.code == 2 and "clip.mp4: OpenCV can read no frame of it" in capfd.readouterr().err
    assert json.loads(Path("out/detections.json").read_text()) == []


def test_without_opencv_pictures_work_and_videos_say_what_to_install(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    draw_picture(tmp_path / "1.png", (16, 8, 48, 40))
    assert len(run(checkpoint, "1.png")) == 1
    Path("clip.mp4").write_bytes(b"")
    assert "opencv-python-headless" in refusal(detect.main, ["clip.mp4", "--checkpoint", checkpoint], capsys)
    assert "opencv-python-headless" in refusal(detect.main, ["--webcam", 0, "--checkpoint", checkpoint], capsys)


def test_show_without_a_screen_is_refused(checkpoint, tmp_path, monkeypatch, capsys):
    pytest.importorskip("cv2", exc_type=ImportError)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    picture = draw_picture(tmp_path / "1.png")
    assert "--show" in refusal(detect.main, [picture, "--show", "--checkpoint", checkpoint], capsys)


@pytest.mark.parametrize("flag, value", [("--batch-size", 0), ("--overlap", 1), ("--tile", -1), ("--score-threshold", 2)])
def test_a_flag_out_of_its_range_is_refused_by_name(flag, value, capsys):
    with pytest.raises(SystemExit) as stop:
        detect.main([flag, str(value)])
    assert stop.value.code == 2 and f"argument {flag}: is {value}, must be" in capsys.readouterr().err


def test_the_script_itself_runs_a_real_network(tmp_path):
    draw_picture(tmp_path / "in" / "1.jpg", (16, 8, 48, 40))
    words = [sys.executable, ROOT / "detect.py", "in", "--checkpoint", real_checkpoint(tmp_path / "best.pth"),
             "--score-threshold", "0.001", "--device", "cpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    entry, = json.loads((tmp_path / "detections" / "detections.json").read_text())
    assert entry["image"] == "in/1.jpg" and (tmp_path / "detections" / "1.jpg").exists()
    for found in entry["detections"]:
        x1, y1, x2, y2 = found["box"]
        assert 0 <= x1 <= x2 <= 128 and 0 <= y1 <= y2 <= 96 and found["label"] in ("disc", "slab")


def test_the_working_folder_may_be_on_another_drive_than_the_program(monkeypatch):
    def relpath(path):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")             # as Windows says it
    monkeypatch.setattr("os.path.relpath", relpath)
    assert [Path(path) for path in detect.parse_flags([]).paths] == [ROOT / "test_images"]
    assert [Path(path) for path in eval_voc.parse_flags([]).data] == [ROOT / "foreign_object_dataset"]
