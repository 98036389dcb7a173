"""Picture files: finding them, and reading them upright, in RGB, whole or not at all."""
import glob
import io
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)      # of 90 million pixels and more; from twice as many on it is an error
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
END_OF_JPEG, START_OF_SCAN = b"\xff\xd9", 0xDA
END_MARKS = {"JPEG": END_OF_JPEG, "MPO": END_OF_JPEG, "PNG": b"IEND\xaeB\x60\x82"}


def read_picture(path):
    """The picture as uint8 RGB [3, H, W], upright by its EXIF orientation; values other than 2..8 change nothing.

    What the file holds counts, not its suffix. Transparent pixels are laid on white; 16-bit grey 0..65535 becomes
    0..255 (divided by 257). Of an animation, the first frame. The strides are those of [H, W, 3] rows.
    Raises ValueError for a file that is missing, truncated, no picture, or too large to be an honest one.
    """
    with _opened(path) as image:
        orientation = exif_orientation(image)
        image = _to_rgb(image)
        if orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[orientation])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def picture_size(path):
    """(h, w) of the upright picture, from the header."""
    return _size_and_orientation(path)[0]


def _size_and_orientation(path):
    """((h, w) of the upright picture, EXIF orientation), from the header. A JPEG or PNG without its end mark is decoded to judge it.

    Raises ValueError as `read_picture` does, except for damage that only decoding shows.
    """
    with _opened(path) as image:
        mark = END_MARKS.get(image.format)
        if mark and not _ends_with(path, mark):
            image.load()
        (width, height), orientation = image.size, exif_orientation(image)
        return ((width, height) if orientation >= 5 else (height, width)), orientation


def undecodable(paths):
    """{path: sentence} of the pictures whose pixels cannot be read. All of them are decoded, on all cores."""
    def complaint(path):
        try:
            with _opened(path) as image:
                image.load()
        except ValueError as error:
            return str(error)

    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {path: said for path, said in zip(paths, pool.map(complaint, paths), strict=True) if said}


def upright_size(path, said, where):
    """((h, w) of the upright picture, whether EXIF turns or mirrors it in a way that this size does not show). The size must be that
    which its annotation gives, `said`, (h, w) or None where it gives none.

    Raises ValueError as `picture_size` does, and, beginning with `where`, if they differ.
    """
    (height, width), orientation = _size_and_orientation(path)
    if said not in (None, (height, width)):
        why = "its size before the EXIF rotation" if orientation >= 5 else "width and height exchanged"
        turned = f", {why}," if said == (width, height) else ""
        raise ValueError(f"{where} is {said[1]}x{said[0]}{turned} but {path} is {width}x{height} upright; "
                         "the boxes must be in upright pixels")
    return (height, width), orientation > 1 and (orientation < 5 or height == width or said is None)


def exif_orientation(image):
    """The orientation 1..8 of an opened Pillow image; whatever else the file says is taken as 1."""
    if image.format == "TIFF":  # Pillow turns these itself, size and pixels
        return 1
    try:
        # the PNG reader's own getexif would decode all pixels to look behind them
        if image.format == "PNG" and "exif" not in image.info:
            image = Image.open(_png_without_pixels(image.filename))
        value = Image.Image.getexif(image).get(0x0112, 1)
    except Exception:  # a damaged EXIF block must not cost the picture
        return 1
    return value if value in UPRIGHT else 1


def _png_without_pixels(path):
    """A PNG of the chunks that may tell an orientation: ImageMagick writes EXIF behind the pixels, exiftool before 11.63 XMP."""
    kept = io.BytesIO()
    with open(path, "rb") as file:
        kept.write(file.read(8))
        while head := file.read(8):
            length = int.from_bytes(head[:4], "big") + 4  # with the checksum
            if head[4:] in (b"IHDR", b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"IEND"):
                kept.write(head + file.read(length))
            else:
                file.seek(length, os.SEEK_CUR)
    return kept


