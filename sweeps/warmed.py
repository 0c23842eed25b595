"""What the fork server imports once, so that no worker has to: the code of a job, and what it looks up of this Python.

Importing this module does the work; nothing else imports it.
"""

from submitit.core.plugins import get_job_environments

from sweeps import warm, work  # noqa: F401

get_job_environments()  # asks every installed package for submitit plugins, and remembers
work.environment()
