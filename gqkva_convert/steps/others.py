"""Tensors that repeat another one's bytes."""

from __future__ import annotations

from gqkva_convert.checkpoint.reader import same_bytes
from gqkva_convert.source.model import SourceModel
from gqkva_convert.source.tensors import tied_pairs


def tied_copies(model: SourceModel) -> dict[str, str]:
    """Return tensors that repeat the bytes of the tensor that transformers ties them to, with the reason.

    Only where the configuration says that embeddings are tied: some loaders untie what is stored twice.
    """
    tensors, copies = model.checkpoint.tensors, {}
    with model.checkpoint.reader() as reader:
        for copy_name, original_name in tied_pairs(model):
            copy, original = tensors.get(copy_name), tensors.get(original_name)
            if copy and original and copy is not original and same_bytes(copy, original, reader):
                copies[copy.name] = f"the same bytes as {original.name}, which transformers ties it to"
    return copies
