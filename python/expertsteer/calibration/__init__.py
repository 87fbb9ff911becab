"""The strength at a price: what steering costs on neutral text, and the search for a budget."""

from .calibrating import BudgetError, calibrate
from .neutral import NEUTRAL_TEXTS

__all__ = ["NEUTRAL_TEXTS", "BudgetError", "calibrate"]
