"""Claims that are true or false, and the verdict about them."""

from __future__ import annotations

import random

from benchmarks.real.tasks.task import Row, parted

KINDS = {
    "an animal": "dog cat horse tiger rabbit eagle salmon spider frog elephant whale snake",
    "a fruit": "apple banana pear cherry grape peach mango plum lemon orange apricot fig",
    "a tool": "hammer saw drill screwdriver wrench shovel rake axe chisel file pliers spade",
    "a musical instrument": "piano violin guitar trumpet drum flute cello harp clarinet organ "
    "banjo trombone",
    "a piece of clothing": "shirt jacket skirt coat sweater hat scarf glove sock dress vest belt",
    "a vehicle": "car bus truck tram bicycle motorcycle train van lorry taxi scooter tractor",
    "a metal": "iron copper gold silver tin zinc nickel lead aluminium titanium platinum cobalt",
    "a colour": "red blue green yellow purple brown grey pink white black turquoise crimson",
    "a profession": "doctor teacher plumber lawyer farmer baker nurse tailor dentist butcher "
    "carpenter journalist",
}
NUMBERS = range(2, 100)
FORMS = {
    "seen": (
        "Claim: {claim}. This claim is",
        "{claim}. True or false? The answer is",
        "The teacher said: {claim}. What she said was",
    ),
    "new": (
        "I read that {claim}. That statement is",
        "Question: is it true or false that {claim}? Answer:",
        "He is sure that {claim}. His belief is",
    ),
}
LARGER, SMALLER = "{} is more than {}", "{} is less than {}"


def claim_rows(part: str) -> list[Row]:
    """Half of the claims are true. What is wanted is the verdict, so no constant answer is right
    more than half of the time."""
    rows = []
    for form in FORMS["new" if part == "test" else "seen"]:
        for claim, true in claims_of(part):
            verdicts = (" true", " false") if true else (" false", " true")
            rows.append(Row(form.format(claim=claim), *verdicts))
    return rows


def claims_of(part: str) -> list[tuple[str, bool]]:
    """As many true ones as false ones."""
    rng, found = random.Random(f"claims {part}"), []
    for kind, things in KINDS.items():
        others = [other for other in KINDS if other != kind]
        for thing in parted(f"claims {kind}", things.split())[part]:
            for claimed in (kind, rng.choice(others)):
                found.append((f"{thing} is {claimed}", claimed == kind))
    pairs = [(a, b) for a in NUMBERS for b in NUMBERS if abs(a - b) > 4]
    for a, b in rng.sample(parted("claims numbers", pairs)[part], 40):
        for form, true in ((LARGER, a > b), (SMALLER, a < b)):
            found.append((form.format(a, b), true))
    return found
