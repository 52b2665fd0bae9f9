"""The one part of the build that pyproject.toml cannot say: the C extension of the lane.

`build_ext` sees a change of a file only if it is named here, hence the headers in `depends`.
"""

from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).parent
LANE = Extension(
    "mount_helper._lane",
    sources=[str(path.relative_to(HERE)) for path in sorted(HERE.glob("mount_helper/*.c"))],
    depends=[str(path.relative_to(HERE)) for path in sorted(HERE.glob("mount_helper/*.h"))],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread"],
    extra_link_args=["-pthread"],
)

setup(ext_modules=[LANE])
