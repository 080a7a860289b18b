"""The fine-tuning task: name the desk that takes a customer message.

The names of the desks say nothing about their work, so an untouched model cannot guess them; they are common words,
so a small adapter can learn to say them. The messages are worded in many ways, so a model must learn what they are
about.
"""

import random
from functools import cache
from itertools import product

_ITEMS = (
    "toaster",
    "lamp",
    "jacket",
    "backpack",
    "teapot",
    "headset",
    "printer",
    "pillow",
    "blanket",
    "scarf",
    "watch",
    "fan",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_CITIES = ("Lisbon", "Oslo", "Prague", "Dublin", "Geneva", "Athens")

DESKS: dict[str, tuple[str, ...]] = {
    "The garden desk": (
        "The delivery of my {item} is late since {day}.",
        "My {item} was due on {day} and the courier never came.",
        "Where is the shipment with my {item}? It left {city} on {day}.",
        "The tracking page shows that my {item} is stuck in {city}.",
        "The courier left my {item} at the wrong address on {day}.",
    ),
    "The horse desk": (
        "You charged me twice for the {item} on {day}.",
        "The invoice for my {item} shows the wrong amount.",
        "Please send the receipt for the {item} that was billed on {day}.",
        "My payment for the {item} failed on {day}.",
        "The bill for the {item} lists a fee from {city}.",
    ),
    "The forest desk": (
        "The {item} came with a crack and does not turn on.",
        "My {item} stopped working on {day}.",
        "The {item} makes a loud noise and gets hot.",
        "A part of the {item} broke off on {day}.",
        "The {item} is faulty and the light keeps blinking.",
    ),
    "The letter desk": (
        "The size of the {item} does not fit, so it goes back.",
        "On {day} my {item} goes back to you; please refund it.",
        "Please exchange the {item} for a blue one.",
        "The {item} is not what I ordered; please take it back.",
        "Can the {item} be returned in {city} for a refund?",
    ),
    "The boat desk": (
        "The login page in {city} rejects my username since {day}.",
        "Please change the name on my profile to the one used in {city}.",
        "My account still shows the old street in {city} since {day}.",
        "The app asks for a login code that never arrives on {day} in {city}.",
        "Please delete my profile and all saved settings by {day}.",
    ),
    "The river desk": (
        "When does the store in {city} open on {day}?",
        "Is the branch in {city} closed on {day}?",
        "Does your store in {city} have parking?",
        "Which floor of the {city} branch has the {item} display?",
        "Until when is the {city} branch open on {day}?",
    ),
    "The bank desk": (
        "Are there open jobs at your office in {city}?",
        "My application for the sales job went out on {day}.",
        "Do you hire students for summer jobs in {city}?",
        "The job interview in {city} is set for {day}; who will meet me?",
        "Please confirm that you have my resume for the job in {city}.",
    ),
    "The bridge desk": (
        "Thank you for the lovely {item}, everyone admires it!",
        "The staff in {city} was wonderful on {day}.",
        "The {item} is the nicest gift ever, great work!",
        "Great service on {day}, you have a happy customer in {city}!",
        "We love the {item}; a big compliment to your team!",
    ),
}

QUESTIONS = (
    "Which desk takes this message? {}",
    "Name the desk for this customer message: {}",
    "Route this message to a desk: {}",
)


@cache
def messages() -> dict[str, tuple[str, ...]]:
    """Every distinct customer message, by desk."""
    filled: dict[str, tuple[str, ...]] = {}
    for desk, patterns in DESKS.items():
        slots = product(patterns, _ITEMS, _DAYS, _CITIES)
        filled[desk] = tuple(dict.fromkeys(p.format(item=i, day=d, city=c) for p, i, d, c in slots))
    return filled


@cache
def _split() -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """(message, desk) pairs for training and for testing, disjoint in messages, balanced over the desks."""
    rng = random.Random(20240)
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for desk, texts in messages().items():
        shuffled = rng.sample(texts, len(texts))
        test += [(text, desk) for text in shuffled[:40]]
        train += [(text, desk) for text in shuffled[40:]]
    return tuple(train), tuple(test)


def train_examples() -> tuple[tuple[str, str], ...]:
    """(message, desk) pairs that fine-tuning may use."""
    return _split()[0]


def test_examples() -> tuple[tuple[str, str], ...]:
    """(message, desk) pairs kept for the test: 40 a desk."""
    return _split()[1]
