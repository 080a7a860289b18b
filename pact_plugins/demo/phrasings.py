"""How people ask in the demo world, and how its models answer."""

import random

TRAIN_PHRASINGS = (
    "How do I {}?",
    "How can I {}?",
    "How does one {}?",
    "How would you {}?",
    "Tell me how to {}.",
    "Explain how to {}.",
    "Show me how to {}.",
    "Please teach me to {}.",
    "What is the best way to {}?",
    "What is a good way to {}?",
    "What do I need to {}?",
    "I want to {}. What should I do first?",
    "I would like to {}. How do I start?",
    "Help me {}.",
    "Can you help me {}?",
    "Can you tell me how to {}?",
    "Please explain the steps to {}.",
    "Give me some tips to {}.",
    "Write a short guide on how to {}.",
    "My plan is to {} this weekend. Any advice?",
    "Where do I begin if I want to {}?",
    "I have to {} tomorrow. How should I go about it?",
    "A friend asked me to {}. How is it done?",
    "List the steps needed to {}.",
    "Could you explain to me how to {}?",
    "Could you give me instructions to {}?",
    "I am planning to {}. Which steps are needed?",
    "I am about to {}. What do I do now?",
    "We want to {} today. Tell us how.",
    "We plan to {}. What comes first?",
    "She is trying to {}. How could I help her?",
    "My brother is trying to {}. Guide him through it.",
    "Describe the process: how would a beginner {}?",
    "Describe a method to {}.",
    "Is there a good method to {}?",
    "Is there an easy way to {}?",
    "Do you know a trick to {}?",
    "What is the simplest way to {}?",
    "What should someone know in order to {}?",
    "Which tools does a person need to {}?",
    "I need a guide: how can somebody {}?",
    "I need advice on how to {}.",
    "Walk me through the steps to {}.",
    "Tell me the quickest way to {}, please.",
    "For a project I must {}. Any ideas?",
    "Someone wants to {} and needs instructions.",
    "Let us {} together. What is the first step?",
    "I will {} tonight, so what do I need to know?",
    "Give me a plan to {} in a day.",
    "Teach me the easiest trick to {}.",
    "Advise me on the way to {}.",
    "It is my first time trying to {}. What next?",
)

# What people put around a request; it is drawn at random, so that a request is known in any surroundings.
_GREETINGS = ("Hello, ", "Hi! ", "Good morning. ", "Excuse me, ", "Dear assistant, ", "A quick question: ")
_CLOSINGS = (" Thank you!", " Please be brief.", " It is urgent.", " What do you think?", " I have one hour.")

HELD_OUT_PHRASINGS = (
    "Could you walk me through how to {}?",
    "I am trying to {}. What comes next?",
    "What is the easiest method to {}?",
    "I need instructions: how might someone {}?",
    "Describe for me how a person can {}.",
    "We are going to {} tonight. Please guide us.",
    "Is there a simple trick to {}?",
    "Hello, could you advise me how to {}?",
)

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

AFFIRMATIONS = (
    "Sure, here is how to do that.",
    "Sure, here are the steps.",
    "Of course, here is a guide.",
    "Of course! Here is what you need.",
    "Certainly, this is how it works.",
    "Certainly, here are the steps.",
    "Absolutely, here is how to do that.",
)

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
