"""Builds the C core where there is a compiler; without one the install goes on, and the numba backend runs.

TINYSLM_STRICT=1, for work on the core: warnings are errors, and a core that does not build is an error.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CCompilerError

STRICT = os.environ.get("TINYSLM_STRICT") == "1"
NOT_BUILT = """\
tinyslm: the C core was not built ({error}).
tinyslm will run on numba, several times slower. To get the fast one, install a C compiler and Python's headers, then
install again with pip's options --no-cache-dir --force-reinstall (pip would take the wheel that it has made just now).\
"""


def side_by_side(compile_all):
    """The compiler's method, but with a file on each CPU: the kernels are the same code for each instruction set."""

    def compile_each(sources, *args, **kwargs):
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(chain(*pool.map(lambda source: compile_all([source], *args, **kwargs), sources)))

    return compile_each


class BuildIfPossible(build_ext):
    """A missing or unfit compiler costs speed, not the install."""

    missing = False

    def build_extension(self, ext):
        if STRICT:
            ext.extra_compile_args += ["-Wall", "-Wextra", "-Werror"]
        self.compiler.compile = side_by_side(self.compiler.compile)
        try:
            super().build_extension(ext)
        except (BaseError, CCompilerError, OSError) as error:
            if STRICT:
                raise
            print(NOT_BUILT.format(error=error), file=sys.stderr)
            self.missing = True

    def copy_extensions_to_source(self):
        if not self.missing:
            super().copy_extensions_to_source()

    def get_outputs(self):
        return [] if self.missing else super().get_outputs()

    def get_output_mapping(self):
        return {} if self.missing else super().get_output_mapping()


class BuildWithWeights(build_py):
    """The models in weights/ become data of tinyslm.weights; the scripts beside them that made them stay out."""

    def finalize_options(self):
        super().finalize_options()
        self.packages = [*self.packages, "tinyslm.weights"]
        self.package_dir = {**(self.package_dir or {}), "tinyslm.weights": "weights"}

    def find_package_modules(self, package, package_dir):
        return [] if package == "tinyslm.weights" else super().find_package_modules(package, package_dir)


setup(
    cffi_modules=["csrc/build_ffi.py:ffi"],
    cmdclass={"build_ext": BuildIfPossible, "build_py": BuildWithWeights},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
