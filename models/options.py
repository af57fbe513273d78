"""From the command line of train.py to its options, from these to data and a network: docs/training.md."""

from __future__ import annotations

import argparse
import dataclasses
import json

import minnl
import models
from minnl import checks, data
from minnl.training import recipes
from models.config import BLOCKS, STAGES
from models.presets import step

TEST_CLIPS = 600  # of the built-in task: 200 a class, the same for everyone
SMALL = {"non_local": "embedded", "place": "res2", "blocks": 1, "subsample": "before", "axes": "spacetime"}
# The options that a command reads.
READ = {
    "evaluate": {"evaluate", "data", "views", "scores", "memory", "batch_size", "on_error"},
    "predict": {"predict", "checkpoint", "views", "memory", "batch_size"},
}
ALWAYS = {"device", "workers", "threads", "debug"}
OF_VIDEOS = {"stride", "resize", "short_side", "rgb"}
CLIPS = {"frames": 16, "stride": 2, "size": None, "resize": "squash", "rgb": False}


def arguments(argv, description):
    """What the command line says: the defaults of a recipe and a network, and over them the options `given`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("network").add_argument
    add("--model", default="small", choices=sorted(models.BUILDERS), metavar="NAME", help="default: %(default)s; "
        "python -m minnl models lists them")  # fmt: skip
    own = {"default": argparse.SUPPRESS}  # left out unless given: a published network's name says all of these
    add("--non-local", choices=("none", *minnl.nn.MODES), help="small: embedded; else as the name says", **own)
    add("--place", help="stage that the non-local blocks go into (small: res2)", **own)
    add("--blocks", type=int, metavar="N", help="number of non-local blocks (small: 1)", **own)
    add("--subsample", choices=("before", "after", "none"), help="default: before", **own)
    add("--axes", choices=minnl.nn.AXES, help="default: spacetime", **own)
    add("--dropout", type=float, metavar="P", help="before the classifier")
    add = parser.add_argument_group("data").add_argument
    add("--data", metavar="PATH", help="folder or CSV of videos, or arrays; the built-in task without it")
    add("--clips", type=int, default=2048, help="built-in task: training clips an epoch (default: %(default)s)")
    add("--frames", type=int, help="frames in a clip (small: %(default)s; else as the network wants)")
    add("--stride", type=stride, help='videos: step between frames, or "whole": spread over the video')
    add("--size", type=int, nargs="+", metavar=("H", "W"), help="built-in task: 24; videos: 64 96, published: 224")
    add("--resize", choices=("squash", "crop"), help="videos (small: %(default)s; published: crop)")
    add("--short-side", type=int, nargs=2, metavar=("LOW", "HIGH"), help="videos: scale frames to this before a crop")
    add("--rgb", action=argparse.BooleanOptionalAction, help="videos: the frames themselves, or their differences")
    add("--on-error", default="skip", choices=("skip", "error"), help="what to do about a broken video")
    add = parser.add_argument_group("recipe").add_argument
    add("--recipe", default="adamw", choices=tuple(recipes.RECIPES), help="defaults of these (default: %(default)s)")
    add("--epochs", type=int, help="adamw: %(default)s")
    add("--batch-size", type=int, help="clips that go through the network together (adamw: %(default)s)")
    add("--accumulate", type=int, metavar="N", help="batches that make one step (adamw: %(default)s)")
    add("--lr", type=float, help="peak of the learning rate (adamw: %(default)s; paper: in proportion to the clips)")
    add("--weight-decay", type=float, help="adamw: %(default)s")
    add("--warm-up", type=float, help="share of the steps (adamw: %(default)s)")
    add("--clip-norm", type=float, help="largest norm of the gradients (adamw: %(default)s)")
    add("--precise", type=int, metavar="N", help="batches for precise batch norm before an evaluation")
    add("--label-smoothing", type=float, default=0.0)
    add("--drop-last", action="store_true", help="leave out a last batch that is not full")
    add("--seed", type=int, default=0, help="of weights, order, crops and the built-in clips (default: %(default)s)")
    add = parser.add_argument_group("run").add_argument
    add("--name", help="folder under runs/ (default: from the model and the seed)")
    add("--device", default="cpu", help='"cpu", "gpu" or "gpu:N"')
    add("--workers", type=int, default=1, metavar="N", help="threads that prepare clips (default: %(default)s)")
    add("--threads", type=int, default=minnl.backend.threads(), metavar="N", help="threads that compute (default: all)")
    add("--save-every", type=float, default=10.0, metavar="MINUTES", help="between checkpoints (default: %(default)s)")
    add("--max-steps", type=int, metavar="N", help="stop after step N; --resume goes on")
    add("--resume", metavar="RUN", help="a run's folder or checkpoint")
    add("--start", metavar="CHECKPOINT", help="begin with its weights, as far as they fit (of a run: its best)")
    add("--evaluate", metavar="CHECKPOINT", help="a checkpoint, or a run's folder (its best)")
    add("--predict", metavar="VIDEO", help="classify a video with --checkpoint")
    add("--checkpoint", metavar="CHECKPOINT", help="for --predict: a checkpoint, or a run's folder (its best)")
    add("--views", metavar="CLIPSxCROPS", help="for --evaluate, --predict: views of each video, such as 10x3")
    add("--scores", metavar="FILE", help="for --evaluate with --views: a CSV file with the scores of each video")
    add("--plan", action="store_true", help="print the bill from shapes alone, and train nothing")
    add("--memory", type=float, metavar="GB",
        help="for --plan: the memory to fill (default: the device's), and for --views")  # fmt: skip
    add("--debug", action="store_true", help="name the layer where the first NaN appears (slow)")
    parser.set_defaults(**CLIPS, **recipes.RECIPES["adamw"])
    first, _ = parser.parse_known_args(argv)
    if first.model not in models.PRESETS:
        parser.set_defaults(**SMALL)
    if first.model in models.PRESETS or (first.recipe == "paper" and first.data):
        parser.set_defaults(**recipes.CLIPS)
    if first.model in models.PRESETS:
        wanted = models.config(first.model)
        parser.set_defaults(frames=wanted.frames, stride=step(wanted), size=list(wanted.size))
    parser.set_defaults(**recipes.RECIPES[first.recipe])
    args = complete(parser, parser.parse_args(argv))
    left = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), ...)))  # ... where nothing was said
    args.given = [name for name, value in vars(left).items() if value is not ...]
    command = next((name for name in READ if getattr(args, name)), None)
    if command:
        what, unread = f"--{command}", set(args.given) - READ[command] - ALWAYS
    else:
        what = "a training on --data" if args.data else "the built-in task"
        unread = set(args.given) & (set() if args.resume else {"clips"} if args.data else OF_VIDEOS)
    if unread:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in args.given if name in unread)
        parser.error(f"{what} does not use {names}; leave it out")
    return args


def complete(parser, args):
    """Fill in what follows from other options, and refuse what does not go together."""
    if args.predict and not args.checkpoint:
        parser.error("--predict needs --checkpoint, a checkpoint or a run's folder")
    if args.views and not (args.evaluate or args.predict):
        parser.error("--views is for --evaluate and --predict; training takes one clip of each video")
    if args.start and (args.resume or args.evaluate or args.predict):
        parser.error("--start is for a new run: it gives first weights, and what was begun has its own")
    if args.scores and not (args.evaluate and args.views):
        parser.error("--scores needs --evaluate and --views")
    if args.checkpoint and not args.predict:
        parser.error("--checkpoint is for --predict; --resume goes on with a run, --start begins with its weights")
    if args.memory is not None and not (args.plan or args.views or args.predict):
        parser.error("--memory is for --plan and --views")
    if args.size and len(args.size) > 2:
        parser.error(f"--size takes one number or two, got {len(args.size)}")
    for name in ("non_local", "subsample"):
        if getattr(args, name, None) == "none":
            setattr(args, name, None)
    args.size = args.size or ([64, 96] if args.data else [24])
    jittered = args.recipe == "paper" or args.model in models.PRESETS
    if args.data and jittered and args.resize == "crop" and args.short_side is None:
        args.short_side = list(recipes.jitter(args.size))
    return args


def check(args):
    """Refuse numbers that make no sense before anything is made; the rest is refused by those who use it."""
    checks.count("recipe", "--epochs", args.epochs)
    checks.count("recipe", "--accumulate", args.accumulate)
    checks.count("recipe", "--precise", args.precise, 0)
    rates = {"lr": None, "weight_decay": None, "save_every": None, "warm_up": 1, "label_smoothing": 1}
    for name, high in rates.items():
        if getattr(args, name) is not None:
            checks.number("recipe", f"--{name.replace('_', '-')}", getattr(args, name), 0, high)
    for name in ("clip_norm", "memory"):
        if getattr(args, name) is not None:
            checks.positive("recipe", f"--{name.replace('_', '-')}", getattr(args, name))
    if args.max_steps is not None:
        checks.count("recipe", "--max-steps", args.max_steps)


def unchanged(args, config, free):
    """Refuse an option for a run that goes on if it is neither free nor what the run was begun with."""
    for name in args.given:
        now, was = getattr(args, name), config.get(name)
        if name not in free and now != was:
            option = f"--{name.replace('_', '-')}"
            was, now = ("none" if value is None else checks.clean(str(value)) for value in (was, now))
            raise ValueError(f"--resume: the run was begun with {option} {was} and keeps it, got {now}; leave it out")


def stride(text):
    return text if text == "whole" else int(text)


def datasets(config, train=True, test_clips=TEST_CLIPS):
    """(training set or None, test set) that a configuration names."""
    if config["data"] is None:
        options = {"frames": config["frames"], "size": config["size"][0], "seed": config["seed"]}
        test = data.RelationClips("test", clips=test_clips, **options)
        return (data.RelationClips("train", clips=config["clips"], **options) if train else None), test
    options = video_options(config)
    training = data.open_dataset(config["data"], train=True, **options) if train else None
    return training, data.open_dataset(config["data"], train=False, **options)


def video_options(config):
    """How clips are taken from videos."""
    options = {key: config[key] for key in ("short_side", "mean", "deviation") if config.get(key) is not None}
    return options | {
        "frames": config["frames"], "stride": config["stride"], "size": tuple(config["size"] * 2)[:2],
        "resize": config["resize"], "differences": not config["rgb"],
    }  # fmt: skip


def build(config):
    """The network of a configuration: a published one by its own, which is complete."""
    minnl.manual_seed(config["seed"])
    if "network" in config:
        model = models.VideoResNet(models.Config(**config["network"]))
    else:
        model = models.build(
            config["model"], classes=len(config["classes"]), in_channels=config["channels"], dropout=config["dropout"],
            **small(config),
        )  # fmt: skip
    return model.to(config["device"])


def small(config):
    """Options of the small network: as the command line names them, or those that a run of `ablate` says."""
    if "options" in config:
        return config["options"]
    names = {"blocks": "number"}
    return {names.get(key, key): config[key] for key in SMALL}


def published(config):
    """{"network": all that models.Config says} of a published network, changed as options and data ask for."""
    if config["model"] not in models.PRESETS:
        return {}
    name, changes = config["model"], {k: config[k] for k in ("non_local", "subsample", "axes") if k in config}
    made = models.config(
        name, classes=len(config["classes"]), in_channels=config["channels"], dropout=config["dropout"],
        frames=config["frames"], size=tuple(config["size"] * 2)[:2], **changes,
    )  # fmt: skip
    if ("place" in config or "blocks" in config) and made.non_local is None:
        raise ValueError(f"--place, --blocks: {name} has no non-local blocks; ask for some with --non-local")
    if "place" in config and "blocks" in config:
        raise ValueError(f"--place, --blocks: {name} takes one of them: a stage with one block, or 1, 5 or 10 blocks")
    if "place" in config:
        checks.choice("recipe", "--place", config["place"], STAGES)
        last = BLOCKS[made.depth][STAGES.index(config["place"])] - 1
        made = dataclasses.replace(made, places={config["place"]: (last - 1,)})  # as table 2b has it
    if "blocks" in config:
        made = dataclasses.replace(made, places=config["blocks"])
    return {"network": json.loads(json.dumps(dataclasses.asdict(made)))}


def kind(config):
    """The instantiation of a configuration's non-local blocks, or "none"."""
    return config.get("network", config.get("options", config)).get("non_local") or "none"
