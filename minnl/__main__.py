"""``python -m minnl check`` (are the gradients right?) and ``python -m minnl doctor`` (is the machine in order?)."""

from __future__ import annotations

import argparse
import sys


def main(arguments=None):
    """Run one of the commands and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m minnl", description="Tools around minnl.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="check the gradient of every op against differences")
    check.add_argument("ops", nargs="*", metavar="OP", help="only these, such as conv3d or softmax (default: all)")
    check.add_argument("--device", default="cpu", help="cpu, gpu or gpu:N (default: cpu)")
    commands.add_parser("doctor", help="what minnl finds on this machine, what is wrong, and what mends it")
    given = parser.parse_args(arguments)

    if given.command == "doctor":  # imported here: the doctor must also speak where minnl itself does not load
        from minnl.study import doctor

        return doctor.main()
    from minnl.study import check

    try:
        return check.main(given.ops, given.device)
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
