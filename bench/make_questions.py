"""Writes the questions about short stories that ship in data/: JSON lines of `prompt` and `answer`.

Every sentence below was written for this project. A story follows one of the plots; its people, things and places are
drawn at random, and so is the wording of its sentences. Each story is asked three of its plot's questions. The answer
stands in the story, mostly beside something else that would also fit the question. A quarter of the names, and four
plots each, occur only in the dev set and only in the test set.

    python -m bench.make_questions
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"
STORIES = {"train": (100, 0), "dev": (12, 8), "test": (12, 8)}  # of known plots, of plots that only this set has
QUESTIONS = 3  # per story
KNOWN_NAMES = 9  # of each list; the other names occur only in dev and test

WORDS = {
    "girl": "Lily Anna Mia Sara Emma Zoe Nina Ruby Ella Clara Ivy Rosa".split(),
    "boy": "Tom Ben Max Sam Leo Jack Tim Noah Finn Oscar Paul Hugo".split(),
    "colour": "red blue green yellow pink white brown black orange purple".split(),
    "toy": "ball kite drum doll truck boat train robot car puppet".split(),
    "wear": "hat scarf coat shirt cap sweater".split(),
    "animal": "dog cat rabbit bird duck frog mouse horse pig turtle".split(),
    "place": "park garden forest beach farm lake school market zoo library".split(),
    "room": "kitchen bedroom attic cellar hall garage".split(),
    "spot": ["under the bed", "behind the door", "in the box", "on the shelf", "under the table", "in the basket"],
    "out": ["under a tree", "behind the house", "near the gate", "in the tall grass", "on a big rock", "by the pond"],
    "food": "bread soup cake jam rice pie pudding pasta salad popcorn".split(),
    "find": "key coin shell feather stone ring map button letter leaf".split(),
    "relative": "mom dad grandma grandpa aunt uncle".split(),
    "feeling": "happy sad proud angry scared tired".split(),
    "upset": "sad angry cross upset".split(),
    "bad": "big small loud heavy old dirty".split(),
    "number": "two three four five six seven".split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "weather": ["it was raining", "it was too cold", "the wind was too strong", "there was a big storm"],
    "late": ["the bus was late", "the car was broken", "the road was full of snow", "the clock was wrong"],
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A story's sentences, each as a list of wordings, and its questions with their answers."""

    name: str
    sentences: list[list[str]]
    questions: dict[str, str]


