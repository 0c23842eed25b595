"""The model card of a milestone checkpoint: its data, objective, budget and newest metrics."""

import json
from collections.abc import Mapping
from typing import Any


def model_card(spec: Mapping[str, Any], *, step: int, parameters: int, row: Mapping[str, Any]) -> str:
    """Returns a checkpoint's README.md with the Hub's metadata at the top; `row` is the newest ledger row."""
    config, labels, stage = spec["config"], spec["labels"], spec["stage"]
    name = "/".join(str(labels.get(key, "?")) for key in ("model", "objective", "seed"))
    objective = config.get("objective")
    # The lines between the rules are metadata for the Hugging Face Hub.
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [shaping]",
        "---",
        f"# {name}: {stage}, step {step}",
        "",
        f"A causal language model of {parameters:,} parameters, trained by "
        "[Shaping](https://arxiv.org/abs/2512.22955); load it with `AutoModelForCausalLM.from_pretrained`.",
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
        lines += ["", "## Training metrics of the newest ledger row", "", "| | |", "|---|---|"]
        lines += [
            f"| {key} | {value:.6g} |" for key, value in row.items() if isinstance(value, int | float) and key != "time"
        ]
    return "\n".join(lines) + "\n"


def _parent(spec: Mapping[str, Any]) -> str:
    parent = spec["parent"]
    return f"`{parent['stage']}/{parent['signature']}`, {spec['checkpoint']}" if parent else "none"


def _listed(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value)}" for key, value in content.items())
