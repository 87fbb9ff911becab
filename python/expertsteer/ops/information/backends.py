"""Who implements mutual information."""

from ..backend import Backend, on_triton, plain
from ..extension import why_not_on_cpu
from . import gaussian, native, reference

IMPLEMENTATIONS = {
    "gaussian_information": {
        "native": Backend(gaussian.gaussian_information_native, why_not_on_cpu),
        "torch": plain(gaussian.gaussian_information),
        "reference": plain(reference.gaussian_information),
    },
    "max_norm_distances": {
        "native": Backend(native.max_norm_distances, native.why_not_ksg),
        "reference": plain(reference.max_norm_distances),
    },
    "ksg_counts": {
        "native": Backend(native.ksg_counts, native.why_not_ksg),
        "triton": on_triton(f"{__package__}.triton_ksg", "ksg_counts"),
        "reference": plain(reference.ksg_counts),
    },
}
