"""Did it hold? Prompt sets, answers, judges and statistics for a model before and after fine-tuning.

Others use `run.evaluate` for a model and `of_run.RunEvaluation` for a run; `judges`, `measure`, `scorers` and
`statistics` for what they find, and `table` and `records` to show it.
"""

__all__ = [
    "engines",
    "generation",
    "judges",
    "measure",
    "of_run",
    "prompts",
    "records",
    "run",
    "sample",
    "scorers",
    "split",
    "statistics",
    "table",
]
