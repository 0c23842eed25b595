"""The weights of a model as one stream of whole tensors, layer by layer, wherever its shards are.

Checkpoints are written from it and rollout engines are fed by it, so no rank ever holds more of a sharded model than
its own part and one layer.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from pipelines.models.adapters import has_adapters, merged_tensors
from pipelines.stage_context import StageContext
from pipelines.training.parallel import local_tensors

OUTPUT_LAYER = "lm_head.weight"


def weight_stream(
    model: PreTrainedModel, *, checkpoint_names: bool = True, tied_output: bool = True, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Name and whole value of each weight, router biases included. All ranks take the stream together.

    Names are those of a checkpoint in Hugging Face format, or those of the model's modules. Adapters are added to the
    weights that they are of, whose names are those in a model without adapters. The output layer has its own entry,
    also where it is tied to the embedding; without `tied_output` a tied one is left out, as in a checkpoint. Parameters
    are in `dtype` (None: as they are), and biases that routers add to their scores always as they are. The tensors are
    on the model's device.
    """
    parameters = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}
    names = model.state_dict().keys()
    embedding = next(name for name, parameter in model.named_parameters() if parameter is _embedding(model))
    is_tied = OUTPUT_LAYER in names and OUTPUT_LAYER not in parameters
    tensors = local_tensors(model)
    for group in _groups(tensors):
        merged = merged_tensors(model, {name: tensors[name] for name in group})
        whole = {name: _whole(tensor, dtype if name in parameters else None) for name, tensor in merged}
        if is_tied and tied_output and embedding in whole:
            whole[OUTPUT_LAYER] = whole[embedding]
        yield from (revert_weight_conversion(model, whole) if checkpoint_names else whole).items()


def save_milestone(context: StageContext, model: PreTrainedModel, step: int, *, sharded: bool) -> None:
    """Save a milestone checkpoint of `model`; all ranks call this together, and the first one writes."""
    # The checkpoint of a model with adapters is the merged one, so that everything reads it.
    weights = weight_stream(model, tied_output=False) if sharded or has_adapters(model) else None
    if context.ranks.rank == 0:
        context.save_milestone(model, step, weights)
    # Gathering needs all ranks.
    for _ in weights or ():
        pass


def _embedding(model: PreTrainedModel) -> Tensor:
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def _groups(names: Iterable[str]) -> Iterator[list[str]]:
    """The names of each layer together, since one name of a checkpoint may mean several; others one by one."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        before, layers, after = name.partition(".layers.")
        groups[f"{before}{layers}{after.split('.')[0]}" if layers else name].append(name)
    yield from groups.values()


def _whole(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The gathered tensor; it is cast first, so that less is sent."""
    tensor = tensor if dtype is None else tensor.to(dtype)
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
