"""Writes the small review files that ship in data/: made-up film reviews in the course's format.

Every phrase below was written for this project. A review has a remark on each of one to three aspects of a film,
sometimes an introductory sentence before them and a verdict after them. A third of the phrases occur only in the dev
and test files.

    python -m bench.make_reviews
"""

from __future__ import annotations

import json
import random
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"
NAMES = {"reviews": ["bad", "good"], "reviews5": ["awful", "bad", "average", "good", "excellent"]}
SIZES = {"train": 150, "dev": 50, "test": 50}

# An aspect of a film: five lists, from awful to excellent. "@" is the subject.
ASPECTS = {
    "the cast": [
        ["@ seems to be reading from cards held up behind the camera", "@ could not be less convincing if they tried",
         "@ gives the worst performances I have sat through in years"],
        ["@ never quite finds a rhythm", "@ looks tired from the first scene on", "@ is mostly wooden"],
        ["@ does its job and not much more", "@ is uneven, with one nice turn and one weak one", "@ is acceptable"],
        ["@ is warm and easy to like", "@ works well together", "@ brings real charm to small parts"],
        ["@ is nothing short of magnificent", "@ gives performances I will remember for years",
         "@ makes every line feel lived"],
    ],
    "the story": [
        ["@ is an insult to anyone who has ever read a book", "@ makes no sense at all and does not care",
         "@ is a heap of stolen scenes thrown together without thought"],
        ["@ runs out of ideas after half an hour", "@ is thin and badly stretched", "@ leans far too often on chance"],
        ["@ goes where you expect it to go", "@ is neither new nor dull", "@ is simple enough to follow while cooking"],
        ["@ keeps you guessing in a pleasant way", "@ is told with care", "@ has a couple of clever turns"],
        ["@ is a marvel of construction", "@ broke my heart and mended it again",
         "@ is so rich that I wanted to start again at once"],
    ],
    "the dialogue": [
        ["@ is so stupid that people laughed in the wrong places", "@ is painful to hear",
         "@ sounds as if a machine had glued slogans together"],
        ["@ is stiff", "@ explains everything twice", "@ falls flat more often than not"],
        ["@ is plain but serves its purpose", "@ has its moments, and its longueurs", "@ is of the usual kind"],
        ["@ is quick and natural", "@ has a dry wit that grows on you", "@ is sharper than I expected"],
        ["@ sparkles from the first word to the last", "@ is a feast for the ear", "@ is brilliant, funny and true"],
    ],
    "the direction": [
        ["@ is hopeless, as if nobody had been in charge", "@ ruins every scene it touches",
         "@ is a disaster from beginning to end"],
        ["@ is clumsy", "@ shows little feeling for the material", "@ lets the tension leak away"],
        ["@ is competent without a mark of its own", "@ is safe", "@ neither helps nor harms"],
        ["@ is confident and unfussy", "@ finds fresh angles on an old theme", "@ gives the actors room to breathe"],
        ["@ is masterly in every detail", "@ is so assured that it takes your breath away",
         "@ turns a small tale into something unforgettable"],
    ],
    "the music": [
        ["@ is an unbearable racket", "@ made me want to leave the room", "@ is the most annoying I have ever heard"],
        ["@ is too loud and too sweet", "@ tells you what to feel, and gets it wrong", "@ soon becomes a nuisance"],
        ["@ is there, and that is all one can say", "@ is pleasant and quickly forgotten", "@ fits well enough"],
        ["@ adds a nice melancholy touch", "@ is lively and well chosen", "@ lifts the slower scenes"],
        ["@ is glorious and still rings in my head", "@ is a masterpiece in itself", "@ is so beautiful that I wept"],
    ],
    "the camera work": [
        ["@ gave me a headache within minutes", "@ is a shaky, ugly mess", "@ is so dark that one sees nothing at all"],
        ["@ is flat and grey", "@ is restless for no reason", "@ misses what matters in the action scenes"],
        ["@ is what you would see on television", "@ is clean if unremarkable", "@ is neither ugly nor pretty"],
        ["@ is handsome throughout", "@ catches the landscape very well", "@ has an eye for small gestures"],
        ["@ is breathtaking, every picture worth a frame on the wall", "@ is a wonder of light and colour",
         "@ is the finest I have seen on a large screen"],
    ],
    "the ending": [
        ["@ is a slap in the face", "@ is idiotic beyond belief", "@ destroys the little that was left"],
        ["@ is a letdown", "@ comes out of nowhere", "@ feels rushed and hollow"],
        ["@ ties things up in the expected manner", "@ is fine, I suppose", "@ could have been better or worse"],
        ["@ is quietly satisfying", "@ made me smile", "@ rewards a patient viewer"],
        ["@ is perfect, and left the whole house silent", "@ is one of the great final scenes",
         "@ is so moving that nobody got up"],
    ],
    "the humour": [
        ["@ is vile and never once funny", "@ is an embarrassment for all concerned", "@ died in the first minute"],
        ["@ is forced", "@ repeats the same weak joke", "@ misses more than it hits"],
        ["@ raises a smile here and there", "@ is a matter of taste", "@ is mild"],
        ["@ is gentle and often funny", "@ comes easily", "@ saves the more sentimental parts"],
        ["@ had me in tears of laughter", "@ is a stroke of genius", "@ is the funniest thing in a decade"],
    ],
    "the pacing": [
        ["@ is torture", "@ turns ninety minutes into a prison sentence", "@ is so slow that I begged for the end"],
        ["@ drags in the middle", "@ is off, with long stretches of nothing", "@ is too hurried to build any mood"],
        ["@ is steady, now and then a little slow", "@ is average for a film of its kind", "@ is all right"],
        ["@ is brisk and keeps you interested", "@ is well judged", "@ leaves time for the quiet moments"],
        ["@ is flawless, not a second is wasted", "@ holds you spellbound from start to finish",
         "@ is so thrilling that I forgot to breathe"],
    ],
}  # fmt: skip
VERDICTS = [
    ["Avoid it at all costs.", "I want my money back, and my evening.", "One of the worst films I have ever seen.",
     "Not even worth seeing for free.", "A complete waste of time."],
    ["I cannot recommend it.", "A disappointment, I am afraid.", "You can safely skip this one.",
     "There are better ways to spend an evening.", "I had hoped for more."],
    ["See it if there is nothing else on.", "I neither liked nor disliked it.", "It passes the time.",
     "Middle of the road in every way.", "Some will like it, some will not."],
    ["I would happily see it again.", "Well worth a look.", "A good evening at the cinema.",
     "I recommend it.", "A pleasant surprise."],
    ["Do not miss it.", "One of the best films I have ever seen.", "A masterpiece, pure and simple.",
     "I have already bought a ticket for tomorrow.", "I loved every minute of it."],
]  # fmt: skip
INTRODUCTIONS = [
    "I saw it on a rainy Sunday with my sister.", "It runs for a little over two hours.",
    "My neighbour lent me the disc.",
    "The film is set in a harbour town in the fifties.", "It was shown at our local festival last week.",
    "This is the third part of a series.", "I had read the novel beforehand.",
    "We watched it at home on a Friday night.",
    "The film follows two brothers who inherit a hotel.", "It is a thriller about a stolen violin.",
    "The house was half full.", "A retired teacher sets out to find her old pupils.", "I knew nothing about it.",
    "It is based on a play from the thirties.", "The trailer had caught my eye months ago.",
    "A young doctor comes to a village in the mountains.", "My children chose it.", "It is the director's first film.",
]  # fmt: skip
JOINS = (". ", ". ", ", and ", "; ", ". What is more, ", ", while ")


