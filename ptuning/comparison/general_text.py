"""A text of general English, of several kinds, on which it is measured what a model forgets. Written for this package.

Knows nothing of models.
"""

from pathlib import Path

from ptuning.comparison.text_files import text_of

_MOST_CHARACTERS = 1 << 18
GENERAL_TEXT = """\
The ferry to the island leaves at seven in the morning, and there is no other until the evening. People who live \
there plan their week around it: the doctor comes on Tuesdays, the post on Thursdays, and on Saturdays the deck is \
full of crates, bicycles and children who have been to the dentist.

"Did you lock the door?" she asked, halfway down the hill. He stopped and felt in his pockets. "I think so." "You \
think so, or you know?" He sighed, turned around, and began to climb again. She sat down on the wall to wait, and \
when he came back, out of breath, he held up the key and did not say which of them had been right.

A lake freezes from the top because water is densest at about four degrees Celsius. As the surface cools below that, \
the colder water stays above the warmer water instead of sinking. Ice is lighter still, so it floats, and it keeps \
some of the heat of the lake from escaping. This is why fish can live through the winter under a thick sheet of ice.

To make a simple soup, chop two onions and fry them slowly in a little oil until they are soft. Add three carrots, \
two potatoes and enough water to cover them. Let it boil for twenty minutes, then mash everything with a fork. Salt, \
pepper and a spoon of vinegar at the end make more of a difference than any stock cube.

Dear Mr. Hale, thank you for your letter of 3 May. We are sorry that the parcel arrived damaged. We will send a new \
lamp this week, free of charge, and you do not need to return the old one. If anything is missing, please call us \
between nine and five on any weekday. With kind regards, Customer Service.

The council voted on Monday to close the bridge to cars for eighteen months. Engineers had found cracks in two of \
its six pillars last autumn. Shop owners on the east bank fear that they will lose customers, while a group of \
parents welcomed the decision. The repairs are expected to cost 14 million, a third more than was planned.

A program that reads a file should expect that the file is missing, empty, or larger than memory. The first is easy \
to test and often forgotten; the last is hard to test and often found by somebody else. If a function can fail, its \
name or its documentation should say how, and the caller should decide what to do about it.

In the early years of the railway each town kept its own time, set by the sun. A traveller from one coast to the \
other had to correct his watch again and again, and timetables listed several hours for the same train. Standard \
time was adopted for the convenience of the companies, and most towns followed within a few years.

If all the boxes on the shelf are blue, and this box is not blue, then this box was not on the shelf. But if this \
box is blue, we do not know where it came from. Many mistakes have that shape: a rule is read backwards, and nobody \
notices, because the conclusion happens to be true.

My grandmother never used a recipe, a map or an alarm clock. She woke when the birds did, walked until she saw \
something that she knew, and tasted everything twice. I asked her once how she had learned to judge the dough. She \
laughed and said: "By throwing a lot of it away."
"""
"""Ten paragraphs: prose, talk, science, a recipe, a letter, news, advice, history, logic, memories."""


def read_general_text(file: str | None) -> str:
    """The beginning of a person's text; None: the text of this package. Raises `DataError` where it cannot be read."""
    return GENERAL_TEXT if file is None else text_of(Path(file), "compare.general_text")[:_MOST_CHARACTERS]
