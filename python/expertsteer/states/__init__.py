"""Hidden states in memory and on disk, and the capture that makes them."""

from .in_memory import capture
from .on_disk import capture_to
from .states import HiddenStates, StoredStates

__all__ = ["HiddenStates", "StoredStates", "capture", "capture_to"]
