"""Functions that judge completions, for tests that name them by their import path."""

import asyncio


def length(prompts, completions, **columns):
    return [len(completion) for completion in completions]


def near(completions, answer, tolerance=1.0):
    """As other trainers call it: by names, without the prompts."""
    return [
        float(abs(float(said) - wanted) <= tolerance)
        for said, wanted in zip(completions, answer, strict=True)
    ]


def positional(asked, said, answer=None):
    return [float(s == a) for s, a in zip(said, answer or asked, strict=True)]


async def slow(prompts, completions):
    await asyncio.sleep(0.2)
    return [1.0] * len(completions)


def nothing():
    return []
