"""`shaping-sweeps`: all its commands under one name, and how it ends."""

from sweeps.commands import plan, stage_runs, store  # noqa: F401  (they register their commands, in order)
from sweeps.commands.application import app, run


def main() -> None:
    """Run the command line; exits with 0, with 1 for failures, 2 for a user's mistake, 130 after Ctrl-C."""
    run(app, "shaping-sweeps")


if __name__ == "__main__":
    main()
