"""Texts that steering should leave alone, for a calibration where the user names none.

A dozen of several kinds (a story, a description, a recipe, a letter, news, a conversation, a list,
code, a sum, a rule, a question, a table), each of some forty words, none of them about a concept
that somebody is likely to steer. Texts of one's own users are better.
"""

NEUTRAL_TEXTS = (
    "The path follows the river for a mile, crosses a wooden bridge and climbs slowly between the "
    "fields. At the top there is a bench under two old trees, and on most days you can see the "
    "harbour and the ferry that leaves at noon.",
    "A bicycle chain is made of plates, pins and rollers. Each link turns on its pin, and the "
    "rollers lie between the teeth of the wheels. Dust and rain take the oil away, so the chain "
    "is cleaned and oiled again every few hundred kilometres.",
    "Cut the onions and the carrots into small pieces. Heat a spoon of oil in a wide pan, add the "
    "vegetables and stir for five minutes. Pour in a litre of water, put the lid on, and let "
    "everything cook for half an hour.",
    "Dear Mr. Larsen, thank you for your letter of the third of May. The documents were sent to "
    "your office on Tuesday, together with the list of addresses. Please let us know if any page "
    "is missing. With kind regards, Anna Weber",
    "The town council met on Monday evening to discuss the new timetable of the buses. From "
    "September on, line 4 will run every twenty minutes, and the last bus will leave the station "
    "at half past eleven. A second meeting is planned for June.",
    '"Did you see where I left the keys?" asked Tom. "They were on the table this morning," said '
    'his sister, "next to the newspaper. Maybe they are under it." He lifted the paper, and there '
    "they were, beside a pencil and two stamps.",
    "Things to bring:\n- a map of the area\n- a bottle of water\n- a raincoat and a pair of dry "
    "socks\n- the tickets, which are in the blue envelope\n- something to read on the train\n",
    "def average(values):\n    total = 0\n    for value in values:\n        total = total + value\n"
    "    return total / len(values)\n\n\nprint(average([3, 5, 10]))\n",
    "The box is 30 cm long, 20 cm wide and 15 cm high. Its volume is therefore 30 * 20 * 15 = 9000 "
    "cubic centimetres, or 9 litres. Two such boxes hold 18 litres, and ten of them hold 90.",
    "Each player receives seven cards. The player to the left of the dealer begins and puts one "
    "card on the table. The others follow in turn with a card of the same colour, if they have "
    "one; whoever has none takes a card from the pile.",
    "Question: Why does the moon seem to change its shape?\nAnswer: The sun always lights one half "
    "of the moon. As the moon travels around the earth, we see more or less of that half, from "
    "none of it to all of it, within about four weeks.",
    "Name | Department | Room | Telephone\nIvers | Library | 114 | 2205\nMoreno | Laboratory | 230 "
    "| 2217\nOkafor | Workshop | 008 | 2251\nSato | Archive | 301 | 2290\n",
)
