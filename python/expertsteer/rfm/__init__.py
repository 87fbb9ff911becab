"""Step 3: the Recursive Feature Machine, fitted without ever decomposing a d x d matrix."""

from .machine import RFM
from .metrics import auc
from .plan import Plan, plan
from .spectrum import Directions

__all__ = ["RFM", "Directions", "Plan", "auc", "plan"]
