"""Who implements steering."""

from .. import extension
from ..backend import Backend, plain
from . import native, reference

IMPLEMENTATIONS = {
    "steer": {
        "native": Backend(native.steer, extension.why_not),
        "reference": plain(reference.steer),
    },
}
