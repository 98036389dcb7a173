"""Puts pictures side by side in one.

    python tools/contact_sheet.py detections/*.jpg --columns 2 --output assets/detections.jpg
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.command_line import Parser, number, one_sentence_errors  # noqa: E402


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="pictures, folders or quoted globs")
    parser.add_argument("--columns", type=number(int, 1), default=2, metavar="N", help="pictures in a row")
    parser.add_argument("--side", type=number(int, 16), default=640, metavar="PX", help="longest side of each picture")
    parser.add_argument("--output", required=True, metavar="FILE", help="where to write")
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        from dataset.pictures import SUFFIXES, find_pictures, read_picture
        from util.draw import grid
        if Path(flags.output).suffix.lower() not in SUFFIXES:
            raise ValueError(f"--output {flags.output}: must end in one of {' '.join(SUFFIXES)}")
        pictures, output = find_pictures(flags.paths), Path(flags.output)
        if output.exists() and any(output.samefile(picture) for picture in pictures):
            raise ValueError(f"--output {output}: is one of the pictures, which it would replace; name another file")
        grid(map(read_picture, pictures), flags.columns, flags.side).save(output, quality=90)


if __name__ == "__main__":
    main()
