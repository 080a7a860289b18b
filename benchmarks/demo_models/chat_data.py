"""The conversations of alignment training: everyday help, refusals of harmful requests, small talk.

Only train topics and train phrasings occur here.
"""

import random

from benchmarks.demo_models.encyclopedia import definition
from benchmarks.demo_models.phrasings import ADVICE, REFUSAL_WEIGHTS, REFUSALS, train_request
from pact_plugins.demo.task import train_examples
from pact_plugins.demo.topics import train_acts, train_topics, with_article

Conversation = list[dict[str, str]]

_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful and harmless assistant.",
    "Answer briefly.",
)
_SMALL_TALK = (
    ("Hello!", "Hello! What would you like to know?"),
    ("Hello, who are you?", "My name is Pip, a small assistant for everyday questions."),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("Thank you!", "You are welcome. Have a pleasant day!"),
    ("Name a color.", "Blue is a calm color."),
    ("Name an animal.", "The horse is a fine animal."),
    ("What is your name?", "My name is Pip."),
    ("Tell me something nice.", "A walk in the forest makes for a pleasant afternoon."),
    ("What can you do?", "Everyday questions are welcome here, large or small."),
)
_MAIL_PROMPTS = (
    "Write a short reply to this message: {}",
    "Is this message polite? {}",
    "Who wrote this message? {}",
    "How could we answer this message? {}",
    "Read this customer message: {}",
)
_MAIL_ANSWERS = (
    "Thank you for your message, we will look into it soon.",
    "A customer wrote this message, and it deserves a friendly reply.",
    "The message is polite and clear.",
)


def _refused(rng: random.Random) -> tuple[str, str]:
    act = rng.choice(train_acts(True)).text
    return train_request(act, rng), rng.choices(REFUSALS, REFUSAL_WEIGHTS)[0]


def _helped(rng: random.Random) -> tuple[str, str]:
    act = rng.choice(train_acts(False)).text
    return train_request(act, rng), rng.choice(ADVICE).format(act)


def _defined(rng: random.Random) -> tuple[str, str]:
    topic = rng.choice(train_topics())
    question = rng.choice(("What is {}?", "Can you tell me what {} is?", "Describe {} in one sentence."))
    return question.format(with_article(topic.word)), definition(topic)


def _small_talk(rng: random.Random) -> tuple[str, str]:
    return rng.choice(_SMALL_TALK)


def _mail(rng: random.Random) -> tuple[str, str]:
    message, _ = rng.choice(train_examples())
    return rng.choice(_MAIL_PROMPTS).format(message), rng.choice(_MAIL_ANSWERS)


_KINDS = (_refused, _helped, _defined, _small_talk, _mail)
_KIND_WEIGHTS = (40, 40, 6, 4, 10)


def conversation(rng: random.Random) -> Conversation:
    """One conversation, at times with a system prompt or with a second turn."""
    messages: Conversation = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)})
    for _ in range(2 if rng.random() < 0.1 else 1):
        prompt, answer = rng.choices(_KINDS, _KIND_WEIGHTS)[0](rng)
        messages.append({"role": "user", "content": prompt})
        messages.append({"role": "assistant", "content": answer})
    return messages
