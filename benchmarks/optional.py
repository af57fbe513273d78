"""PyTorch, or None where it is not installed: minnl's times are then shown alone."""

try:
    import torch
except ImportError:
    torch = None


def memory_formats():
    """PyTorch's two ways to lay out (N, C, T, H, W); which is quicker depends on the operation."""
    if torch is None:
        return {}
    return {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
