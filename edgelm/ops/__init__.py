"""The seam to the hardware: the short list of operations that layers call.

Every operation writes into buffers given by ``out`` and allocates nothing that lasts. ``reference``
defines what is right; a version for a device has the same functions and matches it within a named
bound. Matrix products are ``quant``'s business and have their own table there.
"""

from types import ModuleType

import torch

from edgelm.ops import reference


def ops_for(device: torch.device) -> ModuleType:
    """The operations that run on ``device``: so far the reference everywhere."""
    return reference
