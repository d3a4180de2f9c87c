"""Tensors that no checkpoint holds: the modules that compute them say how."""

from typing import Protocol, runtime_checkable

import torch


@runtime_checkable
class ResetsBuffers(Protocol):
    """A module with buffers that are no part of its ``state_dict``."""

    def reset_buffers(self, device: torch.device) -> None:
        """Creates them on a device."""
        ...
