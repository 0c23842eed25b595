"""The weights of a checkpoint, read layer by layer with transformers' own conversion of their names and shapes.

Only the headers of its files are read before; the experts of a layer, which are separate tensors in a checkpoint, are
joined as `from_pretrained` does.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig

from pipelines.configuration.start_checkpoint import INDEX, WEIGHTS
from pipelines.errors import StageFailure
from pipelines.models.deferred import defer, layer_number
from pipelines.models.meta_build import built_on_meta


def checkpoint_model(build: Callable[[], PreTrainedModel], checkpoint: Path) -> PreTrainedModel:
    """The model of a checkpoint folder, whose architecture `build` returns, as a deferred model in float32.

    Raises `OSError` for a missing file, and safetensors' error for one that is cut.
    """
    weights = CheckpointWeights(checkpoint, _files(checkpoint))
    model, _recording = built_on_meta(build)
    model.config.dtype = torch.float32
    if (checkpoint / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint, local_files_only=True)
    return defer(model.eval(), weights)


def _files(checkpoint: Path) -> dict[str, str]:
    """Name of each tensor in the files of a checkpoint -> its file."""
    files = {WEIGHTS}
    if not (checkpoint / WEIGHTS).is_file():
        files = set(json.loads((checkpoint / INDEX).read_text())["weight_map"].values())
    names: dict[str, str] = {}
    for file in sorted(files):
        with safe_open(checkpoint / file, "pt") as opened:
            names |= dict.fromkeys(opened.keys(), file)
    return names


@dataclass(frozen=True)
class CheckpointWeights:
    """Weights in the files of a checkpoint; see `DeferredWeights`."""

    folder: Path
    files: Mapping[str, str]
    """Name of each tensor -> its file."""

    def fill(self, model: PreTrainedModel) -> Iterator[int]:
        """See `DeferredWeights.fill`. Raises `StageFailure` if a tensor has another shape than the model's."""
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        conversions = get_model_conversion_mapping(model)
        layers = range(model.config.num_hidden_layers)
        groups: dict[int | None, list[str]] = defaultdict(list)
        for name in self.files:
            number = layer_number(name)
            # Layers that the model does not have are ignored, as `from_pretrained` does.
            groups[number if number in layers else None].append(name)
        for number in layers:
            self._load(model, groups[number], conversions)
            _freeze(model, frozen)
            yield number
        self._load(model, groups[None], conversions)
        missing = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
        model.tie_weights(missing_keys=missing, recompute_mapping=False)
        _freeze(model, frozen)

    def _load(self, model: PreTrainedModel, names: list[str], conversions: list[Any]) -> None:
        """Read some tensors and put them into `model`, in the types that it has; `conversions` are transformers'."""
        with ExitStack() as opened:
            files = {
                file: opened.enter_context(safe_open(self.folder / file, "pt"))
                for file in {self.files[name] for name in names}
            }
            slices = {name: files[self.files[name]].get_slice(name) for name in names}
            settings = LoadStateDictConfig(dtype=torch.float32, weight_mapping=conversions)
            report, _ = convert_and_load_state_dict_in_model(model, slices, settings)
        for name, actual, expected in report.mismatched_keys:
            raise StageFailure(f"{self.folder}: {name} has shape {list(actual)}, but its model {list(expected)}")


def _freeze(model: PreTrainedModel, names: set[str]) -> None:
    """Freeze the parameters of these names again, since transformers puts trained ones in their places."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
