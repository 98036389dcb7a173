"""What data sets with objects have in common once their files are read: pictures, targets, counts."""
import difflib
import math
from collections import Counter
from typing import NamedTuple

import torch

from dataset.pictures import read_picture
from dataset.preprocess import resized_size
from dataset.sample import keep_objects, make_target, of_people


def unknown_class(name, classes):
    """What is wrong with a name that is none of the classes, and what was probably meant."""
    known = {each.casefold(): each for each in classes}
    close = difflib.get_close_matches(name.casefold(), known, n=1)
    shown = ", ".join(classes) if len(classes) <= 20 else f"the {len(classes)} classes {classes[0]}, {classes[1]}, ..., {classes[-1]}"
    return f"is '{name}', not one of {shown}" + (f"; did you mean '{known[close[0]]}'?" if close else "")


def same_but_for_case(counts):
    """Of {class name: number of objects} a text for each group of names that differ only in upper and lower case."""
    groups = {}
    for name, count in counts.items():
        groups.setdefault(name.casefold(), []).append(f"{name} ({count} objects)")
    return [" / ".join(group) for group in groups.values() if len(group) > 1]


BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
LARGEST = torch.finfo(torch.float32).max
ORIGIN_KEYS = ("ispseudo", "score", "p_real", "weight", "zone")


class Origin(NamedTuple):
    """Whose label an object has, and how much it counts."""
    pseudo: bool = False        # a network's
    weight: float = 1.0
    zone_ignore: bool = False   # not an object: a place where its class is left open


def read_choice(name, value, choices):
    """What the text of a value, in any case, stands for in {text: True or False}; False for None. Raises ValueError with the rule."""
    text = str(value).strip().lower()
    if value is not None and text not in choices:
        raise ValueError(f"{name} is {value!r}, must be one of {', '.join(choices)}")
    return value is not None and choices[text]


def read_origin(written):
    """The Origin that a COCO annotation's keys, or the texts of a VOC object's tags, tell: {name: value}, an absent one None.

    ispseudo  true or false;  zone  "positive" or "ignore";  weight  a number of 0 or more
    score, p_real  numbers in 0..1, which training does not use: how sure the network was, the probability that the object is real
    Raises ValueError with the rule, without file and object.
    """
    def number(name, high):
        value = written.get(name)
        try:
            found = 1.0 if value is None else float(str(value))         # str: true is no number
        except ValueError:
            found = math.nan
        if not 0 <= found <= min(high, LARGEST):
            raise ValueError(f"{name} is {value!r}, must be a number {'of 0 or more' if math.isinf(high) else f'in 0..{high}'}")
        return found

    for name in ("score", "p_real"):
        number(name, 1)
    return Origin(read_choice("ispseudo", written.get("ispseudo"), BOOLEANS), number("weight", math.inf),
                  read_choice("zone", written.get("zone"), {"positive": False, "ignore": True}))


