"""Step 4: vectors put into a model, where they stand, which tokens they reach, and back again."""

from .bank import Gate
from .given_positions import UnsteeredWarning, tokens_at
from .steering import Steering, attach, detach

__all__ = ["Gate", "Steering", "UnsteeredWarning", "attach", "detach", "tokens_at"]
