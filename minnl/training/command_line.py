"""The command line of train.py: its options and their defaults."""

from __future__ import annotations

import argparse

from minnl import backend, checks, nn
from minnl.training import recipes

# Defaults that follow neither from the recipe nor from the network.
DEFAULTS = {
    "model": "small", "data": None, "clips": 2048, "frames": 16, "stride": 2, "size": None, "resize": "squash",
    "short_side": None, "rgb": False, "on_error": "skip", "recipe": "adamw", "label_smoothing": 0.0, "drop_last": False,
    "seed": 0, "name": None, "device": "cpu", "workers": 1, "save_every": 10.0, "max_steps": None, "resume": None,
    "start": None, "evaluate": None, "predict": None, "checkpoint": None, "views": None, "scores": None, "plan": False,
    "memory": None, "debug": False,
}  # fmt: skip
# The options that a command reads, beside ALWAYS. Training reads all others.
READ = {
    "evaluate": {"evaluate", "data", "views", "scores", "memory", "batch_size", "on_error"},
    "predict": {"predict", "checkpoint", "views", "memory", "batch_size"},
}
ALWAYS = {"device", "workers", "threads", "debug"}
OF_VIDEOS = {"stride", "resize", "short_side", "rgb"}


def parser(networks, description):
    """The parser. Options that are not given are left out of its result."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    default, adamw = DEFAULTS, recipes.RECIPES["adamw"]
    add = made.add_argument_group("network").add_argument
    listing = f"default: {default['model']}; python -m minnl models lists them"
    add("--model", choices=sorted(networks), metavar="NAME", help=listing)
    add("--non-local", choices=("none", *nn.MODES), help="small: embedded; else as the name says")
    add("--blocks", type=_blocks, metavar="N|STAGE", help="non-local blocks: 1, 5 or 10 as published, or one in a "
        "stage such as res3 (small: res2; else as the name says)")  # fmt: skip
    add("--subsample", choices=("before", "after", "none"), help="default: before")
    add("--axes", choices=nn.AXES, help="default: spacetime")
    add("--dropout", type=float, metavar="P", help="before the classifier")
    add = made.add_argument_group("data").add_argument
    add("--data", metavar="PATH", help="folder or CSV of videos, or arrays; the built-in task without it")
    add("--clips", type=int, help=f"built-in task: training clips an epoch (default: {default['clips']})")
    add("--frames", type=int, help=f"frames in a clip (small: {default['frames']}; else as the network wants)")
    add("--stride", type=_stride, help='videos: step between frames, or "whole": spread over the video')
    add("--size", type=int, nargs="+", metavar=("H", "W"), help="built-in task: 24; videos: 64 96, published: 224")
    add("--resize", choices=("squash", "crop"), help=f"videos (small: {default['resize']}; published: crop)")
    add("--short-side", type=int, nargs=2, metavar=("LOW", "HIGH"), help="videos: scale frames to this before a crop")
    add("--rgb", action=argparse.BooleanOptionalAction, help="videos: the frames themselves, or their differences")
    add("--on-error", choices=("skip", "error"), help="what to do about a broken video")
    add = made.add_argument_group("recipe").add_argument
    add("--recipe", choices=tuple(recipes.RECIPES), help=f"defaults of these (default: {default['recipe']})")
    add("--epochs", type=int, help=f"adamw: {adamw['epochs']}")
    add("--batch-size", type=int, help=f"clips that go through the network together (adamw: {adamw['batch_size']})")
    add("--accumulate", type=int, metavar="N", help=f"batches that make one step (adamw: {adamw['accumulate']})")
    add("--lr", type=float, help=f"peak of the learning rate (adamw: {adamw['lr']}; paper: in proportion to the clips)")
    add("--weight-decay", type=float, help=f"adamw: {adamw['weight_decay']}")
    add("--warm-up", type=float, help=f"share of the steps (adamw: {adamw['warm_up']})")
    add("--clip-norm", type=float, help=f"largest norm of the gradients (adamw: {adamw['clip_norm']})")
    add("--precise", type=int, metavar="N", help="batches for precise batch norm before an evaluation")
    add("--label-smoothing", type=float)
    add("--drop-last", action="store_true", help="leave out a last batch that is not full")
    add("--seed", type=int, help=f"of weights, order, crops and the built-in clips (default: {default['seed']})")
    add = made.add_argument_group("run").add_argument
    add("--name", help="folder under runs/ (default: from the model and the seed)")
    add("--device", help='"cpu", "gpu" or "gpu:N"')
    add("--workers", type=int, metavar="N", help=f"threads that prepare clips (default: {default['workers']})")
    add("--threads", type=int, metavar="N", help="threads that compute (default: all)")
    add("--save-every", type=float, metavar="MINUTES", help=f"between checkpoints (default: {default['save_every']})")
    add("--max-steps", type=int, metavar="N", help="stop after step N; --resume goes on")
    add("--resume", metavar="RUN", help="a run's folder or checkpoint")
    add("--start", metavar="CHECKPOINT", help="begin with its weights, as far as they fit (of a run: its best)")
    add("--evaluate", metavar="CHECKPOINT", help="a checkpoint, or a run's folder (its best)")
    add("--predict", metavar="VIDEO", help="classify a video with --checkpoint")
    add("--checkpoint", metavar="CHECKPOINT", help="for --predict: a checkpoint, or a run's folder (its best)")
    add("--views", metavar="CLIPSxCROPS", help="for --evaluate, --predict: views of each video, such as 10x3")
    add("--scores", metavar="FILE", help="for --evaluate with --views: a CSV file with the scores of each video")
    add("--plan", action="store_true", help="print the cost summary from shapes alone, and train nothing")
    add("--memory", type=float, metavar="GB",
        help="for --plan: the memory to fill (default: the device's), and for --views")  # fmt: skip
    add("--debug", action="store_true", help="name the layer where the first NaN appears (slow)")
    return made


def arguments(argv, networks, description=None):
    """The options: defaults, over them those of the network and of the recipe, and over them what is `given`.

    Parameters
    ----------
    argv : list of str or None
    networks : dict of name -> options that follow from the choice of that network
    description : str
        Stands above the list of options that ``--help`` prints.

    Returns
    -------
    argparse.Namespace
        With the names of the options that were given in `given`.
    """
    made = parser(networks, description)
    given = vars(made.parse_args(argv))
    chosen = DEFAULTS | {"threads": backend.threads()} | given
    like_paper = chosen["recipe"] == "paper" and bool(chosen["data"])
    values = chosen | (recipes.CLIPS if like_paper else {}) | networks[chosen["model"]]
    args = argparse.Namespace(**values | recipes.RECIPES[chosen["recipe"]] | given)
    args.given = list(given)
    # Frames of the published networks are scaled at random before a crop.
    complete(made, args, jittered=args.recipe == "paper" or "size" in networks[args.model])
    refuse_unread(made, args)
    return args


def complete(parser, args, jittered):
    """Fill in options that follow from other options, and refuse options that do not go together."""
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
    if args.data and jittered and args.resize == "crop" and args.short_side is None:
        args.short_side = list(recipes.jitter(args.size))


def refuse_unread(parser, args):
    """Refuse an option that the command does not use."""
    command = next((name for name in READ if getattr(args, name)), None)
    if command:
        what, unread = f"--{command}", set(args.given) - READ[command] - ALWAYS
    else:
        what = "a training on --data" if args.data else "the built-in task"
        unread = set(args.given) & (set() if args.resume else {"clips"} if args.data else OF_VIDEOS)
    if unread:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in args.given if name in unread)
        parser.error(f"{what} does not use {names}; leave it out")


def check(args):
    """Refuse numbers that make no sense before anything is made. The code that uses the other options checks them."""
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


def refuse_changes(args, config, free):
    """Refuse an option for a run that goes on if it is neither free nor what the run was begun with."""
    for name in args.given:
        now, was = getattr(args, name), config.get(name)
        if name not in free and now != was:
            option = f"--{name.replace('_', '-')}"
            was, now = ("none" if value is None else checks.clean(str(value)) for value in (was, now))
            raise ValueError(f"--resume: the run was begun with {option} {was} and keeps it, got {now}; leave it out")


def _stride(text):
    return text if text == "whole" else int(text)


def _blocks(text):
    return int(text) if text.isdecimal() else text
