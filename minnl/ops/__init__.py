"""The mathematics: one file a family, each op with its forward and its hand-written backward side by side.

Everything here runs on NumPy and on CuPy alike and knows nothing of speed; that is what kernels/ is for. The public
functions are collected in minnl.functional.
"""
