"""The prompts built into tune and frontier: single objects that every model can draw, even a very small one.

The three lists share no prompt: settings are searched on one, judged on another, and the frontier is measured on the
third. ``compare`` has no built-in prompts; it takes the user's. For videos the prompts are things that
move, in three lists that share no prompt either.
"""

from __future__ import annotations

from h2gen.evaluation.results import Case


def _split(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(";"))


TUNING = _split("""
a cat; a birthday cake; a flat icon of a bus; a 3d render of an apple; a cartoon of a frog; a rose; a guitar;
a sailboat
""")
"""Prompts for searching plans and tolerances."""

CHECKING = _split("""
a dog; a butterfly; a car; a cartoon of a pizza; a flat icon of a mushroom; a 3d render of a horse; a
strawberry; a tiger face; a hamburger; a bird; a flower; a green apple; a cow; a 3d render of a key; a flat
icon of a house; a cartoon of a ghost; a teapot; a rocket; a drum; a lemon; an umbrella; a panda face; a
train; a moon
""")
"""Prompts for judging the candidates of a search."""

FRONTIER = _split("""
a fox face; a pear; a bicycle; a whale; a cactus; a doughnut; a crown; a trumpet; a snail; a watermelon; a
taxi; a penguin; a tulip; a cookie; a ring; a violin; a bee; a banana; a truck; a koala; a maple leaf; a
sandwich; a lamp; a bell; a 3d render of a shark; a 3d render of a peach; a 3d render of an airplane; a 3d
render of a chick; a 3d render of a sunflower; a 3d render of a taco; a 3d render of a hat; a 3d render of a
camera; a flat icon of a turtle; a flat icon of a grape; a flat icon of a ship; a flat icon of an owl; a flat
icon of a tree; a flat icon of a pie; a flat icon of a shoe; a flat icon of a clock; a cartoon of a rabbit; a
cartoon of a carrot; a cartoon of a tractor; a cartoon of an elephant; a cartoon of a cherry blossom; a
cartoon of an egg; a cartoon of a backpack; a cartoon of a book
""")
"""Prompts for measuring only; nothing is chosen on them."""


_THINGS = _split("""
a cat; a dog; a pig; a rabbit; a panda; a lion; a fox; an elephant; a penguin; an owl; a frog; a whale; a fish; a crab;
a butterfly; a rose; a cactus; a mushroom; an apple; a banana; a strawberry; a hamburger; a pizza; a car; a bus; a
rocket; an airplane; a house; an umbrella; a guitar
""")
_MOTIONS = _split("moves to the right; moves to the left; moves up; moves down; grows; shrinks; turns")


def _moving(first: int, count: int) -> tuple[str, ...]:
    """Things that move: another pair for each number, since the lists' lengths have no common divisor."""
    numbers = range(first, first + count)
    return tuple(f"{_THINGS[number % len(_THINGS)]} {_MOTIONS[number % len(_MOTIONS)]}" for number in numbers)


def cases(prompts: tuple[str, ...], first_seed: int) -> list[Case]:
    """The prompts, with seeds counting up from the first one."""
    return [Case(prompt, first_seed + place) for place, prompt in enumerate(prompts)]


def to_search(video: bool) -> list[Case]:
    """The cases for searching plans and tolerances, of pictures or of videos."""
    return cases(_moving(0, len(TUNING)) if video else TUNING, 1000)


def to_check(video: bool) -> list[Case]:
    """The cases for judging the candidates of a search."""
    return cases(_moving(len(TUNING), len(CHECKING)) if video else CHECKING, 2000)


def to_measure(video: bool) -> list[Case]:
    """The cases for measuring only."""
    return cases(_moving(len(TUNING) + len(CHECKING), len(FRONTIER)) if video else FRONTIER, 3000)
