"""`shaping-run`: Hydra's multirun as the front door to one graph of stage runs."""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipelines.errors import UserError
from sweeps.hydra_plugins import register
from sweeps.sentences import sentence

DEBUG_VARIABLE = "SHAPING_DEBUG"

SHOWS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
"""Hydra's flags that show something and run nothing."""


def main() -> None:
    """Run the command line; exits with 0, with 1 for failed work, 2 for a user's mistake, 130 after Ctrl-C."""
    debug = "--debug" in sys.argv or bool(os.environ.get(DEBUG_VARIABLE))
    arguments = [a for a in sys.argv[1:] if a not in ("--debug", "-m", "--multirun")]
    # One cell is a grid of one, so -m may be left out; it stands first because argparse wants overrides together.
    shows = any(a.split("=")[0] in SHOWS for a in arguments)
    sys.argv[1:] = arguments if shows else ["--multirun", *arguments]
    # Hydra would print its own account of an error and exit with 1; with this set it raises, and we word it.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register()
    try:
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(_unreachable)()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        print(f"shaping-run: {sentence(error)}", file=sys.stderr)
        mistake = isinstance(error, UserError | HydraException | OmegaConfBaseException)
        sys.exit(2 if mistake else 1)


def _unreachable(config: DictConfig) -> None:
    raise UserError("hydra.mode=RUN: shaping-run always plans a graph; leave hydra.mode as it is")


if __name__ == "__main__":
    main()