PLOTS = [
    Plot("lost toy", [
        ["{girl} had a {colour1} {toy}.", "{girl} got a {colour1} {toy} from her {relative}."],
        ["{boy} had a {colour2} {wear}.", "Her friend {boy} wore a {colour2} {wear}."],
        ["They went to the {place} to play.", "One day they played at the {place}."],
        ["Then the {toy} was gone.", "But {girl} lost the {toy}."],
        ["{boy} looked everywhere and saw it {out}.", "At last {boy} found it {out}."],
    ], {
        "What did {girl} lose?": "the {toy}", "Who found the {toy}?": "{boy}", "Where was the {toy}?": "{out}",
        "What colour was the {toy}?": "{colour1}", "What colour was the {wear}?": "{colour2}",
        "Where did they play?": "the {place}",
    }),
    Plot("two presents", [
        ["It was {boy}'s birthday.", "{boy} had a birthday party."],
        ["His {relative} gave him a {colour1} {toy1}.", "From his {relative} he got a {colour1} {toy1}."],
        ["{girl} gave him a {colour2} {toy2}.", "His friend {girl} brought a {colour2} {toy2}."],
        ["They ate {food} and sang a song.", "Then they all ate {food}."],
        ["{boy} said thank you and felt {feeling}."],
    ], {
        "Whose birthday was it?": "{boy}", "What did {girl} give him?": "a {colour2} {toy2}",
        "Who gave him the {colour2} {toy2}?": "{girl}", "What colour was the {toy1}?": "{colour1}",
        "What colour was the {toy2}?": "{colour2}", "What did they eat?": "{food}",
    }),
    Plot("rainy day", [
        ["{girl} and {boy} wanted to go to the {place}.", "{boy} and {girl} wanted to walk to the {place}."],
        ["But they stayed at home because {weather}.", "They had to stay inside because {weather}."],
        ["{girl} built a {toy1} out of paper.", "So {girl} drew a {colour} {toy1}."],
        ["{boy} made {food} with his {relative}.", "{boy} helped his {relative} to make {food}."],
    ], {
        "Where did they want to go?": "the {place}", "Why did they stay at home?": "because {weather}",
        "Who made {food}?": "{boy}", "What did {boy} make?": "{food}", "Who helped with the {food}?": "his {relative}",
    }),
    Plot("pet that ran away", [
        ["{boy} had a {animal1} and a {animal2}.", "There was a boy named {boy} who had a {animal1} and a {animal2}."],
        ["On {day} the {animal1} ran away.", "The {animal1} ran off on {day}."],
        ["{boy} asked {girl} to help him.", "{girl} came to help."],
        ["They saw the {animal1} {out}.", "The {animal1} was hiding {out}."],
        ["{girl} gave it some {food}, and it came back.", "It came back when {girl} showed it some {food}."],
    ], {
        "Which animal ran away?": "the {animal1}", "When did the {animal1} run away?": "{day}",
        "Who helped {boy}?": "{girl}", "Where was the {animal1}?": "{out}",
        "What did {girl} give to the {animal1}?": "some {food}",
    }),
    Plot("treasure", [
        ["{girl} went to the {place} with her {relative}.", "One {day} {girl} and her {relative} went to the {place}."],
        ["She dug a hole and found a {find1}.", "There she found a {colour1} {find1}."],
        ["Her {relative} found a {find2}.", "Later her {relative} found an old {find2}."],
        ["She put the {find1} {spot}.", "At home {girl} hid the {find1} {spot}."],
    ], {
        "What did {girl} find?": "a {find1}", "What did her {relative} find?": "a {find2}",
        "Who found the {find2}?": "her {relative}", "Where did {girl} go?": "the {place}",
        "Where did she put the {find1}?": "{spot}",
    }),
    Plot("shopping", [
        ["{boy} went to the market with {girl}.", "On {day} {boy} and {girl} went to the market."],
        ["{boy} bought {number1} apples.", "{boy} wanted apples, so he took {number1} apples."],
        ["{girl} bought {food} and a {colour} {wear}.", "{girl} found a {colour} {wear} and some {food}."],
        ["They carried it all to the {place}.", "Then they took everything to the {place} and ate."],
    ], {
        "How many apples did {boy} buy?": "{number1}", "Who bought the apples?": "{boy}",
        "Who bought the {wear}?": "{girl}", "What colour was the {wear}?": "{colour}",
        "What did {boy} buy?": "{number1} apples", "Where did they take it?": "the {place}",
    }),
    Plot("race", [
        ["A {animal1}, a {animal2} and a {animal3} had a race.", "The {animal1} met a {animal2} and a {animal3}."],
        ["They ran to the {place}.", "They wanted to see who could run to the {place} first."],
        ["The {animal2} fell into the mud.", "The {animal2} was slow because it ate too much {food}."],
        ["The {animal3} won and got a {colour} {wear}.", "The {animal3} was the first and got a {colour} {wear}."],
    ], {
        "Who won the race?": "the {animal3}", "Where did they run to?": "the {place}",
        "What did the {animal3} get?": "a {colour} {wear}", "What colour was the {wear}?": "{colour}",
    }),
    Plot("late for school", [
        ["{girl} was late for school because {late}.", "On {day} {girl} came late because {late}."],
        ["{boy} had kept a seat for her.", "Her friend {boy} waited {out}."],
        ["The teacher felt {feeling1}, but {girl} felt {feeling2}.", "{boy} was {feeling1} and {girl} was {feeling2}."],
        ["After school they went to the {place}.", "Then they played at the {place}."],
    ], {
        "Why was {girl} late?": "because {late}", "Who was late?": "{girl}", "How did {girl} feel?": "{feeling2}",
        "Where did they go after school?": "the {place}",
    }),
    Plot("hiding", [
        ["{boy}, {girl1} and {girl2} played hide and seek.", "{girl1} and {girl2} played hide and seek with {boy}."],
        ["{boy} hid in the {room1}.", "First {boy} went to hide in the {room1}."],
        ["{girl1} hid in the {room2}.", "{girl1} ran to the {room2}."],
        ["{girl2} looked for them with her {animal}.", "{girl2} counted to ten and took her {animal} along."],
        ["The {animal} found {boy} first.", "She found {boy} first because he laughed."],
    ], {
        "Where did {boy} hide?": "the {room1}", "Where was {girl1}?": "the {room2}",
        "Who was found first?": "{boy}", "Who hid in the {room2}?": "{girl1}",
        "Which animal did {girl2} have?": "{animal}",
    }),
    Plot("broken thing", [
        ["{boy} had a {colour1} {toy} and {girl} had a {colour2} one.",
        "{girl}'s {toy} was {colour2}, and {boy}'s was {colour1}."],
        ["{boy} broke his {toy} in the {room}.", "In the {room} {boy} fell and broke his {toy}."],
        ["He felt {upset}.", "That made him {upset}."],
        ["His {relative} fixed it with glue.", "Then his {relative} came and fixed it."],
    ], {
        "What did {boy} break?": "his {toy}", "What colour was {boy}'s {toy}?": "{colour1}",
        "What colour was {girl}'s {toy}?": "{colour2}", "Who fixed the {toy}?": "his {relative}",
        "Where did {boy} break his {toy}?": "the {room}", "How did {boy} feel?": "{upset}",
    }),
    Plot("cooking", [
        ["{girl} wanted to make {food1} for her {relative1}.", "For her {relative1} {girl} made {food1}."],
        ["{boy} made {food2} for his {relative2}.", "Her brother {boy} cooked {food2} for his {relative2}."],
        ["The {animal} ate the {food2}.", "Then the {animal} jumped up and ate the {food2}."],
        ["So they all shared the {food1} in the {room}.", "They ate the {food1} together in the {room}."],
    ], {
        "What did {girl} make?": "{food1}", "What did {boy} make?": "{food2}", "Who ate the {food2}?": "the {animal}",
        "Where did they eat?": "the {room}",
    }),
    Plot("big storm", [
        ["A {colour1} {animal1} lived {out}.", "Once a little {colour1} {animal1} lived {out}."],
        ["Its friend was a {colour2} {animal2}.", "A {colour2} {animal2} lived near the {place}."],
        ["In a storm the {animal2} lost its home.", "One night the wind took the home of the {animal2}."],
        ["The {animal1} said, \"You can stay with me.\"", "The {animal1} let it sleep in its bed."],
        ["They ate {food} and were {feeling}.", "In the morning they had {food}."],
    ], {
        "Who lost its home?": "the {animal2}", "What colour was the {animal1}?": "{colour1}",
        "What colour was the {animal2}?": "{colour2}", "Where did the {animal1} live?": "{out}",
        "What did they eat?": "{food}",
    }),
    Plot("visit", [
        ["On {day1} {girl} went to see her {relative1}.", "{girl} visited her {relative1} on {day1}."],
        ["She took a {colour} {wear} and some {food}.", "In her {colour} {wear} she had some {food}."],
        ["On {day2} she went to see her {relative2}.", "Then on {day2} she visited her {relative2}."],
        ["Her {relative2} showed her {number} small {animal}s.", "There she saw {number} small {animal}s."],
    ], {
        "When did {girl} see her {relative1}?": "{day1}", "When did {girl} see her {relative2}?": "{day2}",
        "How many {animal}s did she see?": "{number}", "What colour was the {wear}?": "{colour}",
        "Who had the {animal}s?": "her {relative2}",
    }),
    Plot("swap", [
        ["{girl} had a {toy1} and {boy} had a {toy2}.", "{boy} played with a {toy2} and {girl} with a {toy1}."],
        ["{girl} did not like the {toy1} because it was too {bad}.", "The {toy1} was too {bad} for {girl}."],
        ["So she gave it to {boy}.", "{boy} liked it, so she gave it to him."],
        ["He gave her the {toy2} and a {find}.", "For that she got the {toy2} and a {find}."],
    ], {
        "What did {girl} have at first?": "a {toy1}", "What did {girl} give to {boy}?": "the {toy1}",
        "Why did {girl} not like the {toy1}?": "it was too {bad}", "Who got the {find}?": "{girl}",
    }),
]  # fmt: skip
DEV_PLOTS = [
    Plot("swimming", [
        ["{boy} and his {relative} swam in the lake.", "On {day} {boy} went to the lake with his {relative}."],
        ["{girl} sat {out} with a {colour1} {wear}.", "{girl} stayed {out} in her {colour1} {wear}."],
        ["A {animal} took the {food}.", "Then a {animal} came and took their {food}."],
        ["{girl} laughed, but {boy} was {upset}."],
    ], {
        "Who was {upset}?": "{boy}", "What did the {animal} take?": "the {food}", "Who took the {food}?": "a {animal}",
        "What colour was the {wear}?": "{colour1}", "Where was {girl}?": "{out}",
    }),
    Plot("painting", [
        ["{girl} painted a {colour1} {animal1}.", "At school {girl} painted a {colour1} {animal1}."],
        ["{boy} painted a {colour2} {animal2}.", "Next to her {boy} painted a {colour2} {animal2}."],
        ["His picture hung in the {room1}, and hers in the {room2}."],
        ["The teacher liked the {animal2} best."],
    ], {
        "What did {boy} paint?": "a {colour2} {animal2}", "What colour was the {animal1}?": "{colour1}",
        "Who painted the {animal2}?": "{boy}", "Where did his picture hang?": "the {room1}",
    }),
    Plot("planting", [
        ["{boy} planted {number1} seeds at the {place}."], ["{girl} planted {number2} seeds {out}."],
        ["A {animal} ate the seeds of {boy}.", "But a {animal} came and ate all of {boy}'s seeds."],
        ["{girl} gave him one of her {colour} flowers."],
    ], {
        "How many seeds did {girl} plant?": "{number2}", "How many seeds did {boy} plant?": "{number1}",
        "Who ate the seeds?": "a {animal}", "What colour were the flowers?": "{colour}",
    }),
    Plot("night noise", [
        ["At night {girl} heard a noise in the {room1}."], ["She woke up her {relative}."],
        ["They found a {animal} {spot}.", "There they saw a {animal} {spot}."],
        ["It was crying because it wanted {food}."], ["They slept in the {room2} that night."],
    ], {
        "Where was the noise?": "the {room1}", "What did they find?": "a {animal}",
        "Whom did {girl} wake up?": "her {relative}",
        "Why was the {animal} crying?": "because it wanted {food}", "Where did they sleep?": "the {room2}",
    }),
]  # fmt: skip
TEST_PLOTS = [
    Plot("picnic", [
        ["{girl1}, {girl2} and {boy} had a picnic at the {place}."],
        ["{girl1} brought {food1} and {girl2} brought {food2}."],
        ["{boy} brought a {colour} {toy}.", "{boy} came with his {colour} {toy}."],
        ["They went home early because {weather}."],
    ], {
        "Who brought {food1}?": "{girl1}", "What did {girl2} bring?": "{food2}",
        "Why did they go home?": "because {weather}",
        "What colour was the {toy}?": "{colour}", "Where was the picnic?": "the {place}",
    }),
    Plot("train ride", [
        ["On {day} {boy} took the train to see his {relative}."],
        ["A girl named {girl} sat beside him with a {animal1}."],
        ["The {animal1} wore a {colour1} {wear}."], ["{boy} gave it some {food}."],
        ["He forgot his {colour2} {toy} on the train."],
    ], {
        "What did {boy} forget?": "his {colour2} {toy}", "Who had a {animal1}?": "{girl}",
        "What colour was the {wear}?": "{colour1}", "When did {boy} take the train?": "{day}",
    }),
    Plot("snow", [
        ["{boy} made a big snowman {out}."], ["{girl} gave it her {colour1} {wear1}."],
        ["{boy} gave it his {colour2} {wear2}."], ["In the night a {animal} ate its nose."],
        ["In the morning {girl} was {feeling1} and {boy} was {feeling2}."],
    ], {
        "Where was the snowman?": "{out}", "Who gave it the {wear1}?": "{girl}", "Who ate the nose?": "a {animal}",
        "How did {boy} feel in the morning?": "{feeling2}", "What colour was the {wear2}?": "{colour2}",
    }),
    Plot("music", [
        ["{girl} played the {toy} in the {room}."], ["{boy} sang a song about a {colour} {animal}."],
        ["Her {relative} gave them {number} cookies."], ["{boy} ate them all, and {girl} felt {upset}."],
    ], {
        "How many cookies did they get?": "{number}", "Who sang a song?": "{boy}",
        "Where did {girl} play?": "the {room}",
        "What was the song about?": "a {colour} {animal}", "Who ate the cookies?": "{boy}",
    }),
]  # fmt: skip
OWN_PLOTS = {"train": [], "dev": DEV_PLOTS, "test": TEST_PLOTS}


