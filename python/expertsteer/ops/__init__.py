"""Check, choose, call: the one door to every operation and its backends.

``backend="auto"`` takes the fastest proven implementation that serves the tensors; an explicit
backend that cannot serve them raises `BackendError` with the reason.

A folder per kind of operation: ``reference.py`` defines, ``native.py`` and the files of Triton
kernels are tested against it, ``backends.py`` lists them and ``calls.py`` checks what callers hand
over. Beside the folders stand ``choice.py``, ``extension.py`` (the only import of the compiled
module) and what several of them share.
"""

from .choice import BACKENDS, BackendError, backends_of, choose, operations
from .information.calls import (
    KSG_TILE_BYTES,
    gaussian_information,
    ksg_counts,
    ksg_information,
)
from .information.reference import shrunk_gaussian_information
from .rfm.calls import agop, laplace, laplace_points
from .rfm.carry import Carry
from .steering.calls import steer
from .steering.reference import OPERATIONS as STEER_OPERATIONS
from .steering.reference import inverse_norms

__all__ = [
    "BACKENDS",
    "BackendError",
    "Carry",
    "KSG_TILE_BYTES",
    "STEER_OPERATIONS",
    "agop",
    "backends_of",
    "choose",
    "gaussian_information",
    "inverse_norms",
    "ksg_counts",
    "ksg_information",
    "laplace",
    "laplace_points",
    "operations",
    "shrunk_gaussian_information",
    "steer",
]