@contextmanager
def _opened(path):
    """Whatever Pillow raises while the picture is in use becomes a ValueError that names the file."""
    try:
        with Image.open(path) as image:
            if image.mode == "F" or image.format == "TIFF" and image.mode == "I":
                kind = "floating-point numbers" if image.mode == "F" else "signed or 32-bit numbers"
                raise ValueError(f"its pixels are {kind} (mode {image.mode}), which have no agreed range")
            if END_MARKS.get(image.format) == END_OF_JPEG and _ends_with(path, bytes(16)) and not _scan_ends(Path(path).read_bytes()):
                raise ValueError("it is truncated, zeros stand for its end")
            yield image
    except FileNotFoundError:
        raise ValueError(f"{path}: no such picture") from None
    except MemoryError:         # not the picture's fault
        raise
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path}: is no picture of a known kind") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
        raise ValueError(f"{path}: cannot be read as a picture: {error}") from None


def _ends_with(path, mark):
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - len(mark)))
        return file.read() == mark


def _scan_ends(jpeg):
    """Whether the pixels of a JPEG end: its decoder takes zeros for the rest of a lost tail, and makes it grey. A thumbnail, in a segment
    of its own before the pixels, does not count, nor what a telephone writes behind them."""
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != START_OF_SCAN:
        at += 1 if jpeg[at + 1] == 0xFF else 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg.find(END_OF_JPEG, at) >= 0


def _to_rgb(image):
    if image.mode.startswith("I"):  # convert("RGB") would saturate every 16-bit pixel
        grey = (np.asarray(image).astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def natural_order(path):
    """A sorting key under which `7.jpg` comes before `10.jpg`."""
    return [int(part) if place % 2 else part.casefold() for place, part in enumerate(re.split(r"([0-9]+)", str(path)))]


def flat_name(id: str) -> str:
    """An id, which may be a path with folders or a drive, as the name of one file, without suffix: of a long one the last 200 bytes."""
    return re.sub(r"[/\\:]", "_", id.strip("/")).encode(errors="ignore")[-200:].decode(errors="ignore")


def flat_names(ids):
    """A `flat_name` for each id, no two alike."""
    names = {}          # an ordered set
    for name in map(flat_name, ids):
        while name in names:
            name += "_"
        names[name] = None
    return list(names)


def is_picture(path):
    """Whether the name is that of a picture; hidden files, such as macOS's `._7.jpg`, are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_pictures(paths):
    """The picture files of files, folders (their direct children) and globs, each once, each argument in natural order.

    A file that is named outright is taken whatever its suffix. Raises ValueError for a path that leads to none.
    """
    found = {}
    for path in map(str, paths):
        if not path:
            raise ValueError("a PATH is empty, such as of a shell variable that is not set; give files, folders, or globs")
        if Path(path).is_file():
            candidates = [Path(path)]
        elif Path(path).is_dir():
            candidates = [child for child in Path(path).iterdir() if is_picture(child) and child.is_file()]
        else:
            candidates = [Path(name) for name in glob.glob(path, recursive=True) if is_picture(Path(name)) and Path(name).is_file()]
        if not candidates:
            kinds = " ".join(SUFFIXES)
            if (Path(path) / "JPEGImages").is_dir():
                raise ValueError(f"{path}: no picture here; they are in {Path(path) / 'JPEGImages'}")
            raise ValueError(f"{path}: no picture here; give files, folders, or globs like 'DIR/**/*.jpg' ({kinds})")
        found.update((candidate, None) for candidate in sorted(candidates, key=natural_order))
    return list(found)


class Pictures:
    """Pictures without annotations: [i] -> (uint8 RGB [3, H, W], {"image_id": the path, "orig_size": (h, w)})."""

    def __init__(self, paths):
        self.paths = find_pictures(paths)
        self._sizes = [picture_size(path) for path in self.paths]
        self.ids = [path.as_posix() for path in self.paths]

    def __len__(self):
        return len(self.paths)

    def size(self, index):
        """(h, w) of the upright picture, without decoding it."""
        return self._sizes[index]

    def __getitem__(self, index):
        image = read_picture(self.paths[index])
        return image, {"image_id": self.ids[index], "orig_size": tuple(image.shape[-2:])}
