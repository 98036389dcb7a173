"""What every training command does once its flags are read: data, network, loader and options assembled, and the loop run."""
import argparse
import time
from pathlib import Path

from engine.log import FIRST_FILE, OTHER_FILES, RunLog, claim_run_folder, next_run_folder
from flags import TILE_OVERLAP, augmentation, every_size, model_fields, trained_detector
from reporting import describe_data, describe_devices, notes_on, save_sample, show_training


def run_folder(flags: argparse.Namespace, resumed: dict | None, checkpoints: Path, name: str) -> Path:
    """That of the resumed run, or --output, or the next checkpoints/name-N. Raises ValueError where a run is already, or files that it would replace."""
    folder = resumed["file"].parent if resumed else Path(flags.output) if flags.output else next_run_folder(checkpoints, name)
    for file in () if resumed else ("last.pth", "best.pth"):
        if (folder / file).exists():
            raise ValueError(f"--output {folder}: holds a run already ({file}); name another folder, or --resume {folder / 'last.pth'}")
    for file in () if resumed or (folder / FIRST_FILE).exists() else OTHER_FILES:       # what a run left that was stopped before its first checkpoint is no loss
        if (folder / file).exists():
            raise ValueError(f"--output {folder}: holds {file}, which no run has left there, and would be replaced; name another folder, or move it away")
    return folder


def train(flags: argparse.Namespace, resumed: dict | None, folder: Path, open_data, evaluate) -> None:
    """The whole run. What differs between the commands is handed over:

    folder      from run_folder: the same in all processes, which are together only once the process group is started
    open_data   flags -> (training set, evaluation set or None), data sets like dataset.voc.VOCDataset
    evaluate    (detections, ground truth, classes) -> metrics, as evaluation.report.evaluate
    """
    from dataset.augment import Augment
    from dataset.loader import TrainLoader
    from engine.distributed import leave_process_group, of_first_rank, rank, world_size
    from engine.fit import check_steps, fit

    device = join_processes(flags)
    train_set, val_set = open_data(flags)
    refuse_other_data(train_set)
    network, config, told = build_network(flags, train_set.classes, resumed)
    first_teacher = load_teacher(flags, train_set.classes, device)
    min_sizes = every_size(flags.min_size)
    loader = TrainLoader(train_set, Augment(**augmentation(flags)), flags.batch_size // world_size(), min_sizes, flags.max_size, seed=flags.seed,
                         workers=flags.workers, rank=rank(), world_size=world_size(), pin_memory=device.type == "cuda")
    if resumed:
        check_steps(resumed, loader)
    if not (resumed or flags.output):           # a number of its own: another run may have begun at the same time
        folder = folder.with_name(of_first_rank(claim_run_folder(folder).name if rank() == 0 else None))
    run = RunLog(folder, active=rank() == 0)    # nothing is written before these lines
    through = bool(resumed) and resumed["training"]["epoch"] >= flags.epochs
    if not through:                             # what repeats a run that is through stays as it is
        run.settings({name: value for name, value in vars(flags).items() if name not in ("resume", "config", "output")}, config, flags.config)
    for sentence in (*notes_on(train_set, val_set, flags), *told):
        run.say(f"note: {sentence}")
    options = fit_options(flags, len(loader), device)
    checkpoint = {"config": config, "classes": train_set.classes, "score_threshold": 0.3, "flags": vars(flags),
                  "input": {"min_size": max(min_sizes), "max_size": flags.max_size, "tile": flags.tile}}
    run.say(describe_data(train_set, val_set, flags))
    run.say(f"{config['model']} {config['backbone']}, {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters, on {describe_devices(device, options.amp)}; "
            f"{flags.epochs} epochs of {len(loader)} steps, learning rate {options.lr:.4g} for {flags.batch_size} pictures a step; in {folder}")
    if resumed:
        state = resumed["training"]
        run.say("nothing is left to do: its epochs are through; a larger --epochs goes on" if through else
                f"goes on in epoch {state['epoch'] + 1} with step {state['step'] + 1} of {flags.epochs * len(loader)}")
    save_sample(loader, train_set.classes, run)

    started = time.perf_counter()
    judge = make_judge(val_set, evaluate, checkpoint["input"], flags, device) if val_set else None
    try:
        best = fit(network, loader, judge, run, options, device, checkpoint, resumed,
                   *incomplete_labels(flags, len(train_set.classes), first_teacher, run))
    except KeyboardInterrupt:
        run.say(f"interrupted; --resume {folder / 'last.pth'} goes on" if (folder / "last.pth").exists() else "interrupted before its first checkpoint")
        leave_process_group()
        raise
    run.say(f"trained in {(time.perf_counter() - started) / 60:.1f} minutes; best.pth and last.pth are in {folder}")
    if run.active:
        show_training(run, best)
    leave_process_group()


