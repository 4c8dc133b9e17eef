"""Transfer of tensors to an accelerator, through two pinned buffers on CUDA.

From pageable memory the driver copies into its own pinned buffer and waits for it; here one buffer
is filled while the other is sent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgelm.machine import accelerators

_BUFFER_BYTES = 8 << 20
_BUFFERS = 2
TRANSFER_BYTES = _BUFFER_BYTES * _BUFFERS  # of the host, while loading


class Transfer:
    """Copies tensors from the host to the device of a plan."""

    def __init__(self, device: str) -> None:
        self.device = accelerators.torch_device(device)
        self._buffers: list[Tensor] = []
        self._sent: list[torch.cuda.Event | None] = [None] * _BUFFERS

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return a copy on the device, or the tensor itself if it is already there."""
        if self.device.type != "cuda" or tensor.device == self.device:
            return tensor.to(self.device)
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device)
        self.copy(tensor, target)
        return target

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy ``source`` into ``target``, contiguous and of the same shape and dtype."""
        if not self._buffers:
            pinned = self.device.type == "cuda"
            self._buffers = [
                torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=pinned)
                for _ in range(_BUFFERS)
            ]
        read, written = (t.contiguous().view(-1).view(torch.uint8) for t in (source, target))
        for number, start in enumerate(range(0, read.numel(), _BUFFER_BYTES)):
            piece = slice(start, start + _BUFFER_BYTES)
            self._send(number % _BUFFERS, read[piece], written[piece])

    def _send(self, number: int, read: Tensor, written: Tensor) -> None:
        """Send one piece through one buffer, whose earlier transfer may still be in flight."""
        sent, buffer = self._sent[number], self._buffers[number][: read.numel()]
        if sent is not None:
            sent.synchronize()
        buffer.copy_(read)
        written.copy_(buffer, non_blocking=True)
        if self.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
            self._sent[number] = event
