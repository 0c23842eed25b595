"""`shaping-run`: runs the stage runs that are missing of one cell or of a sweep, through Hydra's multirun."""

import os
import sys
from typing import NoReturn

import hydra
from omegaconf import DictConfig

from pipelines.errors import UserError, nearest
from pipelines.logs import DEBUG_VARIABLE
from sweeps.commands.exit_codes import exit_codes
from sweeps.compose.expansion import with_home
from sweeps.compose.hydra_internals import flag_names, flags_parser


def main() -> None:
    """Run the command line; the exit codes are those of `sweeps.commands.exit_codes`."""
    # Workers inherit the variable, and with it the level of their logs.
    if "--debug" in sys.argv:
        os.environ[DEBUG_VARIABLE] = "1"
    arguments = [a for a in with_home(sys.argv[1:]) if a not in ("--debug", "-m", "--multirun")]
    # Have Hydra raise errors, instead of printing them and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with exit_codes("shaping-run"):
        # A single cell is run as a sweep of one. --multirun comes first, because argparse wants overrides together.
        sys.argv[1:] = arguments if _only_shows(arguments) else ["--multirun", *arguments]
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(_refuse_single_run)()


def _only_shows(arguments: list[str]) -> bool:
    """Returns whether the flags among `arguments` show something and run nothing.

    Raises `UserError` for unknown flags, and for flags that cannot be combined or are of no use here.
    """
    parser = flags_parser()
    # argparse would print its usage and exit.
    parser.error = _raise_user_error  # type: ignore[method-assign]
    flags, unknown = parser.parse_known_args(arguments)
    # Unknown flags come before overrides, which argparse misses because of them.
    for word in sorted(unknown, key=lambda word: not word.startswith("-")):
        if not word.startswith("-"):
            raise UserError(f"{word}: write all overrides together, before or after all flags")
        flag = word.split("=")[0]
        options = [name for name in flag_names(parser) if name != "--run"]
        raise UserError(f"{flag}: unknown flag; {nearest(flag, [*options, '--debug'])}")
    if flags.run:
        raise UserError("--run: shaping-run always runs what is missing; leave the flag out")
    if flags.resolve and not (flags.cfg or flags.help):
        raise UserError("--resolve: it is for a configuration that is shown; add --cfg=job")
    shown = [name for name in ("cfg", "info", "shell_completion") if getattr(flags, name)]
    if len(shown) > 1:
        names = ", ".join("--" + name.replace("_", "-") for name in shown)
        raise UserError(f"{names}: they cannot be combined; leave one out")
    return bool(shown or flags.help or flags.hydra_help)


def _raise_user_error(message: str) -> NoReturn:
    raise UserError(message.removeprefix("argument "))


def _refuse_single_run(config: DictConfig) -> None:
    raise UserError("hydra.mode=RUN: shaping-run always plans a sweep; leave hydra.mode out")


if __name__ == "__main__":
    main()
