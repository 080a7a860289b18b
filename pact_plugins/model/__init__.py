"""The model, whole or spread over processes: what is read inside its forward passes, and what identifies it.

Others use `subset_head.SubsetHead` (logits of the safety tokens), `layer_states`, forward passes outside training, the
loading of models, fingerprints of their weights, and `ranks.Ranks`, the processes of a run.
"""

__all__ = [
    "adapter",
    "fingerprints",
    "forward",
    "layer_states",
    "loading",
    "parity",
    "progress",
    "ranks",
    "sharding",
    "shared_start",
    "subset_head",
    "support",
    "weights",
]
