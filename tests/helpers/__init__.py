"""What several tests share; imported as ``helpers``, by the programs that they start as well."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HARNESS_TASKS = Path(__file__).with_name("lm_eval_tasks")
