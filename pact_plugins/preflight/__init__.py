"""Before a run: what can be told of it from its file, or from its host when it would begin to train.

Others use `check.check`, `estimate.estimate`, `audit.audit` and `guards.guards`, each with `show` for what it finds,
`run_file` for the YAML file, `unserved` for what it says that cannot be served, and `dry_run` for a host that starts a
run and does something else in place of training.
"""

__all__ = ["audit", "check", "dry_run", "estimate", "guards", "run_file", "unserved"]