def join_processes(flags: argparse.Namespace):
    """The device of this process, which from here on is seeded and together with the others."""
    import torch

    from engine.distributed import select_device, start_process_group, world_size
    torch.manual_seed(flags.seed)
    device = select_device(flags.device)
    start_process_group(device)
    if flags.batch_size % world_size():
        raise ValueError(f"--batch-size is {flags.batch_size}, not a multiple of the {world_size()} processes")
    return device


def refuse_other_data(train_set) -> None:
    """Raises ValueError where this process has other training data than the first one: they share out one order of the pictures."""
    from engine.distributed import of_first_rank
    data = len(train_set), train_set.class_counts()
    if of_first_rank(data) != data:
        raise ValueError(f"the training data of this process ({train_set.counted()}) are not those of the first one")


def build_network(flags: argparse.Namespace, classes: list, resumed: dict | None):
    """(network, its config as a plain dict, sentences on its weights), with the weights that --weights asks for."""
    from engine.pretrained import starting_weights
    from model import build_model, model_config, parse_config
    from model.backbone import pixel_statistics
    from model.foreign_weights import BODY_MEANING, COCO_WEIGHTS, MEANING, convert, load_backbone, load_body, load_detector
    if resumed:
        if resumed["classes"] != classes:
            raise ValueError(f"{resumed['file']}: was trained on the classes {', '.join(resumed['classes'])}, the data has {', '.join(classes)}")
        return build_model(resumed["config"]), resumed["config"], []
    weights, told = starting_weights(flags.weights, flags.backbone, convert, COCO_WEIGHTS[flags.model])
    if flags.freeze == "norm" and flags.backbone_norm == "gn":
        raise ValueError("--freeze norm: group norms, of --backbone-norm gn, have no statistics to keep; take none, early or all")
    if not weights and flags.freeze not in ("auto", "none"):
        raise ValueError(f"--freeze {flags.freeze} leaves layers of the backbone as they were loaded, but there are no weights to load; take --freeze none")
    backbone = weights.get("config", {}).get("backbone", flags.backbone)
    freeze = flags.freeze if flags.freeze != "auto" else "early" if weights and not backbone.startswith("timm:") else "none"
    asked = config = model_config(flags.model)(num_classes=len(classes), model=flags.model, **model_fields(flags), backbone_freeze=freeze,
                                               **pixel_statistics(flags.backbone)).asdict()
    try:
        theirs = parse_config(weights["config"]) if "config" in weights else None
        same = not theirs or theirs.model == flags.model
        if config.get("head_norm") == "frozen_bn" and not (theirs and same):
            raise ValueError("--head-norm frozen_bn keeps statistics that were measured (tools/freeze_head_norms.py), and none are loaded; take gn or bn")
        if theirs:                              # a detector: what its weights mean is its own matter, how to train on that of the flags
            config = {**asked, **{field: value for field, value in theirs.asdict().items() if field in (MEANING if same else BODY_MEANING)}}
        network = build_model(config)
        their_classes = weights.get("classes", []) if same else []
        shared = [name for name in classes if name in their_classes]
        if not same:
            taken = load_body(network, weights["model"], theirs.finest)
            told.append(f"weights of {flags.weights} ({theirs.model}): {', '.join(taken)} are taken over; the rest of the {flags.model} is new")
        elif theirs:
            load_detector(network, weights["model"], [(classes.index(name), their_classes.index(name)) for name in shared])
        elif weights:
            load_backbone(network.backbone, weights["kind"], weights["model"])
    except ValueError as error:
        raise ValueError(f"--weights {flags.weights}: {error}" if weights else str(error)) from None
    if their_classes:
        told.append(f"weights of {flags.weights}; class rows taken over: {', '.join(shared) or 'none'}; new: "
                    f"{', '.join(name for name in classes if name not in shared) or 'none'}")
    if decided := [f"{field} {config[field]}" for field in config if config[field] != asked[field]]:
        told.append(f"the weights of {flags.weights} decide, not the flags or their defaults: {', '.join(decided)}")
    return network, config, told


