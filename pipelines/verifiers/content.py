"""What a verifier's verdicts depend on, as plain values for signatures and cache keys."""

import importlib.metadata
from dataclasses import asdict
from typing import Any

from pipelines.verifiers.registry import VERIFIERS


def verifier_content(name: str) -> dict[str, Any]:
    """Returns a verifier's entry in the registry, with the versions of the packages that it uses."""
    verifier = VERIFIERS[name]
    content = asdict(verifier)
    # Verifiers that were stored before there were plugins have no such keys.
    for key, before in (("reads", "answer"), ("source", None)):
        if content[key] == before:
            del content[key]
    return content | {"packages": {package: installed_version(package) for package in verifier.packages}}


def installed_version(package: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
