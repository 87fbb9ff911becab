"""What steering improves: methods and controls at one price, statistics, lm-eval, and its cost."""

from .comparing import compare
from .comparison import Comparison
from .evaluating import evaluate
from .evaluation import Evaluation
from .harness import evaluate_lm_eval

__all__ = ["Comparison", "Evaluation", "compare", "evaluate", "evaluate_lm_eval"]
