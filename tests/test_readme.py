"""What the READMEs show works as it stands there."""
import re
from pathlib import Path

import pytest
from colour_network import colour_checkpoint, real_checkpoint
from conftest import COLOURS
from PIL import Image, ImageDraw

from flags import MODEL_FLAGS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The README's Python example, in a folder with test_images/1.png, which shows a disc and nothing else."""
    monkeypatch.chdir(tmp_path)
    Path("test_images").mkdir()
    Path("checkpoint").mkdir()
    picture = Image.new("RGB", (128, 96), (110, 110, 110))
    ImageDraw.Draw(picture).rectangle((16, 8, 47, 39), fill=COLOURS[0])
    picture.save("test_images/1.png")
    code, = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return compile(code, "README.md", "exec")


def test_the_python_example_prints_what_the_network_is_sure_of(example, monkeypatch, capsys):
    colour_checkpoint(Path("checkpoint/foreign_objects.pth"), monkeypatch)
    exec(example, {})
    assert capsys.readouterr().out == "test_images/1.png ['disc'] [[16.0, 8.0, 48.0, 40.0]]\n"


def test_the_python_example_runs_a_real_network_that_is_sure_of_nothing(example, capsys):
    real_checkpoint(Path("checkpoint/foreign_objects.pth"))
    exec(example, {})
    assert capsys.readouterr().out == "test_images/1.png [] []\n"


def test_every_file_of_the_map_is_there():
    text = "".join((ROOT / room / "README.md").read_text(encoding="utf-8") for room in (".", "model", "pseudo_label", "foreign_object_dataset"))
    rooms = "benchmarks|configs|dataset|engine|evaluation|foreign_object_dataset|model|pseudo_label|tools|util"
    named = {*re.findall(rf"\b(?:{rooms})/[\w/]+\.\w+", text), *re.findall(r"\b(?:train_voc|eval_voc|train_coco|eval_coco|training|evaluating|detect|flags)\.py", text)}
    assert len(named) > 20 and not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_table_of_toggles_names_flags_that_there_are_with_their_choices():
    text = (ROOT / "model" / "README.md").read_text(encoding="utf-8").partition("## Which FCOS")[2].partition("\n## Other people")[0]
    rows = re.findall(r"^\| (`--.*?) \| (.*?) \|", text, re.MULTILINE)
    named = {flag.replace("-", "_"): choices for flags, choices in rows for flag in re.findall(r"`--([\w-]+)`", flags)}
    assert {*named} == {*MODEL_FLAGS} - {"pre_nms_top_k"}
    for flag, choices in named.items():
        kind = MODEL_FLAGS[flag][2]
        assert not isinstance(kind, tuple) or not isinstance(kind[0], str) or all(f"`{choice}`" in choices for choice in kind), flag


def test_no_link_of_the_documents_is_dead():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            file, _, part = link.partition("#")
            target = document.parent / file if file else document
            assert target.exists(), f"{document.relative_to(ROOT)}: {link}"
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if part else []
            assert not part or part in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, f"{document.relative_to(ROOT)}: {link}"
