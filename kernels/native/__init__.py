"""Small C kernels, compiled on first use by the machine's own compiler and kept in the cache; nothing at install.

`library("selective_scan")` gives the loaded library, or None where it cannot be had: no compiler, an unwritable cache.
Then the plain torch form runs, and one warning says why. PATCHLOOM_NATIVE=0 turns all off.

Threads are torch's own: the kernels are compiled for OpenMP but not linked to a runtime, so that they find the one that
torch has loaded, with its pool and `torch.set_num_threads`. A second pool would fight with the first for the cores.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fPIC", "-std=c11")


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled `name`.c of this folder; None, with one warning, where there is none to be had."""
    if os.environ.get("PATCHLOOM_NATIVE", "1") == "0":
        return None
    try:
        return compiled(name)
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()
        warnings.warn(
            f"the accelerated {name} is not available ({reason[0] if reason else type(error).__name__}); "
            "the plain torch form runs instead",
            stacklevel=2,
        )
        return None


def compiler() -> str | None:
    """The C compiler that CC names, or one that is found; None where there is none."""
    return os.environ.get("CC") or next((found for n in ("cc", "gcc", "clang") if (found := shutil.which(n))), None)


def compiled(name: str) -> ctypes.CDLL:
    """Compiles, unless the cache has it, and loads: with threads, or without where torch has no OpenMP runtime or the
    compiler does not know it. Raises OSError or SubprocessError."""
    import torch

    command = compiler()
    if command is None:
        raise FileNotFoundError("no C compiler: install gcc or clang, or name one in CC")
    if torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        with suppress(OSError, subprocess.SubprocessError):
            return loaded(name, command, (*FLAGS, "-fopenmp"))
    return loaded(name, command, FLAGS)


def loaded(name: str, command: str, flags: tuple[str, ...]) -> ctypes.CDLL:
    source = Path(__file__).with_name(f"{name}.c")
    key = hashlib.sha256(repr((source.read_bytes(), flags, command, processor())).encode()).hexdigest()[:16]
    path = folder() / f"{name}-{key}.so"
    if not path.is_file():
        build(command, flags, source, path)
    return ctypes.CDLL(str(path))


def build(command: str, flags: tuple[str, ...], source: Path, path: Path) -> None:
    """The library at `path`, whole or not at all: two processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".native-") as work:
        part, made = Path(work) / "part.o", Path(work) / "made.so"
        for line in ([*flags, "-c", str(source), "-o", str(part)], ["-shared", str(part), "-o", str(made)]):
            subprocess.run([command, *line], check=True, capture_output=True, text=True, timeout=120)
        os.replace(made, path)


def folder() -> Path:
    """Where compiled kernels are kept: `native` in PATCHLOOM_HOME, else in patchloom's folder of the user's cache."""
    root = os.environ.get("PATCHLOOM_HOME")
    if root:
        return Path(root) / "native"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchloom" / "native"


def processor() -> str:
    """What the code is compiled for: a cache on a shared disk may be used by several kinds of machine."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), platform.machine())
    except OSError:
        return platform.machine() + platform.processor()
