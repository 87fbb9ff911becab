"""The strength at a price: what steering costs on neutral text, and the search for a budget."""

from .calibrating import BudgetError, calibrate

__all__ = ["BudgetError", "calibrate"]
