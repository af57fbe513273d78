"""Train, resume, evaluate and try out a non-local video network.

    python train.py                                     train the default network on the built-in task
    python train.py --non-local none                    its twin without the non-local block
    python train.py --data FOLDER                       on videos in FOLDER/{train,val}/class/clip.mp4
    python train.py --resume runs/NAME                  go on where a run stopped
    python train.py --model nl_c2d_r50_5_8x8 --recipe paper --data FOLDER
    python train.py --model nl_i3d_r50_5_8x8 --start CHECKPOINT --data FOLDER      fine-tune trained weights
    python train.py --evaluate runs/NAME                test accuracy of its best checkpoint
    python train.py --evaluate runs/NAME --views 10x3   as published: 10 clips x 3 crops of each video
    python train.py --predict clip.mp4 --checkpoint runs/NAME
    python train.py --plan                              a cost summary (shapes, memory, multiply-adds), no run

docs/training.md explains every option and gives recipes.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import minnl
from minnl import data
from minnl.checks import clean, listed, printable
from minnl.data import views
from minnl.study import cost_summary, pictures
from minnl.training import Trainer, checkpoint, recipes
from minnl.training.command_line import arguments, check, refuse_changes
from minnl.training.evaluation import MEMORY, at_once, evaluate, evaluate_views, probabilities
from minnl.training.loop import steps_per_epoch
from minnl.training.progress import say, secure
from minnl.training.run_data import datasets, video_options
from minnl.training.run_folder import RunFolder
from models import run_config, stored, transfer
from models.run_config import build, instantiation, published

RUNTIME = ("device", "workers", "threads", "save_every")  # options that may differ when a run is resumed
OF_A_CALL = ("max_steps", "plan", "memory", "debug")  # options of a single call, which may differ too
NOT_KEPT = ("resume", "evaluate", "predict", "checkpoint", "views", "scores", "given")  # options that no run stores


def main(argv=None):
    secure()
    args = arguments(argv, run_config.defaults(), __doc__)
    try:
        check(args)
        minnl.set_threads(args.threads)
        if args.predict:
            return predict(args)
        if args.evaluate:
            return evaluate_checkpoint(args)
        return train(args)
    except (ValueError, TypeError, FloatingPointError, RuntimeError, OSError, ImportError, MemoryError) as error:
        if args.debug:
            raise
        said = printable(str(error)) or "out of memory"  # Python's MemoryError may say nothing
        print(f"train.py: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train.py: stopped in the middle of a step; the last checkpoint stands", file=sys.stderr)
        return 130


def train(args):
    """Start a new run, or resume one, which no other process may do at the same time."""
    if not args.resume:
        return run(args, {k: v for k, v in vars(args).items() if k not in NOT_KEPT})
    path = checkpoint_path(args.resume, "last")
    if not path.exists():
        best = path.with_name("best.safetensors")
        here = f"no {path.name} is there; " + (f"go on from {best}" if best.exists() else "begin with --name")
        raise ValueError(f"--resume: {args.resume}: {here if Path(args.resume).is_dir() else 'no such file'}")
    with RunFolder(path.parent) as folder:
        _, config, meta = read(path, run=True)
        refuse_changes(args, config, ("resume", "data", *RUNTIME, *OF_A_CALL))
        config |= {key: getattr(args, key) for key in RUNTIME}
        return run(args, config, folder, path, meta)


def run(args, config, folder=None, path=None, meta=None):
    """Train by a configuration; with a checkpoint at `path` go on from it, in its folder."""
    train_set, test_set = same_data(args, config, meta) if path else datasets(config)
    config |= {"classes": list(train_set.classes), "channels": train_set.shape[-1]}
    if not path:
        config |= published(config)
    model = build(config)
    if args.start and not path:
        begin(model, checkpoint_path(args.start, "best"))
    if args.plan:
        return plan(args, model, train_set.shape)
    loader = {"batch_size": config["batch_size"], "workers": config["workers"], "on_error": config["on_error"]}
    train_loader = data.Loader(train_set, shuffle=True, seed=config["seed"], drop_last=config["drop_last"], **loader)
    test_loader = data.Loader(test_set, seed=config["seed"], **loader)
    optimizer = recipes.optimizer(model.parameters(), config)
    schedule = recipes.schedule(config, steps_per_epoch(train_loader, config["accumulate"]) * config["epochs"])
    with folder or new_folder(args, instantiation(config)) as folder:
        trainer = Trainer(
            model, optimizer, schedule, train_loader, test_loader, folder, config, config["epochs"],
            config["clip_norm"], config["label_smoothing"], config["accumulate"], config["precise"],
            config["save_every"],
        )  # fmt: skip
        if path:
            trainer.resume(path)
        checkpoint.write(folder.path / "config.json", [(json.dumps(config, indent=2) + "\n").encode()])
        weights = sum(p.size for p in model.parameters())
        say(f"{folder}: {config['model']}, non-local {instantiation(config)}, {weights:,} weights")
        with minnl.debug() if args.debug else contextlib.nullcontext():
            complete = trainer.fit(args.max_steps)
        if complete:
            return finish(args, trainer, test_loader)
    say(f"stopped after step {trainer.step}; go on with: python train.py --resume {folder}")
    return 128 + trainer.stopped_by if trainer.stopped_by else 0


def same_data(args, config, meta):
    """The datasets of a resumed run, if they are those that it was begun with, wherever they are now."""
    moved = "data" in args.given and args.data != config["data"]
    if moved:
        if config["data"] is None:
            raise ValueError("--resume: the run was begun on the built-in task and keeps it; leave --data out")
        say(f"data from {args.data}, before from {config['data']}")
        config["data"] = args.data
    try:
        train_set, test_set = datasets(config)
    except (ValueError, OSError) as error:
        if moved:
            raise
        raise ValueError(f"{error}; if the data moved, --data says where to") from error
    found = {"classes": list(train_set.classes), "channels": train_set.shape[-1], "training clips": len(train_set)}
    for what, now in found.items():
        was = meta["loader"]["samples"] if what == "training clips" else config[what]
        if now != was:
            was, now = (listed(value) if what == "classes" else value for value in (was, now))
            raise ValueError(f"--resume: begun with {what} {was}, the data has {now}; they must be the same")
    return train_set, test_set


def finish(args, trainer, test_loader):
    """Draw the pictures of a complete run. If that fails, one line says so; the run is complete all the same."""
    folder = trainer.folder
    best = folder / f"{'best' if trainer.best >= 0 else 'last'}.safetensors"
    left = "pictures, log and checkpoints"
    try:
        pictures.curves(folder)
        clips, _ = next(iter(test_loader))  # the first that can be used
        pictures.attention(load(best, trainer.config["device"])[0], clips[0], folder / "attention.png")
    except Exception as error:
        if args.debug:
            raise
        left = "log and checkpoints"
        print(f"train.py: complete, but without pictures, which --resume draws: {error}", file=sys.stderr)
    top = f"best test top-1 {trainer.best:.1%}" if trainer.best >= 0 else "complete before"
    say(f"{top}; {left} in {trainer.run}")
    return 0


def begin(model, path):
    """Give a model the weights of a trained network, as far as they fit: inflated, folded, for other classes."""
    fresh = transfer.start(model, checkpoint.under(read(path)[0], "model/"))
    print(f"weights from {path}; " + (f"fresh are {', '.join(fresh)}" if fresh else "nothing is fresh"))


def evaluate_checkpoint(args):
    model, config = load(checkpoint_path(args.evaluate, "best"), args.device)
    _, test_set = datasets(config | ({"data": args.data} if args.data else {}), train=False)
    if list(test_set.classes) != config["classes"]:
        was, now = listed(config["classes"]), listed(test_set.classes)
        raise ValueError(f"--evaluate: trained on classes {was}, the data has {now}")
    batch_size, found = args.batch_size, {"workers": args.workers, "on_error": args.on_error}
    if args.views:
        clips, crops = views.parse(args.views)
        result = evaluate_views(
            model, test_set, clips, crops, batch_size=batch_size, memory=memory(args), scores=args.scores, **found
        )
        what = f"videos in {clips} x {crops} views"
    else:
        result, what = evaluate(model, data.Loader(test_set, batch_size, **found)), "clips"
    scores = f"top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}, loss {result['loss']:.4f}"
    alone = f", top-1 of single views {result['view_top1']:.2%}" if args.views else ""
    print(f"{result['clips']} {what}: {scores}{alone}")
    return 0


def predict(args):
    model, config = load(checkpoint_path(args.checkpoint, "best"), args.device)
    if config["data"] is None and config["channels"] != 3:
        raise ValueError(
            f"--predict: this network was trained on the built-in task or on other arrays of {config['channels']} "
            "channels, not on videos (train with --data)"
        )
    video = data.one_video(args.predict, config["classes"], **video_options(config))
    clips, crops = views.parse(args.views) if args.views else (1 if config["stride"] == "whole" else 10, 1)
    shown = data.Views(video, 0, clips, crops)
    with minnl.nn.evaluating(model):
        share = probabilities(model, shown, at_once(model, shown.shape, memory(args), args.batch_size)).mean(axis=0)
    for i in sorted(range(len(share)), key=lambda i: -share[i])[:5]:
        print(f"{share[i]:6.1%}  {clean(config['classes'][i])}")
    return 0


def memory(args):
    """Bytes for the activations of views."""
    return args.memory * 1e9 if args.memory else MEMORY


def load(path, device):
    """A checkpoint's model and configuration."""
    arrays, config, _ = read(path)
    config |= {"device": device}
    model = build(config)
    model.load_state_dict(checkpoint.under(arrays, "model/"))
    return model, config


