"""Where every console script starts: it says in one sentence when the extra `platform` is not installed.

`pip install shaping` installs the objective and torch, and with it these scripts; everything that they need is in the
extra.
"""

import sys
from importlib import import_module
from pathlib import Path

MODULES = {
    "shaping-run": "sweeps.commands.run",
    "shaping-torchrun": "sweeps.commands.torchrun",
    "shaping-sweeps": "sweeps.commands.sweeps",
    "shaping-data": "sweeps.commands.data",
    "reproduce-paper-tables": "analysis.reproduce",
    "shaping-dashboard": "analysis.dashboard",
}
"""Script -> the module whose `main` it runs."""


def main() -> None:
    """Run the script that was typed; exits with 2 where what it needs is not installed."""
    program = Path(sys.argv[0]).stem
    try:
        module = import_module(MODULES[program])
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("conf", "pipelines", "sweeps", "analysis", "shaping"):
            raise
        print(f"{program}: {error.name} is not installed; pip install 'shaping[platform]'", file=sys.stderr)
        sys.exit(2)
    module.main()
