"""How minnl installs: ``pip install -e .``, with the extras below where they are wanted."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# Read, not imported: importing would need NumPy before pip has installed it.
VERSION = re.search(
    r'^__version__ = "(.+)"$', Path(__file__).with_name("minnl").joinpath("__init__.py").read_text(), re.M
)

setup(
    name="minnl",
    version=VERSION[1],
    description="Non-local neural networks for video, from the array up, on NumPy and CuPy",
    packages=find_packages(include=["minnl", "minnl.*", "models", "models.*"]),
    package_data={
        "minnl.kernels": ["*/*.cu", "*/*.cuh"],  # compiled on the GPU's machine, when first used
        "minnl": ["py.typed"],  # says that the hints are meant for checkers of types
        "models": ["py.typed"],
    },
    python_requires=">=3.10",
    # Lower bounds are installed and tested (tests/lowest.py). NumPy 2.1.0 crashes on views that it is handed.
    install_requires=["numpy>=2.1.1", "matplotlib>=3.9", "safetensors>=0.7", "threadpoolctl>=3.5", "tqdm>=4.60"],
    extras_require={
        # One of the two, by the driver's CUDA version; both at once break each other. [ctk] brings CUDA's libraries.
        "cuda12": ["cupy-cuda12x[ctk]>=14"],
        "cuda13": ["cupy-cuda13x[ctk]>=14"],
        # PyAV 16 cannot scale on one thread, 17.0 crashes on options for decoders, 19 drops the tolerance for titles
        # that are not UTF-8.
        "video": ["av>=17.1,<19"],
        # ruff and mypy are held to one minor version: another one may format, or judge, differently.
        "test": ["pytest>=8", "hypothesis>=6.100", "av>=17.1,<19", "ruff~=0.17.0", "mypy~=2.4.0"],
        "parity": ["torch==2.13.0"],
        # The pages are Markdown and their pictures are drawn by matplotlib, which is required anyway.
        "docs": [],
    },
)
