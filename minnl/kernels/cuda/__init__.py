"""CUDA kernels: what runs instead of the textbook bodies on CuPy. docs/gpu.md says how one is written.

Nothing is read or compiled, and CuPy is not imported, before an op first runs on a GPU.
"""
