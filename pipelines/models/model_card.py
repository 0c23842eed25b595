"""The card of a milestone checkpoint: what it was trained on, with which objective, how far, and what it measures."""

import json
from collections.abc import Mapping
from typing import Any


def model_card(spec: Mapping[str, Any], step: int, parameters: int, row: Mapping[str, Any]) -> str:
    """README.md of a checkpoint, with the Hub's metadata on top; `row` is the newest of the ledger."""
    config, labels, stage = spec["config"], spec["labels"], spec["stage"]
    name = "/".join(str(labels.get(key, "?")) for key in ("model", "objective", "seed"))
    objective = config.get("objective")
    told = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [shaping]",
        "---",
        f"# {name}: {stage}, step {step}",
        "",
        f"A causal language model of {parameters:,} parameters, trained by "
        "[Shaping](https://arxiv.org/abs/2512.22955); `AutoModelForCausalLM.from_pretrained` loads it as it is.",
        "",
        "| | |",
        "|---|---|",
        f"| stage run | `{stage}/{spec['signature']}`, version {spec['version']} |",
        f"| parent | {_parent(spec)} |",
        f"| objective | {_listed(objective) if objective else 'GRPO'} |",
        f"| data | {_listed(config['data'])} |",
        f"| budget | {_listed(config[stage])} |",
        f"| seed | {config['seed']} |",
    ]
    if row:
        told += ["", "## Training metrics at the newest row of the ledger", "", "| | |", "|---|---|"]
        told += [
            f"| {key} | {value:.6g} |" for key, value in row.items() if isinstance(value, int | float) and key != "time"
        ]
    return "\n".join(told) + "\n"


def _parent(spec: Mapping[str, Any]) -> str:
    parent = spec["parent"]
    return f"`{parent['stage']}/{parent['signature']}`, {spec['checkpoint']}" if parent else "none"


def _listed(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in content.items())
