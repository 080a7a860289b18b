"""A run under PACT: prepared before its first step, bound to a trainer, recorded, reported and verified.

Others use `callback.PactCallback`, or only what a run does first (`preparation.prepare`, or `examination.examine` for
what needs no answer of the model); what is read off a `trainer`; the guards, the batches and the loss that they look
at, the cost, the evidence and the report of a run, and whether weights come from one (`verification.verify`).
"""

__all__ = [
    "agreement",
    "callback",
    "cost",
    "coverage",
    "evidence",
    "examination",
    "first_batches",
    "host_loss",
    "preparation",
    "report",
    "served",
    "trainer",
    "verification",
]