class AnnotatedPictures:
    """[i] -> (uint8 RGB [3, H, W], target), see `make_target`. A data set's __init__ calls `_add` for each picture, then `_finish`.

    .classes   names in the order of the labels       .ids      list of str, the image_id of each picture
    .pictures  their files                            .notes    sentences on harmless oddities
    .skipped   sentences, one for each file or object that is bad and left out
    .category_ids, .image_ids   what COCO results call label k, and the picture of an image_id
    All annotations and the headers of all pictures are read by __init__, once; pixels by [i], and by __init__ where it skips what is bad.
    """

    def __init__(self):
        self.ids, self.pictures, self.skipped, self.notes = [], [], [], []
        self._sizes, self._counts, self._objects = [], [], []
        self.lists = []                         # names of lists in ImageSets that the pictures are of
        self.objects_cut = self.turned = 0
        self.of_other_classes = Counter()       # {name: objects}

    def _add(self, id, picture, size, objects):
        """A picture of `size` (h, w) with its good objects [(class name, edges x1 y1 x2 y2, difficult, ignore, Origin)]."""
        self.ids.append(id)
        self.pictures.append(picture)
        self._sizes.append(size)
        self._counts.append(len(objects))
        self._objects += objects

    def _leave_out(self, where, name, classes):
        """An object of none of the classes: a sentence for the first of its name, and what `_finish` says of the others."""
        self.of_other_classes[name] += 1
        if self.of_other_classes[name] == 1:
            self.skipped.append(f"{where} {unknown_class(name, classes)}")

    def _finish(self, where, classes, skip_bad, pseudo_weight):
        """Pseudo labels weigh `pseudo_weight` times what is written.

        Raises ValueError, naming `where`, if something was bad and skip_bad is False, or if no picture is left.
        """
        if self.skipped and not skip_bad:
            others = f"; {len(self.skipped) - 1} more faults" if len(self.skipped) > 1 else ""
            raise ValueError(f"{self.skipped[0]}{others}; --skip-bad leaves out what is bad and goes on")
        if not self.ids:
            raise ValueError(f"{where}: " + (f"no picture is left, {len(self.skipped)} are bad; the first: {self.skipped[0]}" if self.skipped else "lists no picture"))
        if self.skipped:
            self.notes.insert(0, f"{where}: {len(self.skipped)} faults are left out; {len(self.ids)} pictures with {len(self._objects)} objects stay")
        self.notes += [f"{where}: {count - 1} more objects are '{name}'" for name, count in self.of_other_classes.items() if count > 1]
        if not self._objects:
            self.notes.append(f"{where}: not one object in {len(self.ids)} pictures")
        self.classes = list(classes) if classes is not None else sorted({name for name, *_ in self._objects})
        self.category_ids = list(range(1, len(self.classes) + 1))
        self.image_ids = {id: id for id in self.ids}
        label_of = {name: label for label, name in enumerate(self.classes)}
        names, boxes, difficult, ignore, origins = zip(*self._objects, strict=True) if self._objects else ((), (), (), (), ())
        pseudo, weights, zone_ignore = zip(*origins, strict=True) if origins else ((), (), ())
        self._boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        self._labels = torch.tensor([label_of[name] for name in names], dtype=torch.int64)
        self._difficult, self._ignore, self._pseudo, self._zone_ignore = (
            torch.tensor(flags, dtype=torch.bool) for flags in (difficult, ignore, pseudo, zone_ignore))
        self._weights = torch.tensor(weights, dtype=torch.float32) * torch.where(self._pseudo, pseudo_weight, 1.0)
        if any(pseudo) or any(zone_ignore):
            positive = self._pseudo & ~self._zone_ignore
            weight = f", of weight {float(self._weights[positive].mean()):.3g} on average" if positive.any() else ""
            self.notes.append(f"{where}: {int(positive.sum())} of the {len(pseudo)} boxes are pseudo labels{weight}, and "
                              f"{sum(zone_ignore)} are zones to ignore")
        own = (self._weights != 1) & ~self._pseudo & ~self._zone_ignore
        if own.any():
            self.notes.append(f"{where}: {int(own.sum())} human labels weigh {float(self._weights[own].min()):g} to {float(self._weights[own].max()):g} in the losses, by "
                              "their `weight`")
        self.notes += [f"{where}: {group} differ only in upper and lower case, and are classes of their own"
                       for group in same_but_for_case(self.class_counts())]
        if self.turned:
            self.notes.append(f"{where}: EXIF turns or mirrors {self.turned} pictures, and their sizes do not tell whether the boxes go with it; they are taken to be "
                              "in upright pixels")
        if self.objects_cut:
            self.notes.append(f"{where}: {self.objects_cut} boxes stick out of their picture by over 1 px; they are cut")
        self._ends = torch.tensor(self._counts).cumsum(0).tolist()
        del self._objects, self._counts

    def __len__(self):
        return len(self.ids)

    def counted(self):
        """Such as "217 pictures of train"."""
        return f"{len(self)} pictures" + (f" of {', '.join(self.lists)}" if self.lists else "")

    def size(self, index):
        """(h, w) of the upright picture, without decoding it."""
        return self._sizes[index]

    def input_sides(self, min_size, max_size):
        """float32 [M, 2]: width and height of all objects in px of an input of these sizes; with None, of the pictures."""
        scales = [resized_size(*size, min_size, max_size)[0] / size[0] if min_size else 1.0 for size in self._sizes]
        counts = torch.tensor(self._ends).diff(prepend=torch.zeros(1, dtype=torch.int64))
        return (self._boxes[:, 2:] - self._boxes[:, :2]) * torch.tensor(scales, dtype=torch.float32).repeat_interleave(counts)[:, None]

    def _rows(self, index):
        return slice(self._ends[index - 1] if index else 0, self._ends[index])

    def target(self, index):
        """The target alone, without decoding the picture."""
        boxes, labels, difficult, *others = (
            field[self._rows(index)].clone() for field in (self._boxes, self._labels, self._difficult, self._ignore, self._weights,
                                                           self._pseudo, self._zone_ignore))
        return make_target(boxes, labels, difficult, self.ids[index], self._sizes[index], *others)

    def truth(self):
        """{image_id: ground truth}, as evaluation.report.evaluate takes it, without pseudo labels and zones."""
        targets = {image_id: self.target(index) for index, image_id in enumerate(self.ids)}
        return {image_id: keep_objects(target, of_people(target)) for image_id, target in targets.items()}

    def __getitem__(self, index):
        target, image = self.target(index), read_picture(self.pictures[index])
        if tuple(image.shape[-2:]) != target["orig_size"]:
            raise ValueError(f"{self.pictures[index]}: has changed since the data set was opened")
        return image, target

    def class_counts(self):
        """{class: number of objects, without regions and zones to ignore}, in the order of the labels."""
        counts = Counter(self._labels[~(self._ignore | self._zone_ignore)].tolist())
        return {name: counts[label] for label, name in enumerate(self.classes)}
