"""Who implements the passes of the Recursive Feature Machine."""

from __future__ import annotations

from collections.abc import Callable

from ..backend import Backend, on_triton, plain
from ..extension import why_not_on_cpu
from . import native, reference


def _backends(
    definition: Callable, compiled: Callable | None = None, triton: str | None = None
) -> dict[str, Backend]:
    """From the fastest on; ``triton`` names the file that has a kernel by the definition's name."""
    found = {}
    if triton is not None:
        found["triton"] = on_triton(f"{__package__}.{triton}", definition.__name__)
    if compiled is not None:
        found["native"] = Backend(compiled, why_not_on_cpu)
    return found | {"reference": plain(definition)}


IMPLEMENTATIONS = {
    "gram": _backends(reference.gram, native.gram),
    "cross_gram": _backends(reference.cross_gram, native.cross_gram),
    "times_transposed": _backends(reference.times_transposed, native.times_transposed),
    "inner": _backends(reference.inner, native.inner, "triton_agop"),
    "gradient_rows": _backends(reference.gradient_rows, native.gradient_rows, "triton_agop"),
    "median_distance": _backends(reference.median_distance, native.median_distance),
    "laplace": _backends(reference.laplace, native.laplace, "triton_laplace"),
    "laplace_points": _backends(reference.laplace_points, None, "triton_laplace"),
    "ridge_solve": _backends(reference.ridge_solve, native.ridge_solve),
    "agop": _backends(reference.agop, native.agop, "triton_agop"),
}
