"""LayerStream: reads layers from disk while others compute, through two reused buffers."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Thread

from torch import Tensor, nn

from edgelm.budget.placement import BUFFERS
from edgelm.layerstore.layer_file import LayerFile


class _Slot:
    """A buffer, the index of the streamed layer in it, and the read that fills it."""

    def __init__(self, buffer: Tensor) -> None:
        self.buffer = buffer
        self.position: int | None = None
        self._reading: Thread | None = None
        self._error: Exception | None = None

    def start(self, position: int, file: LayerFile) -> None:
        """Start reading the layer at ``position`` of the stream."""
        self.finish()
        self.position = position
        self._reading = Thread(target=self._read, args=(file,), name="edgelm-read-ahead")
        self._reading.start()

    def finish(self) -> None:
        """Wait for the read; its error is raised here, and the buffer then holds nothing."""
        if self._reading is not None:
            self._reading.join()
            self._reading = None
        if self._error is not None:
            error, self._error, self.position = self._error, None, None
            raise error

    def _read(self, file: LayerFile) -> None:
        try:
            file.read_into(self.buffer)
        except Exception as error:
            self._error = error


class LayerStream:
    """The streamed layers in the order of the forward pass, which repeats in every step.

    A layer always uses the same buffer, so the modules' views stay valid: the layer at
    ``position`` uses buffer ``position % BUFFERS``, and the next layer of that buffer is read as
    soon as it was computed.

    Args:
        files: one per layer. buffers: uint8 [BUFFERS, bytes], each as large as the largest layer.
    """

    def __init__(self, files: Sequence[LayerFile], buffers: Tensor) -> None:
        self._files = files
        self._slots = [_Slot(buffer) for buffer in buffers[: len(files)]]
        for position, slot in enumerate(self._slots):
            slot.start(position, files[position])

    def buffer(self, position: int) -> Tensor:
        """Buffer of the layer at ``position`` while it is computed."""
        return self._slots[position % BUFFERS].buffer

    def attach(self, position: int, layer: nn.Module) -> None:
        """Make a layer wait for its weights, and release its buffer when it is done."""
        layer.register_forward_pre_hook(lambda *_: self._await(position))
        layer.register_forward_hook(lambda *_: self._hand_on(position))

    def close(self) -> None:
        """Wait for pending reads and close the files."""
        for slot in self._slots:
            if slot._reading is not None:
                slot._reading.join()
        for file in self._files:
            file.close()

    def _await(self, position: int) -> None:
        slot = self._slots[position % BUFFERS]
        if slot.position != position:  # an earlier step was aborted
            slot.start(position, self._files[position])
        slot.finish()

    def _hand_on(self, position: int) -> None:
        slot, following = self._slots[position % BUFFERS], position + BUFFERS
        if following >= len(self._files):
            following = position % BUFFERS
        if following != position:
            slot.start(following, self._files[following])
