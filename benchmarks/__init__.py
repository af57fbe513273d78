"""minnl beside PyTorch, in one run: ``python -m benchmarks``. How to read it: docs/benchmarks.md."""
