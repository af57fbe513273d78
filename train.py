"""Train, resume, evaluate and try out a non-local video network.

    python train.py                                     train the default network on the built-in task
    python train.py --non-local none                    its twin without the non-local block
    python train.py --data FOLDER                       on videos in FOLDER/{train,val}/class/clip.mp4
    python train.py --resume runs/NAME                  go on where a run stopped
    python train.py --evaluate runs/NAME                test accuracy of its best checkpoint
    python train.py --predict clip.mp4 --checkpoint runs/NAME
    python train.py --plan                              the bill (shapes, memory, multiply-adds) instead of a run

docs/training.md explains every option and gives recipes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path

import minnl
import models
from minnl import checkpoint, checks, data, optim
from minnl.study import bill, pictures
from minnl.training import Trainer, evaluate, part

TEST_CLIPS = 600  # of the built-in task: 200 a class, the same for everyone
RUNTIME = ("device", "workers", "threads")  # what may differ between a run and its continuation


def main(argv=None):
    args = arguments(argv)
    try:
        check(args)
        minnl.set_threads(args.threads)
        if args.predict:
            return predict(args)
        if args.evaluate:
            return evaluate_checkpoint(args)
        return train(args)
    except (ValueError, TypeError, FloatingPointError, RuntimeError, OSError, ImportError) as error:
        if args.debug:
            raise
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train.py: stopped in the middle of a step; the last checkpoint stands", file=sys.stderr)
        return 130


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("network").add_argument
    add("--model", default="small", choices=sorted(models.BUILDERS), help="default: %(default)s")
    add("--non-local", default="embedded", choices=("none", *minnl.nn.MODES), help="default: %(default)s")
    add("--place", default="res2", help="stage that the non-local blocks go into (default: %(default)s)")
    add("--blocks", type=int, default=1, metavar="N", help="number of non-local blocks (default: %(default)s)")
    add("--subsample", default="before", choices=("before", "after", "none"), help="default: %(default)s")
    add("--axes", default="spacetime", choices=minnl.nn.AXES, help="default: %(default)s")
    add("--dropout", type=float, default=0.0, metavar="P")
    add = parser.add_argument_group("data").add_argument
    add("--data", metavar="PATH", help="folder or CSV of videos, or arrays; the built-in task without it")
    add("--clips", type=int, default=2048, help="built-in task: training clips an epoch (default: %(default)s)")
    add("--frames", type=int, default=16, help="frames in a clip (default: %(default)s)")
    add("--stride", type=stride, default=2, help='videos: step between frames, or "whole": spread over the video')
    add("--size", type=int, nargs="+", default=None, metavar=("H", "W"), help="built-in task: 24; videos: 64 96")
    add("--resize", default="squash", choices=("squash", "crop"), help="videos (default: %(default)s)")
    add("--rgb", action="store_true", help="videos: the frames themselves instead of their differences")
    add("--on-error", default="skip", choices=("skip", "error"), help="what to do about a broken video")
    add = parser.add_argument_group("recipe").add_argument
    add("--epochs", type=int, default=10, help="default: %(default)s")
    add("--batch-size", type=int, default=32, help="default: %(default)s")
    add("--lr", type=float, default=3e-3, help="peak learning rate of AdamW (default: %(default)s)")
    add("--weight-decay", type=float, default=0.01, help="default: %(default)s")
    add("--warm-up", type=float, default=0.05, help="share of the steps (default: %(default)s)")
    add("--clip-norm", type=float, default=1.0, help="largest norm of the gradients (default: %(default)s)")
    add("--label-smoothing", type=float, default=0.0)
    add("--seed", type=int, default=0, help="of weights, order, crops and the built-in clips (default: %(default)s)")
    add = parser.add_argument_group("run").add_argument
    add("--name", help="folder under runs/ (default: from the model and the seed)")
    add("--device", default="cpu", help='"cpu", "gpu" or "gpu:N"')
    add("--workers", type=int, default=1, metavar="N", help="threads that prepare clips (default: %(default)s)")
    add("--threads", type=int, default=minnl.backend.threads(), metavar="N", help="threads that compute (default: all)")
    add("--max-steps", type=int, metavar="N", help="stop after step N; --resume goes on")
    add("--resume", metavar="RUN", help="a run's folder or checkpoint")
    add("--evaluate", metavar="CHECKPOINT", help="a checkpoint, or a run's folder (its best)")
    add("--predict", metavar="VIDEO", help="classify a video with --checkpoint")
    add("--checkpoint", metavar="CHECKPOINT", help="for --predict: a checkpoint, or a run's folder (its best)")
    add("--plan", action="store_true", help="print the bill from shapes alone, and train nothing")
    add("--memory", type=float, metavar="GB", help="for --plan: the memory to fill (default: this machine's)")
    add("--debug", action="store_true", help="name the layer where the first NaN appears (slow)")
    args = parser.parse_args(argv)
    if args.predict and not args.checkpoint:
        parser.error("--predict needs --checkpoint, a checkpoint or a run's folder")
    args.non_local, args.subsample = (None if v == "none" else v for v in (args.non_local, args.subsample))
    if args.size and len(args.size) > 2:
        parser.error(f"--size takes one number or two, got {len(args.size)}")
    args.size = args.size or ([64, 96] if args.data else [24])
    return args


def check(args):
    """Refuse numbers that make no sense before anything is made; the rest is refused by those who use it."""
    checks.count("recipe", "--epochs", args.epochs)
    for name, high in (("warm_up", 1), ("label_smoothing", 1), ("clip_norm", None), ("memory", None)):
        value = getattr(args, name)
        if value is not None:
            checks.number("recipe", f"--{name.replace('_', '-')}", value, 0, high)


def stride(text):
    return text if text == "whole" else int(text)


def datasets(config, train=True):
    """(training set or None, test set) that a configuration names."""
    if config["data"] is None:
        options = {"frames": config["frames"], "size": config["size"][0], "seed": config["seed"]}
        test = data.RelationClips("test", clips=TEST_CLIPS, **options)
        return (data.RelationClips("train", clips=config["clips"], **options) if train else None), test
    options = video_options(config)
    test = data.open_dataset(config["data"], train=False, **options)
    return (data.open_dataset(config["data"], train=True, **options) if train else None), test


def video_options(config):
    """How clips are taken from videos."""
    return {
        "frames": config["frames"], "stride": config["stride"], "size": tuple(config["size"] * 2)[:2],
        "resize": config["resize"], "differences": not config["rgb"],
    }  # fmt: skip


def build(config):
    minnl.manual_seed(config["seed"])
    model = models.build(
        config["model"], classes=len(config["classes"]), in_channels=config["channels"], dropout=config["dropout"],
        non_local=config["non_local"], place=config["place"], number=config["blocks"],
        subsample=config["subsample"], axes=config["axes"],
    )  # fmt: skip
    return model.to(config["device"])


def train(args):
    if args.resume:
        path = checkpoint_path(args.resume, "last")
        config = read(path)[1]
        config |= {key: getattr(args, key) for key in RUNTIME}
        folder = path.parent
    else:
        config = {k: v for k, v in vars(args).items() if k not in ("resume", "evaluate", "predict", "checkpoint")}
        folder = None
    train_set, test_set = datasets(config)
    if args.resume and list(train_set.classes) != config["classes"]:
        raise ValueError(f"--resume: begun with classes {config['classes']}, the data has {list(train_set.classes)}")
    config |= {"classes": list(train_set.classes), "channels": train_set.shape[-1]}
    model = build(config)
    if args.plan:
        return plan(args, model, train_set.shape)
    folder = folder or new_folder(args)
    loader = {"batch_size": config["batch_size"], "workers": config["workers"], "on_error": config["on_error"]}
    train_loader = data.Loader(train_set, shuffle=True, seed=config["seed"], **loader)
    test_loader = data.Loader(test_set, seed=config["seed"], **loader)
    optimizer = optim.AdamW(model.parameters(), config["lr"], weight_decay=config["weight_decay"])
    steps = len(train_loader) * config["epochs"]
    schedule = optim.warm_up(optim.cosine_schedule(config["lr"], steps), round(config["warm_up"] * steps))
    trainer = Trainer(
        model, optimizer, schedule, train_loader, test_loader, folder, config, config["epochs"],
        config["clip_norm"], config["label_smoothing"],
    )  # fmt: skip
    if args.resume:
        trainer.resume(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    weights = sum(p.size for p in model.parameters())
    print(f"{folder}: {config['model']}, non-local {config['non_local'] or 'none'}, {weights:,} weights")
    with minnl.debug() if args.debug else contextlib.nullcontext():
        complete = trainer.fit(args.max_steps)
    if not complete:
        print(f"stopped after step {trainer.step}; go on with: python train.py --resume {folder}")
        return 0 if args.max_steps else 130
    best, _ = load(folder / "best.safetensors", config["device"])
    pictures.curves(folder)
    clips, _ = next(iter(test_loader))  # the first that can be used: a broken video is no reason to fail here
    pictures.attention(best, clips[0], folder / "attention.png")
    print(f"best test top-1 {trainer.best:.1%}; pictures, log and checkpoints in {folder}")
    return 0


def evaluate_checkpoint(args):
    model, config = load(checkpoint_path(args.evaluate, "best"), args.device)
    _, test_set = datasets(config | ({"data": args.data} if args.data else {}), train=False)
    if list(test_set.classes) != config["classes"]:
        raise ValueError(f"--evaluate: trained on classes {config['classes']}, the data has {list(test_set.classes)}")
    result = evaluate(model, data.Loader(test_set, args.batch_size, workers=args.workers, on_error=args.on_error))
    print(f"{result['clips']} clips: top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}, loss {result['loss']:.4f}")
    return 0


def predict(args):
    model, config = load(checkpoint_path(args.checkpoint, "best"), args.device)
    if config["data"] is None:
        raise ValueError("--predict: this network was trained on the built-in task, not on videos (train with --data)")
    video = data.one_video(args.predict, config["classes"], **video_options(config))
    views, _ = video.views(0, clips=1 if config["stride"] == "whole" else 10, crops=1)
    with minnl.nn.evaluating(model):
        logits = model(minnl.Tensor(views, device=config["device"]))
        share = minnl.functional.softmax(logits).mean(axis=0).numpy()
    for i in sorted(range(len(share)), key=lambda i: -share[i])[:5]:
        print(f"{share[i]:6.1%}  {config['classes'][i]}")
    return 0


def load(path, device):
    """A checkpoint's model and configuration."""
    arrays, config = read(path)
    config |= {"device": device}
    model = build(config)
    model.load_state_dict(part(arrays, "model/"))
    return model, config


