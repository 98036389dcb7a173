from colour_network import refusal
from PIL import Image

from tools import contact_sheet


def test_a_contact_sheet_holds_the_pictures_side_by_side(tmp_path, capsys):
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "lime")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{name}.png")
    contact_sheet.main([str(tmp_path), "--columns", "2", "--side", "32", "--output", str(tmp_path / "sheet.jpg")])
    sheet = Image.open(tmp_path / "sheet.jpg").convert("RGB")
    colours = {max(zip(sheet.getpixel((x, y)), "rgb"))[1] for x in range(0, sheet.width, 4) for y in range(0, sheet.height, 4)
               if max(sheet.getpixel((x, y))) > 200}
    assert colours == {"r", "g", "b"} and sheet.width > sheet.height * 0.8
    words, before = [str(tmp_path / "a.png"), "--output"], (tmp_path / "sheet.jpg").read_bytes()
    assert "a.png: is one of the pictures" in refusal(contact_sheet.main, [*words, tmp_path / "a.png"], capsys)
    contact_sheet.main([*words, str(tmp_path / "sheet.jpg")])           # an earlier sheet is replaced
    assert (tmp_path / "sheet.jpg").read_bytes() != before and Image.open(tmp_path / "a.png").size == (60, 40)
