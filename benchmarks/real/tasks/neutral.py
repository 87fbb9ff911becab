"""Texts that steering should leave alone: about nothing that a task is about."""

from __future__ import annotations

# Every second one is kept for the reported divergence.
NEUTRAL = (
    "The river bends to the north behind the old mill, and in spring the meadows on both banks "
    "stand under water for a week or two before the ground dries again.",
    "To bake the bread, mix flour, water, salt and yeast, let the dough rest for an hour under a "
    "cloth, fold it twice, and put it into the oven until the crust has taken on colour.",
    "The committee meets on the first Tuesday of the month. Minutes are sent to all members within "
    "ten days, and corrections have to reach the secretary before the next meeting.",
    "A printing press pushes paper against inked type. The first ones were made of wood, and two "
    "people working together could print some two hundred sheets in an hour.",
    "Turn left at the station, follow the street as far as the post office, and cross the square. "
    "The entrance is next to the shop that sells umbrellas, on the side facing the park.",
    "Cells take up sugar from the blood and store what they do not use. When supplies run low, the "
    "stores are broken down step by step, and the pieces go back to where they are used.",
    "In the second chapter the brothers leave the village and walk to the coast, where they find "
    "work on a boat that carries timber and grain between the islands.",
    "The update changes how files are sorted in the list. Folders come first, then everything else "
    "by the date it was last changed; the old order can be chosen in the settings.",
)
