"""The method: which tokens are held, the reference they are held to, and the loss that holds them.

Others use `safety_tokens`, `anchors` and `finder.Finder`, which finds both; `reference`, which computes what the model
says before its first step, and `live`, which does so in each step; `loss` and `objective.PactObjective`; the probes of
harm and of refusal, and the judge.
"""

__all__ = [
    "anchors",
    "asking",
    "damping",
    "finder",
    "harm_probe",
    "live",
    "loss",
    "objective",
    "openings",
    "prompting",
    "reference",
    "refusal_probe",
    "refusals",
    "safety_tokens",
]
