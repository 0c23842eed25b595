"""The start of every console script, which says in one sentence if the extra `platform` is not installed.

`pip install shaping` installs only the objective and torch, but also these scripts; what they need is in the extra.
"""

import sys
from importlib import import_module
from pathlib import Path

MODULES = {
    "shaping-run": "sweeps.commands.run",
    "shaping-torchrun": "sweeps.commands.torchrun",
    "shaping-sweeps": "sweeps.commands.shaping_sweeps",
    "shaping-data": "sweeps.commands.data",
    "reproduce-paper-tables": "analysis.reproduce",
    "shaping-dashboard": "analysis.dashboard",
}
"""Script -> the module whose `main` it runs."""
PACKAGES = ("conf", "shaping", "pipelines", "sweeps", "analysis")
"""Packages of this project, which are always installed."""


def main() -> None:
    """Run the console script with the name of this program.

    Exits with 2 if a package is not installed, and with 130 at Ctrl-C during the imports.
    """
    program = Path(sys.argv[0]).stem
    try:
        module = import_module(MODULES[program])
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in PACKAGES:
            raise
        print(f"{program}: {error.name} is not installed; pip install 'shaping[platform]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    module.main()
