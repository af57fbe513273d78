"""PyTorch, or None if it is not installed; then the output has only minnl's times."""

try:
    import torch
except ImportError:
    torch = None


def memory_formats():
    """PyTorch's two memory formats of (N, C, T, H, W); which one is faster depends on the operation."""
    if torch is None:
        return {}
    return {"contiguous": torch.contiguous_format, "channels last": torch.channels_last_3d}
