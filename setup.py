"""The compiled part of the build; everything else is in pyproject.toml."""

import os
import tempfile
from glob import glob
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

KERNELS = "fastgrad/_kernels"
CSRC = f"{KERNELS}/csrc"

# Not -ffast-math: -inf and NaN are inputs here, and linking with it sets flush-to-zero for the
# whole process. Not -march=native: the instruction set is chosen at import. FMA is written out in
# the kernels, so contraction is off and the bits do not depend on the compiler's mood.
FLAGS = [
    "-O3",
    "-g0",  # Python's own -g costs 40 % of the build and makes isa.so 11 MB
    "-std=gnu11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-unused-but-set-variable",  # Cython's prange sets one that only OpenMP reads
]
OPENMP_FLAGS = ["-fopenmp"]
OPENMP_PROGRAM = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildExt(build_ext):
    """Compiles on all cores, with OpenMP if one OpenMP program compiles and links.

    Compiling alone proves nothing: a clang without libomp accepts -fopenmp and fails at the link.
    """

    def build_extensions(self):
        wanted = os.environ.get("FASTGRAD_OPENMP", "")
        if wanted not in ("", "0", "1"):
            raise SystemExit(f"FASTGRAD_OPENMP must be 0, 1 or unset; it is {wanted!r}.")
        if wanted != "0" and self.openmp_links(required=wanted == "1"):
            for ext in self.extensions:
                ext.extra_compile_args += OPENMP_FLAGS
                ext.extra_link_args += OPENMP_FLAGS
        compile_in_order = self.compiler.compile

        def compile_at_once(sources, **options):
            with ThreadPool() as pool:
                objects = pool.map(lambda source: compile_in_order([source], **options), sources)
            return [name for one in objects for name in one]

        self.compiler.compile = compile_at_once
        super().build_extensions()

    def openmp_links(self, required):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(OPENMP_PROGRAM)
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=OPENMP_FLAGS
                )
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=OPENMP_FLAGS
                )
            except (CompileError, LinkError) as error:
                if required:
                    raise SystemExit(
                        f"FASTGRAD_OPENMP=1, but this compiler builds no OpenMP program: {error}"
                    ) from error
                return False
        return True


def extension(name, c_sources=()):
    return Extension(
        f"fastgrad._kernels.{name}",
        # The .pyx itself, not cythonize(): with that the sdist held the C and no .pyx.
        sources=[f"{KERNELS}/{name}.pyx", *c_sources],
        # All of them: a change rebuilds, and setuptools puts `depends` into the sdist.
        depends=sorted(glob(f"{KERNELS}/*.pxd") + glob(f"{CSRC}/*.h")),
        include_dirs=[CSRC, numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=list(FLAGS),
    )


setup(
    cmdclass={"build_ext": BuildExt},
    ext_modules=[
        # Alone in linking the C: one copy of the tables, so one active instruction set per process.
        extension("isa", c_sources=sorted(glob(f"{CSRC}/*.c"))),
        extension("rows"),
        extension("softmax"),
        extension("cross_entropy"),
        extension("binary"),
        extension("hinge"),
        extension("stats"),
        extension("sort"),
        extension("segments"),
        extension("series"),
        extension("centroids"),
        extension("bandwidth"),
    ],
)
