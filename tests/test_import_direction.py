"""Who may import whom: four rooms that do not know each other above util; scripts import anything, nobody imports a script."""
import ast
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


def test_nobody_imports_a_script():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    shared = {"training", "evaluating"}         # what commands have in common, and nobody else takes from
    for path in ROOT.glob("*.py"):
        assert not imported(path) & (scripts - shared if path.stem not in shared else scripts), path
    for path in ROOT.glob("*/**/*.py"):
        if path.parts[len(ROOT.parts)] in (*ROOMS, "tools", "benchmarks", "foreign_object_dataset"):
            assert not imported(path) & scripts, path


def test_from_the_command_to_the_loss_it_is_five_files_and_800_lines():
    way = ["train_voc.py", "training.py", "engine/fit.py", "model/fcos.py", "model/loss.py"]
    assert sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in way) <= 800
