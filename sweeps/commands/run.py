"""`shaping-run`: runs the stage runs that are missing of one cell or of a sweep, through Hydra's multirun."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from omegaconf import OmegaConf

from pipelines.errors import UserError, nearest
from pipelines.logs import DEBUG_VARIABLE
from sweeps.commands.exit_codes import exit_codes
from sweeps.compose.config_files import without_config_dir
from sweeps.compose.expansion import parsed, with_home
from sweeps.compose.hydra_internals import flag_names, flags_parser
from sweeps.compose.own_folder import create_own_folder, first_commands

ELSEWHERE = {
    "run": "shaping-run always runs what is missing; leave the flag out",
    "config_path": "put files of your own into a folder and name it: --config-dir=FOLDER",
    "config_name": "a cell is always made from config.yaml; put options into a folder and name it: --config-dir=FOLDER",
    "experimental_rerun": "type the same command again instead; it runs only what is missing",
}
"""Flags of Hydra that have no use here -> what to do instead."""
INIT = "--init"
HIDDEN = ("--run", "--config-path", "--config-name", "--experimental-rerun")


def main() -> None:
    """Run the command line; the exit codes are those of `sweeps.commands.exit_codes`."""
    # Workers inherit the variable, and with it the level of their logs.
    if "--debug" in sys.argv:
        os.environ[DEBUG_VARIABLE] = "1"
    # Have Hydra raise errors, instead of printing them and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    with exit_codes("shaping-run"):
        words = [word for word in with_home(sys.argv[1:]) if word not in ("--debug", "-m", "--multirun")]
        if words and words[0].partition("=")[0] == INIT:
            _init(words)
            return
        arguments = without_config_dir(words)
        flags = _flags(arguments)
        _check_hydra_keys(flags.overrides)
        if not flags.shell_completion:
            parsed(flags.overrides)
        if flags.cfg == "job":
            _show_cells(flags)
            return
        # A single cell is run as a sweep of one. --multirun comes first, because argparse wants overrides together.
        shows = flags.cfg or flags.info or flags.shell_completion or flags.help or flags.hydra_help
        sys.argv[1:] = arguments if shows else ["--multirun", *arguments]
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(_no_single_run)()


def _init(words: list[str]) -> None:
    """Create the folder that `--init FOLDER` names."""
    _, equals, name = words[0].partition("=")
    rest = words[1:]
    if not equals and rest:
        name = rest.pop(0)
    if not name or name.startswith("-") or rest:
        raise UserError(f"{' '.join(words)}: name one new folder, and nothing else: {INIT} FOLDER")
    folder = Path(name).expanduser()
    create_own_folder(folder)
    print(first_commands(folder))


def _flags(arguments: list[str]) -> argparse.Namespace:
    """Returns the flags and overrides among `arguments`.

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
        options = [name for name in flag_names(parser) if name not in HIDDEN]
        raise UserError(f"{flag}: unknown flag; {nearest(flag, [*options, '--debug', INIT])}")
    for name, instead in ELSEWHERE.items():
        if getattr(flags, name):
            raise UserError(f"--{name.replace('_', '-')}: {instead}")
    if flags.resolve and not (flags.cfg or flags.help):
        raise UserError("--resolve: it is for a configuration that is shown; add --cfg=job")
    if flags.package and not flags.cfg:
        raise UserError("--package: it is for a configuration that is shown; add --cfg=job")
    shown = [name for name in ("cfg", "info", "shell_completion") if getattr(flags, name)]
    if len(shown) > 1:
        names = ", ".join("--" + name.replace("_", "-") for name in shown)
        raise UserError(f"{names}: they cannot be combined; leave one out")
    if flags.shell_completion and not {word.split("=")[0] for word in flags.overrides} & {
        "install",
        "uninstall",
        "query",
    }:
        raise UserError("--shell-completion: add what to do: install=bash, uninstall=bash or query=bash")
    return flags


def _check_hydra_keys(overrides: list[str]) -> None:
    """Raise `UserError` for keys of Hydra that would be without effect here."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "hydra.mode" and value != "MULTIRUN":
            raise UserError(f"{override}: shaping-run always plans a sweep, if only of one cell; leave hydra.mode out")
        if key == "hydra.searchpath":
            raise UserError(f"{override}: name a folder of your own with --config-dir=FOLDER or SHAPING_CONFIG_DIR")


def _show_cells(flags: argparse.Namespace) -> None:
    """Print the configuration of each cell that the command line names, as it would run."""
    from sweeps.compose.cells import composed

    jobs = composed([word for word in flags.overrides if not word.lstrip("+~").startswith("hydra")])
    for position, (job, config) in enumerate(jobs):
        if len(jobs) > 1:
            print(f"{'---' if position else ''}\n# cell: {' '.join(job)}".lstrip())
        part = config
        if flags.package and flags.package != "_global_":
            part = OmegaConf.select(config, flags.package)
            if part is None:
                raise UserError(f"--package={flags.package}: a cell has no such part; --cfg=job shows all of it")
            print(f"# @package {flags.package}")
        print(OmegaConf.to_yaml(part, resolve=flags.resolve) if OmegaConf.is_config(part) else part)


def _raise_user_error(message: str) -> NoReturn:
    raise UserError(message.removeprefix("argument "))


def _no_single_run(config: object) -> None:
    raise AssertionError("shaping-run always runs a multirun")


if __name__ == "__main__":
    main()
