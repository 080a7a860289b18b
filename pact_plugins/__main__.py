"""`python -m pact_plugins`, for launchers that start a module: `torchrun ... -m pact_plugins sft --config run.yaml`."""

from pact_plugins.cli import main

main(prog_name="pact")