def phrases(grade: int, split: str) -> dict[str, list[str]]:
    """The phrases about each aspect; the last phrase of every list does not occur in training."""
    return {aspect: lists[grade][: 2 if split == "train" else 3] for aspect, lists in ASPECTS.items()}


def review(grade: int, split: str, draw: random.Random) -> str:
    """One review with a grade from 0 (awful) to 4 (excellent)."""
    choice = phrases(grade, split)
    aspects = draw.sample(sorted(choice), draw.choice((1, 2, 2, 3)))
    remarks = [draw.choice(choice[aspect]).replace("@", aspect) for aspect in aspects]
    text, joins = _capitalised(remarks[0]), draw.sample(JOINS, 2)  # each join occurs once at most
    for remark, join in zip(remarks[1:], joins, strict=False):
        text += join + (_capitalised(remark) if join == ". " else remark)
    text += "."
    if draw.random() < 0.5:
        text = f"{draw.choice(INTRODUCTIONS)} {text}"
    if draw.random() < 0.5 or len(aspects) == 1:
        text += f" {draw.choice(VERDICTS[grade][: 4 if split == 'train' else 5])}"
    return text


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def write(name: str, seed: int) -> None:
    """Writes the three splits and the label mapping of one data set."""
    draw, seen = random.Random(seed), set()
    grades = {label: [0, 1] if label == 0 else [3, 4] for label in range(2)} if name == "reviews" else None
    for split, size in SIZES.items():
        lines = []
        while len(lines) < size:
            label = len(lines) % len(NAMES[name])
            text = review(draw.choice(grades[label]) if grades else label, split, draw)
            if text not in seen:
                seen.add(text)
                lines.append(f"{label} ||| {text}\n")
        draw.shuffle(lines)
        (DATA / f"{name}-{split}.txt").write_text("".join(lines), encoding="utf-8", newline="\n")
    mapping = json.dumps(NAMES[name]) + "\n"
    (DATA / f"{name}-label-mapping.json").write_text(mapping, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write("reviews", seed=1)
    write("reviews5", seed=2)
