"""Conversations as token ids: from a chat template and a training batch to the answers that are held.

Others use `answers.AnswerTokens` and `answers.Document`, what the template puts around them (`format.ChatFormat`), the
documents of a data set, and fingerprints of tokenizers and data.
"""

__all__ = ["answers", "dataset", "fingerprints", "format", "rendered", "template"]
