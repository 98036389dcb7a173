"""Masks, boxes, names and scores on pictures, and sheets of pictures. Sizes follow the picture, colours follow the class."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

BACKGROUND = (32, 32, 32)
SYSTEM_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "segoeui.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf",
                "Arial Unicode.ttf", "PingFang.ttc", "AppleSDGothicNeo.ttc")         # Linux's, Windows's and macOS's with many letters
TINT = 0.4                      # how much of a mask's colour covers the picture


@lru_cache(maxsize=8)
def class_colours(count: int, lightness: tuple[float, float] = (0.6, 0.92)) -> tuple[tuple[int, int, int], ...]:
    """`count` RGB colours 0..255, each as far as possible from those before it, neither greyish nor glaring.

    Law: class_colours(n) begins with class_colours(m) for m < n, so a class keeps its colour when others join the list.
    Distances are taken in OKLab (Ottosson 2020, "A perceptual color space for image processing"); `lightness` is its L,
    0 black to 1 white.
    """
    steps = np.linspace(0, 1, 14)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ np.array([[0.4122214708, 0.2119034982, 0.0883024619],
                                       [0.5363325363, 0.6806995451, 0.2817188376],
                                       [0.0514459929, 0.1073969566, 0.6299787005]]))
    lab = cones @ np.array([[0.2104542553, 1.9779984951, 0.0259040371],
                            [0.7936177850, -2.4285922050, 0.7827717662],
                            [-0.0040720468, 0.4505937099, -0.8086757660]])
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    vivid = (lab[:, 0] >= lightness[0]) & (lab[:, 0] <= lightness[1]) & (chroma >= 0.11) & (chroma <= 0.25)
    rgb, lab = rgb[vivid], lab[vivid] * [0.6, 1, 1]  # hue tells boxes apart better than lightness does
    chosen = [int(np.argmax(lab[:, 1]))]
    distance = np.full(len(lab), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        chosen.append(int(np.argmax(distance)))
    return tuple(tuple(int(value) for value in np.round(rgb[row] * 255)) for row in chosen[:count])


def text_colour(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever has the higher WCAG 2 contrast to `background`."""
    share = np.asarray(background) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return (0, 0, 0) if float(linear @ [0.2126, 0.7152, 0.0722]) > 0.179 else (255, 255, 255)


def to_pil(image) -> Image.Image:
    """A new RGB picture from a PIL picture or a uint8 [3,H,W] tensor."""
    if isinstance(image, Image.Image):
        return image.convert("RGB") if image.mode != "RGB" else image.copy()
    return Image.fromarray(np.ascontiguousarray(torch.as_tensor(image).cpu().permute(1, 2, 0).numpy()))


@lru_cache(maxsize=32)
def lettering(names: tuple, size: int):
    """(a Pillow font of `size` px, {name: how it is written}). Pillow's own font has few letters beyond ASCII: for others one of the system that
    has them is taken. Where none has, they are written as their numbers, so that no two names look the same."""
    letters = {letter for name in names for letter in name if not letter.isascii()}
    for file in (None, *SYSTEM_FONTS):
        try:
            font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
        except OSError:             # not on this machine
            continue
        box = bytes(font.getmask("\uffff"))        # what stands for any letter that a font does not have
        if all(bytes(font.getmask(letter)) != box for letter in letters):
            return font, {name: name for name in names}
    return ImageFont.load_default(size), {name: name.encode("ascii", "backslashreplace").decode() for name in names}