def read(path):
    """Arrays and configuration of a checkpoint that train.py wrote."""
    arrays, meta = checkpoint.load(path)
    if "classes" not in meta.get("config", {}):
        raise ValueError(f"{path}: a checkpoint, but not one of train.py: it does not say which network it holds")
    return arrays, meta["config"]


def plan(args, model, shape):
    bytes_here = args.memory * 1e9 if args.memory else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(bill.table(bill.plan(model, (args.batch_size, *shape)), bytes_here))
    return 0


def checkpoint_path(path, name):
    """A checkpoint itself, or the one of that name in a run's folder."""
    path = Path(path)
    return path / f"{name}.safetensors" if path.is_dir() else path


def new_folder(args):
    """runs/NAME, never one that holds a run already."""
    if args.name:
        folder = Path("runs") / args.name
        if (folder / "config.json").exists():
            raise ValueError(
                f"--name: {folder} holds a run already; --resume {folder} goes on with it, or choose another name"
            )
        return folder
    base = f"{args.model}-{args.non_local or 'none'}-seed{args.seed}"
    names = (base if n == 1 else f"{base}-{n}" for n in range(1, 10**6))
    return next(Path("runs") / n for n in names if not (Path("runs") / n / "config.json").exists())


if __name__ == "__main__":
    sys.exit(main())
