"""`shaping-sweeps`: all its commands in the order of its help."""

from sweeps.commands import plan, cost_model, status, compare, seeds, retry, store  # noqa: F401, I001  (each registers its commands)
from sweeps.commands.shared_arguments import app, run


def main() -> None:
    """Run the command line; the exit codes are those of `sweeps.commands.exit_codes`."""
    run(app, "shaping-sweeps")


if __name__ == "__main__":
    main()
