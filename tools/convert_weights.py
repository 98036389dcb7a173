"""Makes a checkpoint of this repository from the detector of another one; detect.py, eval_*.py and --weights take it from there.

    python tools/convert_weights.py fcos_resnet50_fpn_coco-99b0c9b7.pth checkpoint/torchvision.pth
    python tools/convert_weights.py fasterrcnn_resnet50_fpn_coco-258fb6c6.pth checkpoint/faster_rcnn.pth --variant published
    python tools/convert_weights.py FCOS_imprv_R_50_FPN_1x.pth checkpoint/fcos.pth --variant improved
    python tools/convert_weights.py voc_78.7.pth checkpoint/voc.pth --variant voc
    python tools/convert_weights.py my_mmdet.pth checkpoint/mine.pth --variant improved --classes nail,clip

--from            --variant                     whose
torchvision                                     torchvision's fcos_resnet50_fpn
torchvision_rcnn  published, trained            torchvision's fasterrcnn_resnet50_fpn and maskrcnn_resnet50_fpn: for COCO (no eps in the norms), or your own
fcos              plain, improved               the authors' tianzhi0549/FCOS: FCOS_R_... and FCOS_imprv_R_...
adelaidet                                       aim-uofa/AdelaiDet
detectron2                                      detectron2's own FCOS
cvpods            plain, improved               FCOS of Megvii's cvpods and of BorderDet's repository, and what was written from them on detectron2: improved where NORM_REG_TARGETS and
                                                CENTERNESS_ON_REG are on, as in fcos.res50.fpn.coco.800size.1x; OFFSET must be 0, as there
zhenghao977       voc, train_voc, train_coco    FCOS-PyTorch-37.2AP: the published VOC file; what train_voc.py writes; the published COCO
                                                file, and what train_coco.py writes
mmdet             plain, improved, lsj          mmdetection: fcos_*_gn-head_*, *-center-normbbox-centeronreg-giou_*, *-lsj-200e_*

A variant has to be named where the weights do not tell it: both would load, and one would find nothing. Every key is used
or named as left out, every shape is equal. The checkpoint's config does what that implementation does: colours, mean,
strides, distances, quality, thresholds. A file that holds more than tensors is refused; who trusts it can save its
"state_dict" alone with torch.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.class_names import read_class_names  # noqa: E402
from util.command_line import Parser, one_sentence_errors  # noqa: E402

INPUT = {"min_size": 800, "max_size": 1333, "tile": None}       # what all of them were trained and measured at


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("file", metavar="FILE", help="what torch.save wrote there: a state dict, or a training's state with one in it")
    parser.add_argument("out", metavar="OUT", help="checkpoint to write")
    parser.add_argument("--from", dest="family", metavar="NAME", help="whose it is (default: told by its keys)")
    parser.add_argument("--variant", metavar="NAME", help="which of the family's, where there are several")
    parser.add_argument("--classes", metavar="A,B,C|FILE", help="names in label order, or a file with one a line (default: for 80 classes those "
                        "of COCO, for 20 those of VOC, for torchvision's 91 the 80 of COCO)")
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        convert_file(flags)


def convert_file(flags) -> None:
    from engine.checkpoint import load_tensors, save_checkpoint
    from engine.pretrained import foreign_detector
    from model import build_model
    from model.foreign_weights import convert, load_detector
    if Path(flags.out).exists():
        raise ValueError(f"{flags.out}: is there already; name another file")
    names = read_class_names(flags.classes)
    try:
        found = foreign_detector(load_tensors(flags.file), convert, flags.family, flags.variant, names)
    except ValueError as error:
        raise ValueError(f"{flags.file}: {str(error).removeprefix(f'{flags.file}: ')}") from None
    rows = [row for row, name in enumerate(found["classes"]) if name]
    if not rows:
        raise ValueError(f"{flags.file}: has {len(found['classes'])} classes; name them with --classes")
    network = build_model({**found["config"], "num_classes": len(rows)})
    load_detector(network, found["model"], [*enumerate(rows)])
    save_checkpoint(flags.out, {"config": network.config.asdict(), "model": network.state_dict(), "classes": [found["classes"][row] for row in rows],
                                "input": INPUT, "score_threshold": 0.3, "metrics": {}, "flags": vars(flags)})
    left_out = [key for key in found["dropped"] if not key.endswith("num_batches_tracked")]
    print(f"{flags.out}: the {network.config.backbone} of {' '.join(filter(None, (found['family'], flags.variant)))} with {len(rows)} classes, "
          f"{found['classes'][rows[0]]} to {found['classes'][rows[-1]]}; left out: counters of batch norms"
          f"{''.join(f', {key}' for key in left_out)}, {len(found['classes']) - len(rows)} class rows without a name")


if __name__ == "__main__":
    main()