def fill(plot: Plot, split: str, draw: random.Random) -> dict[str, str]:
    """A word for every slot of a plot, by the slot's name; slots of one list get different words."""
    text = " ".join([*(wording for wordings in plot.sentences for wording in wordings), *plot.questions])
    slots = sorted(set(re.findall(r"\{([a-z]+\d?)\}", text)))
    words = {}
    for name in sorted({slot.rstrip("0123456789") for slot in slots}):
        choice = WORDS[name]
        if name in ("girl", "boy"):
            choice = choice[:KNOWN_NAMES] if split == "train" else choice
        own = [slot for slot in slots if slot.rstrip("0123456789") == name]
        words |= dict(zip(own, draw.sample(choice, len(own)), strict=True))
    return words


def tidied(text: str) -> str:
    """`a orange` -> `an orange`, `mouses` -> `mice`."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text).replace("mouses", "mice")


def story_and_questions(plot: Plot, split: str, draw: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """A story, and every question about it that its wording answers, with the answer as it stands there."""
    words = fill(plot, split, draw)
    story = tidied(" ".join(draw.choice(wordings) for wordings in plot.sentences).format(**words))
    pairs = [tuple(tidied(text.format(**words)) for text in pair) for pair in plot.questions.items()]
    bare = re.compile(r"^(the|an?|his|her|some|because) ")
    return story, [(question, answer) for question, answer in pairs if bare.sub("", answer) in story]


def examples(split: str, draw: random.Random, seen: set[str]) -> list[dict[str, str]]:
    """The lines of one split, three for each story; `seen` are the stories of all splits so far."""
    known, own = STORIES[split]
    plots = [PLOTS[number % len(PLOTS)] for number in range(known)]
    plots += [OWN_PLOTS[split][number % len(OWN_PLOTS[split])] for number in range(own)]
    lines = []
    for plot in plots:
        story, pairs = story_and_questions(plot, split, draw)
        while story in seen or len(pairs) < QUESTIONS:
            story, pairs = story_and_questions(plot, split, draw)
        seen.add(story)
        for question, answer in draw.sample(pairs, QUESTIONS):
            lines.append({"prompt": f"{story} Question: {question} Answer:", "answer": answer, "plot": plot.name})
    return lines


def main() -> None:
    """Writes the three files."""
    draw, seen = random.Random(1), set()
    for split in STORIES:
        lines = examples(split, draw, seen)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (DATA / f"qa-{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
