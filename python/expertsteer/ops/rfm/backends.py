"""Who implements the passes of the Recursive Feature Machine."""

from __future__ import annotations

from collections.abc import Callable

from ..backend import Backend, on_triton, plain
from ..extension import why_not_on_cpu
from . import native, reference


def _native(call: Callable) -> Backend:
    return Backend(call, why_not_on_cpu)


def _triton(module: str, name: str) -> Backend:
    return on_triton(f"{__package__}.{module}", name)


IMPLEMENTATIONS = {
    "gram": {"native": _native(native.gram), "reference": plain(reference.gram)},
    "cross_gram": {"native": _native(native.cross_gram), "reference": plain(reference.cross_gram)},
    "times_transposed": {
        "native": _native(native.times_transposed),
        "reference": plain(reference.times_transposed),
    },
    "inner": {
        "triton": _triton("triton_agop", "inner"),
        "native": _native(native.inner),
        "reference": plain(reference.inner),
    },
    "gradient_rows": {
        "triton": _triton("triton_agop", "gradient_rows"),
        "native": _native(native.gradient_rows),
        "reference": plain(reference.gradient_rows),
    },
    "median_distance": {
        "native": _native(native.median_distance),
        "reference": plain(reference.median_distance),
    },
    "laplace": {
        "triton": _triton("triton_laplace", "laplace"),
        "native": _native(native.laplace),
        "reference": plain(reference.laplace),
    },
    "laplace_points": {
        "triton": _triton("triton_laplace", "laplace_points"),
        "reference": plain(reference.laplace_points),
    },
    "ridge_solve": {
        "native": _native(native.ridge_solve),
        "reference": plain(reference.ridge_solve),
    },
    "agop": {
        "triton": _triton("triton_agop", "agop"),
        "native": _native(native.agop),
        "reference": plain(reference.agop),
    },
}
