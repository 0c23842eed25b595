"""Reads distributed checkpoints of tensors without executing anything that is in them.

`torch.distributed.checkpoint` pickles its metadata, and a pickle can call any function when it is loaded. Here only the
classes that describe tensors may be in it. Values that are no tensors, which torch would unpickle too, are refused.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

METADATA = ".metadata"

ALLOWED = {
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
}
"""Module and name of what metadata may refer to, besides torch's data types."""


class PlainReader(FileSystemReader):
    """Reads the files of a checkpoint folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata; raises `pickle.UnpicklingError` if it has anything but descriptions of tensors."""
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _TensorUnpickler(file).load()
        if not isinstance(metadata, Metadata) or not all(
            isinstance(entry, TensorStorageMetadata) for entry in metadata.state_dict_metadata.values()
        ):
            raise pickle.UnpicklingError("it has values that are no tensors")
        for stored in metadata.storage_data.values():
            if Path(stored.relative_path).name != stored.relative_path:
                raise pickle.UnpicklingError(f"it names a file of another folder, {stored.relative_path}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class PlainPlanner(DefaultLoadPlanner):
    """Plans to read tensors only."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Raises `pickle.UnpicklingError`: torch would unpickle the value."""
        raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is no tensor")


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_type and (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)
