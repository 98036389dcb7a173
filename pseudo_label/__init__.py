"""Learning from incomplete labels: one stage a file, `python -m pseudo_label.STAGE --help`; stages talk through COCO json."""
