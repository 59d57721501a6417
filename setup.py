"""Builds the C core where there is a compiler; without one the install goes on, and the numba backend runs."""

import sys
from distutils.errors import CCompilerError, DistutilsError

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildIfPossible(build_ext):
    """A missing or unfit compiler costs speed, not the install."""

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except (CCompilerError, DistutilsError, OSError) as error:
            print(
                f"tinyslm: the C core was not built ({error}). tinyslm will run on numba, several times slower. To get "
                "the fast one, install a C compiler and run: "
                "pip install --no-cache-dir --force-reinstall tinyslm",
                file=sys.stderr,
            )
            self.missing = True

    def copy_extensions_to_source(self):
        if not getattr(self, "missing", False):
            super().copy_extensions_to_source()


setup(
    cffi_modules=["csrc/build_ffi.py:ffi"],
    cmdclass={"build_ext": BuildIfPossible},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
