"""``python -m minnl`` with one of

check       are the gradients right?
doctor      is the machine in order?
models      which networks are there, and what do they take?
import      a published file of weights as a checkpoint
export      a checkpoint under the names of others
ablate      the paper's ablations, tables 2a to 2g
"""

import argparse
import sys


def main(arguments=None):
    """Run one of the commands and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m minnl", description="Tools around minnl.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check the gradient of every op against differences")
    check.add_argument("ops", nargs="*", metavar="OP", help="only these, such as conv3d or softmax (default: all)")
    check.add_argument("--device", default="cpu", help="cpu, gpu or gpu:N (default: cpu)")
    check.add_argument("--float32", action="store_true", help="compare float32 and its kernels with float64 instead")
    commands.add_parser("doctor", help="what minnl finds on this machine, what is wrong, and what mends it")
    networks = commands.add_parser("models", help="the published networks with their parameters and multiply-adds")
    networks.add_argument("name", nargs="?", metavar="NAME", help="one of them, layer by layer (default: all)")
    published = commands.add_parser("import", help="read published weights (docs/published.md) into a checkpoint")
    published.add_argument("file", metavar="FILE", help=".pkl, .pyth, .pth or .safetensors")
    published.add_argument("--to", required=True, metavar="OUT", help="the checkpoint to write")
    published.add_argument("--model", metavar="PRESET", help="which network, where several have such arrays")
    published.add_argument("--source", metavar="SOURCE", help="whose network it is, if not whose names it has")
    published.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of models.Config")
    published.add_argument("--classes", metavar="FILE", help="names of the classes, one a line, in their order")
    published.add_argument("--names", action="store_true", help="list every array")
    export = commands.add_parser("export", help="write a checkpoint with the names and the layout of others")
    export.add_argument("checkpoint", metavar="CHECKPOINT")
    export.add_argument("--to", required=True, metavar="FILE", help="a safetensors file; for video-nonlocal-net a .pkl")
    export.add_argument("--format", required=True, help="slowfast, pytorchvideo, mmaction2 or video-nonlocal-net")
    _ablate(commands)
    given = parser.parse_args(arguments)

    if given.command == "doctor":  # imported here: the doctor must also speak where minnl itself does not load
        from minnl.study import doctor

        return doctor.main()
    from minnl.training.progress import secure

    secure()
    try:
        if given.command == "models":
            from models import presets

            print(presets.layers(given.name) if given.name else presets.table())
            return 0
        if given.command in ("import", "export"):
            from models.published import commands

            return commands.import_(given) if given.command == "import" else commands.export_(given)
        if given.command == "ablate":
            from models.ablations import command

            return command.ablate(given)
        from minnl.study import check

        return (check.float32 if given.float32 else check.main)(given.ops, given.device)
    except (ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError) as error:
        from minnl.checks import printable

        print(printable(str(error)) or "out of memory", file=sys.stderr)  # Python's MemoryError may say nothing
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _ablate(commands):
    """The arguments of ``ablate``."""
    parser = commands.add_parser("ablate", help="the paper's ablations, tables 2a to 2g (docs/ablations.md)")
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help="2a, 2b, 2c, 2d, 2e, 2f, 2g or all")
    add(
        "--model",
        default="small",
        help="the network without blocks: small, or a preset such as c2d_r50 (default: small)",
    )
    add("--set", action="append", default=[], metavar="FIELD=VALUE", help="an option of the network, in all rows")
    add("--data", metavar="PATH", help="videos or arrays, as for train.py; the built-in task without it")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each row (default: %(default)s)")
    add("--clips", type=int, default=2048, metavar="N", help="built-in task: training clips an epoch (default: 2048)")
    add("--frames", type=int, metavar="N", help="frames of a clip (default: 16, or those of the preset)")
    add("--stride", type=_stride, metavar="N", help='videos: step between frames, or "whole" (default: 2)')
    add("--size", type=int, nargs="+", metavar="N", help="height and width of a clip (default: as train.py)")
    add("--recipe", choices=("adamw", "paper"), help="default: adamw for small, paper for presets")
    add("--epochs", type=int, metavar="N", help="default: the recipe's, as for --batch-size and --lr")
    add("--batch-size", type=int, metavar="N")
    add("--lr", type=float)
    add("--device", default="cpu", help="cpu, gpu or gpu:N (default: cpu)")
    add("--workers", type=int, default=1, metavar="N", help="threads that prepare clips (default: 1)")
    add("--threads", type=int, metavar="N", help="threads that compute (default: every core)")
    add("--out", default="runs/ablations", metavar="FOLDER", help="of runs, tables and curves (default: %(default)s)")
    add("--plan", action="store_true", help="print what would run and about how long, and run nothing")


def _stride(text):
    return text if text == "whole" else int(text)


if __name__ == "__main__":
    sys.exit(main())