def make_judge(val_set, evaluate, sizes: dict, flags: argparse.Namespace, device):
    """network -> metrics on the evaluation set, in original pixels and full precision: those of the evaluation commands."""
    from dataset.loader import eval_loader
    from engine.predict import predict
    loader = eval_loader(val_set, **sizes, overlap=TILE_OVERLAP, batch_size=flags.batch_size, workers=flags.workers,
                         pin_memory=device.type == "cuda")

    def judge(network) -> dict:
        found = predict(network, loader, device, progress=False, nms_iou_threshold=network.config.nms_iou_threshold)
        return evaluate(found, val_set.truth(), val_set.classes)
    return judge


def load_teacher(flags: argparse.Namespace, classes: list, device):
    """The network of a --teacher FILE, else None."""
    from model import load_model
    if flags.teacher in ("none", "ema"):
        return None
    teacher = trained_detector(Path(flags.teacher))
    if teacher["classes"] != classes:
        raise ValueError(f"--teacher {flags.teacher}: has the classes {', '.join(teacher['classes'])}, the data has {', '.join(classes)}")
    return load_model(teacher["config"], teacher["model"], device)


def incomplete_labels(flags: argparse.Namespace, num_classes: int, first_teacher, run: RunLog):
    """(teacher or None, strong view or None) of engine.fit.fit."""
    from dataset.strong_view import strong_view
    from engine.teacher import Teacher
    online, burn_in = flags.teacher != "none", flags.burn_in if first_teacher is None else 0.0
    teacher = Teacher(num_classes, burn_in, flags.keep_rate, flags.pseudo_weight, run.say, first_teacher) if online else None
    return teacher, strong_view if flags.strong_view or flags.strong_view is None and online else None


def fit_options(flags: argparse.Namespace, steps_per_epoch: int, device):
    """What of the flags engine.fit.fit asks for: the learning rate of the batch, a warm-up of a fifth of the run at most."""
    from engine.fit import FitOptions
    return FitOptions(
        epochs=flags.epochs, lr=flags.lr * flags.batch_size / 16, momentum=flags.momentum, weight_decay=flags.weight_decay,
        warmup_steps=min(flags.warmup, flags.epochs * steps_per_epoch // 5), schedule=flags.schedule, drops=tuple(flags.drops), pretrained_lr=flags.backbone_lr,
        clip_norm=flags.clip, ema_decay=flags.ema, normalizer_momentum=flags.normalizer_momentum,
        normalizer_floor=flags.normalizer_floor * flags.batch_size, amp=amp_dtype(flags.amp, device),
        evaluate_every=flags.eval_every, max_steps=flags.max_steps, seed=flags.seed)


def amp_dtype(choice: str, device):
    """The autocast type, None for float32. bf16 needs no scaler; CUDA before Ampere has only fp16, which all ranks take where one must."""
    import torch

    from engine.distributed import everywhere
    if choice == "auto":
        choice = "off" if device.type != "cuda" else "bf16" if everywhere(torch.cuda.is_bf16_supported(including_emulation=False)) else "fp16"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]
