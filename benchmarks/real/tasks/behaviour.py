"""Sentiment and formality: ways of speaking, which a model has and need not work out."""

from __future__ import annotations

from itertools import product

from benchmarks.real.tasks.task import Row, parted

THINGS = (
    "hotel film book restaurant concert phone jacket laptop museum play lecture camera bakery "
    "novel garden song lamp sofa bicycle album festival trip cruise kettle game headset tent "
    "course painting documentary market café show suitcase blender hike clinic printer watch "
    "guitar pizza soup keyboard backpack"
).split()
OPENINGS = {
    "seen": (
        "We tried the {thing} last week and it was",
        "My review of the {thing}: all in all it was",
        "After two days I can say that the {thing} is",
        "Everyone asked me about the {thing}. I thought it was",
        "About the {thing} there is one thing to say: it was",
    ),
    "new": (
        "Our family talked about the {thing} on the way home. It had been",
        "I wrote to a friend that the {thing} was",
        "Looking back at the {thing}, I find that it was",
        "You want to know what the {thing} was like? It was",
    ),
}
FEELINGS = (
    "wonderful/terrible excellent/awful great/bad fantastic/horrible delightful/disgusting "
    "amazing/disappointing brilliant/boring superb/poor lovely/nasty perfect/useless "
    "impressive/mediocre enjoyable/annoying charming/ugly outstanding/dreadful good/worthless "
    "marvellous/miserable beautiful/broken exciting/dull pleasant/unpleasant fun/painful"
).split()

ACTS = (  # formal / everyday, which fit behind "will" and before a thing
    "commence/kick off, purchase/grab, obtain/get, request/ask for, examine/check out, "
    "terminate/call off, postpone/put off, discard/throw out, construct/put up, "
    "inspect/have a look at, retain/hang on to, conclude/wrap up, require/need, "
    "demonstrate/show off, assist with/help out with, distribute/hand out, locate/track down, "
    "complete/finish up, restore/fix up, reject/turn down, verify/double check, "
    "assemble/put together, review/go over, cancel/scrap, acquire/pick up, resume/carry on with, "
    "mention/bring up, investigate/look into, replace/swap out, submit/hand in, "
    "tolerate/put up with, observe/watch, consume/use up, select/pick, describe/talk about, "
    "modify/mess with"
).split(", ")
OBJECTS = (
    "report, machine, package, document, equipment, proposal, programme, letter, materials, "
    "contract, project, order, schedule, list, device, furniture, plan, survey, meeting, "
    "application, supplies, agreement, display, collection, work"
).split(", ")
PLANS = {
    "seen": (
        "She said that they will",
        "As far as I know, the team will",
        "Tomorrow we will",
        "It looks as if he will",
    ),
    "new": (
        "When they are back, the two of them will",
        "The note on the door says that someone will",
        "If there is time, I will",
        "In the end the others will",
    ),
}


def sentiment_rows(part: str) -> list[Row]:
    """The beginning of a review, with a word of praise and its opposite."""
    things, feelings = parted("things", THINGS)[part], parted("feelings", FEELINGS)[part]
    rows = []
    for opening, thing, feeling in product(_forms(OPENINGS, part), things, feelings):
        praise, blame = feeling.split("/")
        rows.append(Row(opening.format(thing=thing), f" {praise}", f" {blame}"))
    return rows


def formal_rows(part: str) -> list[Row]:
    """What somebody will do, in a formal word and in everyday ones."""
    acts, objects = parted("acts", ACTS)[part], parted("objects", OBJECTS)[part]
    rows = []
    for plan, act, thing in product(_forms(PLANS, part), acts, objects):
        formal, everyday = act.split("/")
        rows.append(Row(plan, f" {formal} the {thing}", f" {everyday} the {thing}"))
    return rows


def _forms(forms: dict[str, tuple[str, ...]], part: str) -> tuple[str, ...]:
    """The test has sentences of its own."""
    return forms["new" if part == "test" else "seen"]
