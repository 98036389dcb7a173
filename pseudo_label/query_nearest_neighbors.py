"""The labels that look most like each detection: exact search over the features, by faiss.

    python -m pseudo_label.query_nearest_neighbors found --output found/neighbors.json
    python -m pseudo_label.query_nearest_neighbors found --k 5 --output found/neighbors.json

`found` is the folder that extract_features wrote. Each detection gets nn_ids (annotation ids), nn_category_ids and nn_distances,
nearest first: 1 - cosine, 0 for equal features, 2 for opposite ones. A detection is compared with labels whose features the same
teacher gave (with --folds, of pictures it did not train on): features of different teachers have nothing in common. There are fewer than k where a teacher has fewer labels.
"""
import json
from pathlib import Path
from zipfile import BadZipFile

from pseudo_label.labels import refuse_inputs, write_json
from util.command_line import Parser, number, one_sentence_errors


ARRAYS = ("detections", "detection_teachers", "kept", "kept_teachers", "kept_ids", "kept_category_ids")     # of features.npz


def read_found(folder) -> tuple[list, dict]:
    """(detections, arrays of features.npz). Raises ValueError where a file is missing, or they are of different runs or checkpoints."""
    import numpy as np
    folder = Path(folder)
    try:
        detections = json.loads((folder / "detections.json").read_text(encoding="utf-8"))
        with np.load(folder / "features.npz", allow_pickle=False) as file:
            arrays = dict(file)
        if not isinstance(detections, list) or not all(isinstance(each, dict) for each in detections):
            raise ValueError("detections.json is no list of detections")
        if lacking := [name for name in ARRAYS if name not in arrays]:
            raise ValueError(f"features.npz has no {lacking[0]}")
    except (OSError, EOFError, BadZipFile, ValueError, TypeError, AttributeError) as error:       # the last two: an array alone
        raise ValueError(f"{folder}: must hold detections.json and features.npz, as extract_features writes them without --no-features "
                         f"({error})") from None
    teachers = [each.get("teacher") for each in detections]
    if teachers != arrays["detection_teachers"].tolist():
        theirs, ours = (", ".join(sorted({*map(str, names)})) or "none" for names in (arrays["detection_teachers"].tolist(), teachers))
        raise ValueError(f"{folder}: features.npz has {len(arrays['detection_teachers'])} features of checkpoint {theirs}, detections.json "
                         f"{len(detections)} detections of {ours}; extract both anew, in one run")
    return detections, arrays


def nearest(features, kept, k: int):
    """(rows of `kept` [D, k'], distances 1 - cosine [D, k']), nearest first; k' is k, or all there are.

    features, kept   float [D, channels] and [G, channels], G >= 1; each is taken to length 1 here, since half floats are a little off
    """
    try:
        import faiss
    except ImportError:
        raise ValueError("the search needs faiss, which is not installed: pip install faiss-cpu") from None
    index = faiss.IndexFlatIP(kept.shape[1])
    features, kept = features.astype("float32"), kept.astype("float32")
    for each in (features, kept):
        faiss.normalize_L2(each)
    index.add(kept)
    similarity, rows = index.search(features, min(k, len(kept)))
    return rows, 1 - similarity


def neighbors(detections: list, arrays: dict, k: int = 1) -> list:
    """The detections, each with nn_ids, nn_category_ids and nn_distances, empty where its teacher gave features of no label."""
    import numpy as np
    result = [{**each, "nn_ids": [], "nn_category_ids": [], "nn_distances": []} for each in detections]
    for teacher in np.unique(arrays["detection_teachers"]):
        wanted, own = (np.flatnonzero(arrays[f"{part}_teachers"] == teacher) for part in ("detection", "kept"))
        if not len(own):
            continue
        rows, distances = nearest(arrays["detections"][wanted], arrays["kept"][own], k)
        for place, near, far in zip(wanted.tolist(), own[rows], distances.tolist(), strict=True):
            result[place] |= {"nn_ids": arrays["kept_ids"][near].tolist(), "nn_category_ids": arrays["kept_category_ids"][near].tolist(),
                              "nn_distances": [round(value, 5) for value in far]}
    return result


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("found", metavar="DIR", help="what extract_features wrote")
    add("--k", type=number(int, 1), default=1, metavar="N", help="labels for each detection")
    add("--output", required=True, metavar="FILE", help="json to write")
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        refuse_inputs(flags.output, *(Path(flags.found) / name for name in ("detections.json", "features.npz")))
        detections, arrays = read_found(flags.found)
        result = neighbors(detections, arrays, flags.k)
        write_json(flags.output, result)
        agree = sum(each["category_id"] in each["nn_category_ids"][:1] for each in result)
        print(f"{len(result)} detections, {len(arrays['kept_ids'])} labels; the nearest is of the same class for {agree}; {flags.output}")


if __name__ == "__main__":
    main()
