"""Cards that are not there: enough of a driver for Triton to compile what a launch asks for."""

from __future__ import annotations

from typing import Any


class Card:
    """A driver of a card that is not there: enough to compile what a launch asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # compiled kernels are remembered by device

    def get_current_stream(self, device: int) -> int:
        return 0


def pretend(capability: int, made: list[Any]) -> None:
    """From now on launches compile for such a card, add to `made`, and run nothing."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    def getitem(kernel: Any, grid: tuple[int, ...]) -> Any:
        return lambda *a, **k: made.append(kernel.run(*a, grid=grid, warmup=True, **k))

    driver.set_active(Card(capability))
    JITFunction.__getitem__ = getitem
