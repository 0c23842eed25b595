"""The process of a Slurm job: submitit's, which runs a pickled call of `run_submitted`, with our logging and exit."""

from submitit.core.submission import submitit_main

from pipelines.logs import set_up_logging
from sweeps.execute.quick_exit import quick_exit

if __name__ == "__main__":
    with quick_exit():
        set_up_logging()  # before submitit logs how it starts
        submitit_main()
