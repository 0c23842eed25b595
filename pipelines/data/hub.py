"""A Hub that cannot be reached is noticed in seconds, where its libraries would try again for a minute per data set."""

import logging
import os
from functools import cache

REACHED_WITHIN = 5.0
"""Seconds in which the Hub has to answer at all."""


@cache
def without_waiting() -> None:
    """Tell the libraries of the Hub, once per process, that they are offline if no answer comes from it.

    They then use what is in their cache, or fail at once with a reason.
    """
    try:
        import httpx
        from huggingface_hub import constants
    except ImportError:
        return
    # Not a warning for each attempt to reach it.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if constants.HF_HUB_OFFLINE:
        return
    try:
        httpx.head(constants.ENDPOINT, timeout=REACHED_WITHIN)
    except httpx.HTTPError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are not imported yet
        constants.HF_HUB_OFFLINE = True
        try:
            from datasets import config
        except ImportError:
            return
        config.HF_HUB_OFFLINE = config.HF_DATASETS_OFFLINE = True