def read(path, run=False):
    """Arrays, configuration and all values of a checkpoint; `run` refuses a file of weights alone."""
    arrays, meta = checkpoint.load(path)
    config = stored.configuration(path, arrays, meta)
    if run and "step" not in meta:
        raise ValueError(f"--resume: {path} holds weights, but no run to go on with; --start begins one with them")
    return arrays, config, meta


def plan(args, model, shape):
    available = args.memory * 1e9 if args.memory else minnl.backend.memory_of(model.parameters()[0].device)
    slots = len(recipes.optimizer(model.parameters(), vars(args)).slots)
    print(cost_summary.table(cost_summary.summarize(model, (args.batch_size, *shape), slots), available))
    if available is None:
        print("this system does not report its memory; with --memory GB the cost summary says how many clips fit")
    return 0


def checkpoint_path(path, name):
    """The path itself, or in a run's folder the checkpoint of that name."""
    path = Path(path)
    return path / f"{name}.safetensors" if path.is_dir() else path


def new_folder(args, non_local):
    """runs/NAME; a folder that holds a run already is refused."""
    if not args.name:
        return RunFolder.first_free(Path("runs") / f"{args.model}-{non_local}-seed{args.seed}")
    folder = RunFolder(Path("runs") / args.name)
    if folder.begun:
        raise ValueError(
            f"--name: {folder} holds a run already; --resume {folder} goes on with it, or choose another name"
        )
    return folder


if __name__ == "__main__":
    sys.exit(main())
