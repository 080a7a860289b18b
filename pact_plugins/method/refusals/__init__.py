"""Whether an answer refuses: a judge without a download, for the safety tokens, the evaluation and the report.

It needs numpy alone. `judge` takes prompts and answers, and gives verdicts.
"""

from pact_plugins.method.refusals.judging import Verdict, judge

__all__ = ["Verdict", "judge"]
