"""What data sets with objects have in common once their files are read: pictures, targets, counts."""
import difflib
from collections import Counter

import torch

from dataset.pictures import read_picture
from dataset.sample import make_target


def unknown_class(name, classes):
    """What is wrong with a name that is none of the classes, and what was probably meant."""
    known = {each.casefold(): each for each in classes}
    close = difflib.get_close_matches(name.casefold(), known, n=1)
    return f"is '{name}', not one of {', '.join(classes)}" + (f"; did you mean '{known[close[0]]}'?" if close else "")


class AnnotatedPictures:
    """[i] -> (uint8 RGB [3, H, W], target), see `make_target`. A data set's __init__ calls `_add` for each picture, then `_finish`.

    .classes   names in the order of the labels       .ids      list of str, the image_id of each picture
    .pictures  their files                            .notes    sentences on harmless oddities
    .skipped   sentences, one for each file or object that is bad and left out
    .category_ids, .image_ids   what COCO results call label k, and the picture of an image_id
    All annotations and the headers of all pictures are read by __init__, once; pixels are read by [i] only.
    """

    def __init__(self):
        self.ids, self.pictures, self.skipped, self.notes = [], [], [], []
        self._sizes, self._counts, self._objects = [], [], []

    def _add(self, id, picture, size, objects):
        """A picture of `size` (h, w) with its good objects [(class name, edges x1 y1 x2 y2, difficult, ignore)]."""
        self.ids.append(id)
        self.pictures.append(picture)
        self._sizes.append(size)
        self._counts.append(len(objects))
        self._objects += objects

    def _finish(self, where, classes, skip_bad):
        """Raises ValueError, naming `where`, if something was bad and skip_bad is False, or if no picture is left."""
        if self.skipped and not skip_bad:
            others = f"; {len(self.skipped) - 1} more like this" if len(self.skipped) > 1 else ""
            raise ValueError(f"{self.skipped[0]}{others}; --skip-bad leaves out what is bad and goes on")
        if not self.ids:
            raise ValueError(f"{where}: no picture is left, {len(self.skipped)} are bad" + "; the first: ".join(["", *self.skipped[:1]]))
        if not self._objects:
            self.notes.append(f"{where}: not one object in {len(self.ids)} pictures")
        self.classes = list(classes) if classes is not None else sorted({name for name, *_ in self._objects})
        self.category_ids = list(range(1, len(self.classes) + 1))
        self.image_ids = {id: id for id in self.ids}
        label_of = {name: label for label, name in enumerate(self.classes)}
        names, boxes, difficult, ignore = zip(*self._objects, strict=True) if self._objects else ((), (), (), ())
        self._boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        self._labels = torch.tensor([label_of[name] for name in names], dtype=torch.int64)
        self._difficult, self._ignore = (torch.tensor(flags, dtype=torch.bool) for flags in (difficult, ignore))
        self._ends = torch.tensor(self._counts).cumsum(0).tolist()
        del self._objects, self._counts

    def __len__(self):
        return len(self.ids)

    def size(self, index):
        """(h, w) of the upright picture, without decoding it."""
        return self._sizes[index]

    def _rows(self, index):
        return slice(self._ends[index - 1] if index else 0, self._ends[index])

    def target(self, index):
        """The target alone, without decoding the picture."""
        boxes, labels, difficult, ignore = (
            field[self._rows(index)].clone() for field in (self._boxes, self._labels, self._difficult, self._ignore))
        return make_target(boxes, labels, difficult, self.ids[index], self._sizes[index], ignore)

    def truth(self):
        """{image_id: ground truth}, as evaluation.report.evaluate takes it."""
        return {image_id: self.target(index) for index, image_id in enumerate(self.ids)}

    def __getitem__(self, index):
        target, image = self.target(index), read_picture(self.pictures[index])
        if tuple(image.shape[-2:]) != target["orig_size"]:
            raise ValueError(f"{self.pictures[index]}: has changed since the data set was opened")
        return image, target

    def class_counts(self):
        """{class: number of objects, without regions to ignore}, in the order of the labels."""
        counts = Counter(self._labels[~self._ignore].tolist())
        return {name: counts[label] for label, name in enumerate(self.classes)}
