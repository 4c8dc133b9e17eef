"""Weights into a decoder as the plan says: read, quantize, lay out, one tensor at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from edgelm.budget.admission import require_memory
from edgelm.budget.dtypes import DTYPES
from edgelm.budget.ledger import Ledger
from edgelm.budget.parts import PartName, Where
from edgelm.budget.placement import (
    BUFFERS,
    buffer_bytes,
    host_layers,
    is_streamed,
    streamed_layers,
)
from edgelm.budget.plan import MatrixPlan, Plan
from edgelm.budget.units import BLOCK_BYTES
from edgelm.budget.weight_name import WeightName, layer_group
from edgelm.errors import ModelFileError
from edgelm.hub.references import cache_dir
from edgelm.layerstore.layer_file import Prepared
from edgelm.layerstore.layer_folder import LayerFolder, worth_keeping
from edgelm.layerstore.layer_stream import LayerStream
from edgelm.machine import hardware
from edgelm.machine.transfer import Transfer
from edgelm.models.assembled import Assembled
from edgelm.models.attention import Attention
from edgelm.models.layers import part_names
from edgelm.progress import Progress
from quant import (
    ModuleReport,
    PackedWeight,
    QuantEmbedding,
    QuantError,
    QuantLinear,
    Report,
    Scheme,
    find,
    pack,
)

logger = logging.getLogger("edgelm")
AGAIN = "quantized again: the file holds it in other bits"
FROM_BLOCKS = "requantized from "
LEFT_ALONE = "left in floats by the file"


class Loader:
    """Fills one decoder from one checkpoint.

    Args:
        progress: called with (what, bytes done, bytes in all) after each matrix.
    """

    def __init__(
        self, model: Assembled, plan: Plan, ledger: Ledger, progress: Progress | None
    ) -> None:
        self.decoder, self.names, self.plan, self.ledger = model.decoder, model.names, plan, ledger
        self.method = plan.execution.method
        self.progress = progress
        self.dtype = DTYPES[plan.dtype]
        self.report = Report()
        self.stream: LayerStream | None = None
        self._send = Transfer(plan.device)
        self._done_bytes = 0
        self._ready: dict[str, tuple[dict[str, Tensor], list[ModuleReport]]] = {}

    def load(self, keep: bool = False) -> Report:
        """Every weight into its module.

        Args:
            keep: let later loads of the same plan map what is laid out, see ``layer_folder``.

        Raises:
            ModelFileError: a weight holds NaN, infinity or numbers beyond its scheme.
        """
        self._open_stream()
        if keep:
            self._open_kept()
        pending = {product.names[0]: product for product in self.plan.products}
        embed = pending.pop("embed", None)
        if embed is not None:
            self.decoder.embed.table = QuantEmbedding(self._layout(embed), find(embed.kernel))
        for prefix, projection in self.decoder.projections():
            bias = self._bias(prefix, projection.parts) if projection.bias else None
            start = 0
            for name in part_names(prefix, list(projection.parts)):
                if name not in pending:
                    continue
                product = pending.pop(name)
                own = None if bias is None else bias[start : start + product.shape[0]]
                start += product.shape[0]
                linear = QuantLinear(self._layout(product), find(product.kernel), own)
                projection.products.append(linear)
        if self.decoder.head is not None and self.decoder.embed.tied_to_head:
            assert self.decoder.embed.table is not None
            self.decoder.head.products.append(self.decoder.embed.table.as_linear())
        for name, norm in self.decoder.norms():
            for vector in norm.vectors:
                offset = norm.offset if vector == "weight" else 0.0
                found = self._vector(name, vector, norm.size, torch.float32, offset)
                setattr(norm, vector, found)
        for module in self.decoder.modules():
            if isinstance(module, Attention) and module.layer >= host_layers(self.plan):
                module.move(self._send.device)
        if self.progress:
            self.progress("norms", self.plan.weight_bytes, self.plan.weight_bytes)
        return self.report

    def _open_kept(self) -> None:
        """Map what an earlier load laid out in the cache folder; lay out there what none did.

        Where that fails, the matrices not yet made are made as if nothing were kept.
        """
        streamed = {layer_group(layer) for layer in streamed_layers(self.plan)}
        worth = worth_keeping(self.plan.products, self.names)
        groups = [group for group in worth if group not in streamed]
        if not groups:
            return
        store = LayerFolder(cache_dir(), self.names, self.plan.products, self.method)
        missing = set(groups)
        for group, file in store.find(groups):
            missing.remove(group)
            image = file.mapped()
            for product in store.groups[group]:
                name = product.names[0]
                self._ready[name] = file.views(name, image), file.modules(name)
            self._tell(*store.groups[group])
            file.close()
        if missing:
            later = [group for group in groups if group in missing]
            store.write(later, self._prepare_and_hold)

    def _prepare_and_hold(self, product: MatrixPlan) -> Prepared:
        """A product for its file, and for this load."""
        name, tensors, modules = self._prepare(product)
        self._ready[name] = dict(self._sent(product, tensors)), modules  # the file empties its own
        self._tell(product)
        return name, tensors, modules

    def _open_stream(self) -> None:
        """Files and buffers of the layers that the plan leaves on disk."""
        layers = streamed_layers(self.plan)
        if not layers:
            return
        groups = [layer_group(layer) for layer in layers]
        store = LayerFolder(cache_dir(), self.names, self.plan.products, self.method)
        products = store.groups
        files = store.open(groups, self._prepare, lambda group: self._tell(*products[group]))
        size = buffer_bytes([p for group in groups for p in products[group]])
        buffers = self.ledger.empty(PartName.STREAM_BUFFERS, (BUFFERS, size), torch.uint8)
        self.stream = LayerStream(files, buffers)
        for position, (layer, file) in enumerate(zip(layers, files, strict=True)):
            self.stream.attach(position, self.decoder.layers[layer])
            for product in products[groups[position]]:
                name = product.names[0]
                views = file.views(name, self.stream.buffer(position))
                self._ready[name] = views, file.modules(name)

    def _prepare(self, product: MatrixPlan) -> Prepared:
        """A product for its layer's file; what is reported of it is kept there."""
        before = len(self.report.modules)
        tensors = self._prepared(product)
        modules = self.report.modules[before:]
        del self.report.modules[before:]
        return product.names[0], tensors, modules

    def _tell(self, *products: MatrixPlan) -> None:
        for product in products:
            self._done_bytes += product.nbytes
            if self.progress:
                self.progress(product.names[0], self._done_bytes, self.plan.weight_bytes)

    def _layout(self, product: MatrixPlan) -> tuple[dict[str, Tensor], Scheme, tuple[int, int]]:
        """A product in its kernel's layout: held by us, mapped, or where the stream brings it."""
        name = product.names[0]
        if name in self._ready:
            tensors, modules = self._ready.pop(name)
            self.report.modules += modules
        else:
            tensors = self._prepared(product)
            self._tell(product)
        tensors = self._sent(product, tensors)
        if not is_streamed(product, self.plan.placement):
            where: Where = "host" if product.device == "cpu" else "device"
            self.ledger.hold(product.name.part, *tensors.values(), where=where)
        return tensors, Scheme.parse(product.scheme), product.shape

    def _stays(self, name: str) -> bool:
        """True if a name belongs to a layer that stays on the host beside an accelerator."""
        layer = WeightName.parse(name).layer
        return layer is not None and layer < host_layers(self.plan)

    def _sent(self, product: MatrixPlan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors where the plan wants them; those that are there stay as they are."""
        if product.device == "cpu":
            return tensors
        return {name: self._send(tensor) for name, tensor in tensors.items()}

    def _prepared(self, product: MatrixPlan) -> dict[str, Tensor]:
        """A product's parts packed one below the other, in its kernel's layout.

        Raises:
            DoesNotFitError: less memory is available now than the plan still needs.
        """
        require_memory(self.plan)
        scheme = Scheme.parse(product.scheme)
        if len(product.names) == 1:
            packed = self._pack(product, 0, scheme)
        else:
            packed = PackedWeight.empty(product.shape, scheme)
            start = 0
            for index, (rows, _) in enumerate(product.shapes):
                packed.copy_rows_(start, self._pack(product, index, scheme))
                start += rows
        hardware.release_freed_memory()  # blocks that were read
        tensors = find(product.kernel).prepare(packed)
        del packed
        hardware.release_freed_memory()
        return tensors

    def _pack(self, product: MatrixPlan, index: int, scheme: Scheme) -> PackedWeight:
        name, shape = product.names[index], product.shapes[index]
        info = self.names.info(name, shape)
        error_db, note = None, ""
        try:
            if product.stored:
                packed = self.names.read_packed(name, shape)
                packed.check()
            else:
                packed, error_db = pack(self._blocks(name, shape), shape, scheme, self.method)
        except QuantError as error:
            where = f"{self.names.checkpoint.path}: tensor {self.names.file_name(name)}"
            raise ModelFileError(f"{where}: {error}") from error
        if product.stored:
            note = f"kept as stored ({info.dtype})"
        else:
            if scheme == info.nearest:
                note = f"{FROM_BLOCKS}{info.dtype}"
            elif (info.scheme or info.nearest) and not scheme.is_float:
                note = AGAIN
            elif info.stays_float and scheme.is_float:
                note = LEFT_ALONE
            note = note or product.note
        nbytes = _part_bytes(product, index, scheme)
        self.report.modules.append(
            ModuleReport(name, scheme, shape, nbytes, error_db, product.kernel, note)
        )
        return packed

    def _blocks(self, name: str, shape: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
        """Row blocks of a tensor, so that an embedding of a gigabyte is never whole in float."""
        step = max(1, BLOCK_BYTES // (shape[1] * torch.float32.itemsize))
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            yield start, self.names.read(name, start, stop)

    def _bias(self, prefix: str, parts: dict[str, int]) -> Tensor:
        named = zip(part_names(prefix, list(parts)), parts.values(), strict=True)
        dtype = torch.float32 if self._stays(prefix) else self.dtype
        return torch.cat([self._vector(name, "bias", rows, dtype) for name, rows in named])

    def _vector(
        self, name: str, kind: str, size: int, dtype: torch.dtype, offset: float = 0.0
    ) -> Tensor:
        """A norm's vector or a bias in ``dtype``, checked for NaN."""
        info = self.names.info(name, (size,), kind)
        vector = (self.names.read(name, 0, size, kind).float() + offset).to(dtype)
        if not bool(torch.isfinite(vector).all()):
            raise ModelFileError(
                f"{self.names.checkpoint.path}: tensor {self.names.file_name(name, kind)} holds "
                "NaN or infinity; the file is damaged: fetch it again."
            )
        where: Where = "host" if self._stays(name) else self.plan.place
        vector = self._send(vector) if where == "device" else vector
        self.ledger.hold(PartName.VECTORS, vector, where=where)
        self.report.other_bytes += vector.nbytes
        self.report.other_stored_bytes += size * info.nbytes // math.prod(info.shape)
        self.report.other_elements += vector.numel()
        return vector


def _part_bytes(product: MatrixPlan, index: int, scheme: Scheme) -> int:
    """Bytes a part adds to a fused product: kernels that lay rows in panels pad only the last."""

    def nbytes(count: int) -> int:
        rows = sum(rows for rows, _ in product.shapes[:count])
        return find(product.kernel).nbytes(scheme, (rows, product.shape[1])) if rows else 0

    return nbytes(index + 1) - nbytes(index)


def warn_of_requantizing(report: Report) -> None:
    """Say once how many matrices lost accuracy twice, and which of the file's types made it so."""
    again = sum(module.note == AGAIN for module in report.modules)
    if again:
        logger.warning(
            "%d matrices of this file were quantized already and are quantized again, which costs "
            "accuracy twice; the scheme 'auto' keeps the file's own integers.",
            again,
        )
    blocks = [module for module in report.modules if module.note.startswith(FROM_BLOCKS)]
    if blocks:
        logger.warning(
            "%d matrices are stored in blocks that no kernel supports (%s): they are requantized "
            "to %s. The report shows the error of each.",
            len(blocks),
            ", ".join(sorted({module.note.removeprefix(FROM_BLOCKS) for module in blocks})),
            " and ".join(sorted({str(module.scheme) for module in blocks})),
        )
