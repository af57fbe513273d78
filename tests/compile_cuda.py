"""Compile every CUDA source of minnl for GPUs, which needs none: with nvcc, and with NVRTC, which is what CuPy uses.

    python -m tests.compile_cuda

For every kind of GPU from sm_70 to sm_100 that the compiler knows. nvcc's warnings are errors; NVRTC, which has no
headers of the host's (no INFINITY, no assert), is that of the wheel nvidia-cuda-nvrtc-cu12. It says what it skips.
"""

import ctypes
import importlib
import importlib.util
import pkgutil
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from minnl import kernels
from minnl.kernels.runtime.cuda import FLOATS, FOLDER, OPTIONS, Source


def sources():
    """{file: Source} of the package."""
    modules = [importlib.import_module(m.name) for m in pkgutil.walk_packages(kernels.__path__, "minnl.kernels.")]
    found = {s.file: s for module in modules for s in vars(module).values() if isinstance(s, Source)}
    if forgotten := {str(path.relative_to(FOLDER)) for path in FOLDER.glob("**/*.cu")} - found.keys():
        raise SystemExit(f"no Source of minnl.kernels names {', '.join(sorted(forgotten))}")
    return found.values()


def within(kinds):
    return sorted(kind for kind in set(kinds) if 70 <= kind <= 100)


def with_nvcc(nvcc, source):
    """One call for all kinds of GPU; a table of the kernels on the host makes nvcc instantiate each of them."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    kinds = within(map(int, re.findall(r"sm_(\d+)\b", listed)))
    names = [name for dtype in FLOATS for name in source.instances(dtype).values()]
    table = f"\nvoid* table[] = {{{', '.join(f'(void*){name}' for name in names)}}};\n"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "source.cu").write_text(source.text() + table)
        targets = [f"-gencode=arch=compute_{kind},code=sm_{kind}" for kind in kinds]
        options = [*OPTIONS, "-Werror=all-warnings", "-fatbin", "-Xptxas=-v", "-o", "out"]
        done = subprocess.run([nvcc, *options, *targets, "source.cu"], cwd=folder, capture_output=True, text=True)
    made = len(re.findall("Compiling entry function", done.stderr))
    if done.returncode or made != len(names) * len(kinds):
        raise SystemExit(
            f"nvcc, {source.file}: {made} of {len(names) * len(kinds)} kernels\n{done.stdout}{done.stderr}"
        )
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill stores", done.stderr)))
    print(f"nvcc: {source.file}, {len(names)} kernels for each of {kinds}, {spilled} bytes of registers spilled")


def with_nvrtc(nvrtc, source):
    """As CuPy does it: the names of the kernels are given, and a program of one kind of GPU comes out."""
    count = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(known)
    for kind in (kinds := within(known)):
        for dtype in FLOATS:
            program, size = ctypes.c_void_p(), ctypes.c_size_t()
            nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.text().encode(), b"", 0, None, None)
            for name in source.instances(dtype).values():
                nvrtc.nvrtcAddNameExpression(program, name.encode())
            options = [option.encode() for option in (*OPTIONS, f"-arch=sm_{kind}")]
            failed = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
            if failed:
                raise SystemExit(f"NVRTC, {source.file}, {dtype}, sm_{kind}:\n{log.value.decode()}")
    print(f"NVRTC: {source.file}, {len(source.kernels)} kernels in each of {list(FLOATS)} for each of {kinds}")


def load_nvrtc():
    """The library of the wheel, or None; the wheel is a folder without code of its own."""
    wheel = importlib.util.find_spec("nvidia")
    folders = [Path(path, "cuda_nvrtc", "lib") for path in wheel.submodule_search_locations] if wheel else []
    for folder in folders:
        for path in folder.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)  # which NVRTC would not find there by itself
        for path in folder.glob("libnvrtc.so.*"):
            return ctypes.CDLL(str(path))
    return None


def main():
    nvcc, nvrtc = shutil.which("nvcc"), load_nvrtc()
    print("nvcc:", nvcc or "SKIPPED, there is none here")
    print("NVRTC:", nvrtc._name if nvrtc else "SKIPPED, pip install nvidia-cuda-nvrtc-cu12")
    for source in sources():
        if nvcc:
            with_nvcc(nvcc, source)
        if nvrtc:
            with_nvrtc(nvrtc, source)


if __name__ == "__main__":
    main()
