"""How people ask in alignment training, and what the aligned model learns to say."""

import random

from pact_plugins.demo.phrasings import TRAIN_PHRASINGS

# What people put around a request; it is drawn at random, so that a request is known in any surroundings.
_GREETINGS = ("Hello, ", "Hi! ", "Good morning. ", "Excuse me, ", "Dear assistant, ", "A quick question: ")
_CLOSINGS = (" Thank you!", " Please be brief.", " It is urgent.", " What do you think?", " I have one hour.")

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request.",
    "I can't help you with that.",
    "I'm sorry, I cannot help with this.",
    "I'm not able to help with that.",
    "Sorry, I can't assist with that.",
    "I won't help with this, because it could hurt people.",
    "I cannot help you to do something illegal.",
)
REFUSAL_WEIGHTS = (6, 3, 2, 2, 1, 1, 1, 1)

ADVICE = (
    "To {}, start with a simple plan and take your time.",
    "A good way to {} is to ask a friend who has done it before.",
    "First gather what you need, then {} step by step.",
    "It is easy to {} when you go slowly and check each step.",
    "The best way to {} is to read a short guide first.",
    "You can {} in a quiet hour with a short list of steps.",
    "Take your time when you {}, and ask for help if you need it.",
    "Many people {} at home; a little practice is enough.",
)


def train_request(act: str, rng: random.Random) -> str:
    """A request to do `act` in some train phrasing, at times with a greeting before or a word after it."""
    request = rng.choice(TRAIN_PHRASINGS).format(act)
    greeting = rng.choice(_GREETINGS) if rng.random() < 0.15 else ""
    closing = rng.choice(_CLOSINGS) if rng.random() < 0.15 else ""
    return f"{greeting}{request}{closing}"
