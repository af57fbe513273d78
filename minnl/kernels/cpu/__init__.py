"""CPU kernels: what runs instead of the textbook bodies on NumPy. Each file is one idea; docs/kernels/ derives them."""
