"""What this project uses of Hydra's private parts; a test fails where Hydra changes them.

Hydra has no public access to its command-line flags, and ignores a flag that it does not know. `shaping-run` needs them
to reject unknown flags, and to tell those that show something from those that run something.
"""

import argparse

from hydra._internal.utils import get_args_parser


def flags_parser() -> argparse.ArgumentParser:
    """Returns the parser of Hydra's own flags."""
    parser: argparse.ArgumentParser = get_args_parser()
    return parser


def flag_names(parser: argparse.ArgumentParser) -> list[str]:
    """Returns the long flags of a parser, such as `--cfg`."""
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
