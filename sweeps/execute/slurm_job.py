"""The process of a Slurm job: submitit's, which loads a pickled job and runs it, but for how it ends."""

from submitit.core.submission import submitit_main

from sweeps.execute.quick_exit import ends_at_once

if __name__ == "__main__":
    with ends_at_once():
        submitit_main()