def draw_detections(image, boxes, labels, scores=None, classes=None, dashed=False, plates=True, masks=None) -> Image.Image:
    """A copy of the picture with a box and a name plate, and a mask where it has one, for each detection; best scored on top.

    image    uint8 [3,H,W] tensor or PIL picture
    boxes    [K, 4]  xyxy in its pixels; parts outside are not drawn; K may be 0
    labels   [K]     class names
    scores   [K]     written behind the names; None for ground truth
    classes  all class names, which fixes the colour of each; without it the names in `labels`, sorted, decide
    dashed   thin dashed boxes, for ground truth beneath or beside detections; plates=False leaves the names out
    masks    [K, H, W]  bool or uint8, 1 on the object, or util.masks.OneByOne; beneath all boxes
    """
    picture, labels = to_pil(image), list(labels)
    classes = sorted(set(labels)) if classes is None else list(classes)
    colours = dict(zip(classes, class_colours(len(classes)), strict=True))
    draw, mean_side = ImageDraw.Draw(picture), (picture.width + picture.height) / 2
    line = max(2, round(mean_side / 420))
    font, spelled = lettering(tuple(classes), max(12, round(mean_side / 60)))
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4).cpu()
    rising = list(range(len(labels))) if scores is None else torch.as_tensor(scores).argsort(stable=True).tolist()
    for row in () if masks is None else rising:
        tint(picture, masks[row], colours[labels[row]], line)
    frames = {row: frame_around(boxes[row].tolist(), line, picture.size) for row in rising}
    for row in rising:
        if dashed:
            draw_dashes(draw, frames[row], colours[labels[row]], max(1, line // 2), dash=4 * line)
        else:
            draw.rectangle(frames[row], outline=colours[labels[row]], width=line)
    covered = [(frame, 1) for frame in frames.values()]
    for row in reversed(rising) if plates else ():
        text = spelled[labels[row]] if scores is None else f"{spelled[labels[row]]} {float(scores[row]):.2f}"
        plate = draw_plate(draw, frames[row], text, font, colours[labels[row]], picture.size, covered)
        covered.append((plate, 20))
    return picture


def tint(picture, mask, colour, line: int):
    """Lays the colour thinly over a mask [H, W] and fully along its rim, which is `line` px wide and lies inside it."""
    mask = torch.as_tensor(mask).cpu().numpy().astype(bool)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return
    top, left = rows[0] - line, columns[0] - line
    shape = Image.fromarray(np.pad(mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1], line).astype(np.uint8) * 255)
    rim = ImageChops.subtract(shape, shape.filter(ImageFilter.MinFilter(2 * line + 1))).filter(ImageFilter.GaussianBlur(0.6))
    opacity = ImageChops.lighter(Image.eval(shape, lambda value: int(TINT * value)), ImageChops.darker(rim, shape))
    picture.paste(colour, (int(left), int(top)), opacity)


def frame_around(box, line: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """First and last pixel columns and rows of a line drawn around the box, so that a small object stays visible inside
    it, kept within a picture of `size` (w, h) as Pillow says it.
    """
    x1, y1 = (min(max(round(edge) - line, 0), side - 1) for edge, side in zip(box[:2], size, strict=True))
    x2, y2 = (min(max(round(edge) + line - 1, 0), side - 1) for edge, side in zip(box[2:], size, strict=True))
    return x1, y1, max(x1, x2), max(y1, y2)


def draw_dashes(draw, frame, colour, width: int, dash: int):
    x1, y1, x2, y2 = frame
    for x in range(x1, x2 + 1, 2 * dash):
        end = min(x + dash - 1, x2)
        draw.rectangle((x, y1, end, min(y1 + width - 1, y2)), fill=colour)
        draw.rectangle((x, max(y2 - width + 1, y1), end, y2), fill=colour)
    for y in range(y1, y2 + 1, 2 * dash):
        end = min(y + dash - 1, y2)
        draw.rectangle((x1, y, min(x1 + width - 1, x2), end), fill=colour)
        draw.rectangle((max(x2 - width + 1, x1), y, x2, end), fill=colour)


def draw_plate(draw, frame, text: str, font, colour, size: tuple[int, int], covered: list) -> tuple:
    """Writes the text on a plate near the frame, where it hides least of `covered`: [(rectangle, weight)].

    returns  the plate's rectangle, inside the picture of `size` (w, h); a text too long for it ends in a full stop
    """
    ascent, descent = font.getmetrics()
    margin = max(2, round(ascent / 5))
    height, (picture_width, picture_height) = ascent + descent + margin, size
    while len(text) > 1 and draw.textlength(text, font=font) + 2 * margin > picture_width:
        text = text.rstrip(".")[:-1] + "."
    width = int(draw.textlength(text, font=font)) + 2 * margin
    x1, y1, x2, y2 = frame
    above, below, right = y1 - height, y2 + 1, x2 + 1 - width
    places = [(x1, above), (x1, below), (right, above), (right, below), (x1, y1), (right, y1), (x1, y2 - height)]
    places = np.clip(places, 0, np.maximum([picture_width - width, picture_height - height], 0))[:, None]  # [P, 1, 2]
    rectangles, weights = (np.array(column) for column in zip(*covered, strict=True))
    ends = np.minimum(places + [width, height], rectangles[:, 2:] + 1)
    hidden = (ends - np.maximum(places, rectangles[:, :2])).clip(0).prod(axis=2)  # [P, rectangles] px^2
    x, y = places[(hidden * weights).sum(axis=1).argmin(), 0].tolist()
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    draw.text((x + margin, y + margin // 2), text, fill=text_colour(colour), font=font)
    return x, y, x + width - 1, y + height - 1


def grid(images, columns: int, side: int = 480, gap: int = 8) -> Image.Image:
    """A sheet of pictures, row by row, each shrunk (never enlarged) to fit `side` x `side` px and centred in its cell.

    images  uint8 [3,H,W] tensors or PIL pictures, at least one; each is held only until it is shrunk
    """
    pictures = []
    for image in images:                # large ones one after the other
        pictures.append(to_pil(image))
        pictures[-1].thumbnail((side, side), Image.Resampling.LANCZOS)
    if not pictures:
        raise ValueError("grid: 0 pictures given, a sheet needs at least one")
    columns = min(columns, len(pictures))
    rows = [pictures[start:start + columns] for start in range(0, len(pictures), columns)]
    widths = [max(row[column].width for row in rows if column < len(row)) for column in range(columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (sum(widths) + gap * (columns + 1), sum(heights) + gap * (len(rows) + 1)), BACKGROUND)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for picture, width in zip(row, widths, strict=False):
            sheet.paste(picture, (left + (width - picture.width) // 2, top + (height - picture.height) // 2))
            left += width + gap
        top += height + gap
    return sheet
