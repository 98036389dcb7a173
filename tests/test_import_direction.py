"""Who may import whom: four rooms that do not know each other above util; commands import anything, nobody imports a command."""
import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("engine", "dataset", "model", "evaluation", "util")


def imported(path: Path) -> set:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_rooms_import_only_themselves_and_util():
    for room in ROOMS:
        for path in (ROOT / room).glob("**/*.py"):
            foreign = imported(path) & ({*ROOMS} - {room, "util"})
            assert not foreign, f"{path} imports {foreign}"


def test_util_needs_torch_numpy_and_pillow_only():
    heavy = {"torchvision", "cv2", "matplotlib", "pycocotools", "tqdm"}
    for path in (ROOT / "util").glob("*.py"):
        assert not imported(path) & heavy, path


def test_nobody_imports_a_command_and_no_room_anything_above_it():
    above = {path.stem for path in ROOT.glob("*.py")}
    takes = {"flags": set(), "reporting": {"flags"}, "training": {"flags", "reporting"}, "evaluating": {"flags"}}
    for path in ROOT.glob("*.py"):              # the others are commands, of which nobody takes
        assert not imported(path) & (above - takes.get(path.stem, {"flags", "training", "evaluating"})), path
    for path in ROOT.glob("*/**/*.py"):
        place = path.relative_to(ROOT).parts[0]
        if place in ROOMS:
            assert not imported(path) & above, path
        elif place in ("tools", "benchmarks", "foreign_object_dataset"):
            assert not imported(path) & (above - {"flags"}), path


def test_the_loop_does_not_know_which_network_it_trains():
    for path in (ROOT / "engine").glob("*.py"):
        words = {*re.findall("fcos|rcnn|anchor|proposal|centerness|mask_head|rpn|roi", path.read_text(encoding="utf-8").lower())}
        assert not words, f"{path} speaks of {words}"


def test_from_the_command_to_the_loss_it_is_five_files_and_800_lines():
    way = ["train_voc.py", "training.py", "engine/fit.py", "model/fcos.py", "model/loss.py"]
    assert sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in way) <= 800
