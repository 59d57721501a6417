"""Short children's tales in plain English, from a grammar of our own, and questions about them with their answers.

    python weights/tales.py --count 3 --seed 1 [--chat] [--bits]

A document is a function of (seed, split, number). Every free choice is uniform and adds log2 of its size to `bits`;
a slot is drawn when the text first needs it, so that no choice is counted that the text does not show. The choices fix
the text, and where the text fixes the choices, as it is meant to, the mean of `bits` is the entropy of a document.
Where two derivations gave one text, it would be above it.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from dataclasses import dataclass
from typing import TypeVar

import tales_words as words
from tales_plots import PLOTS
from tales_traits import TRAITS

T = TypeVar("T")
SPLITS = ("train", "heldout")
SLOT = re.compile(r"\{(\w+)\}")
CHOICE = re.compile(r"\[([^\[\]]*)\]")

SHE = {"he": "she", "him": "her", "his": "her", "himself": "herself"}
HE = {"he": "he", "him": "him", "his": "his", "himself": "himself"}

OPENINGS = [
    "Once upon a time, {home}, there lived a~ {size} {kind} named {N}.",
    "Once upon a time there was a~ {size} {kind} named {N}, who lived {home}.",
    "Long ago, {home}, there lived a~ {size} {kind} called {N}.",
    "There was once a~ {size} {kind} whose name was {N}. {He} lived {home}.",
    "Many years ago, a~ {size} {kind} named {N} lived {home}.",
    "This is the tale of {N}, a~ {size} {kind} who lived {home}.",
    "Have you heard of {N}? {N} was a~ {size} {kind} and lived {home}.",
    "When the world was young, a~ {size} {kind} named {N} lived {home}.",
]

PORTRAIT = (
    "{N} was {adjective}. {show} [{He} always wore a~|Everybody knew {his}] {shade} {garment}. "
    "Every {when} {he} {hobby}, and nothing made {him} happier than {treat}."
)
BEGINNING = (
    "{day}, when the air smelled of {smell}, {N} wanted to {wish}. "
    "{start} {problem} {N} felt [very|so|rather] {feeling}."
)
FIRST = "[First|At first|To begin with,] {he} {try1}."
CRY = '"[Oh dear|Oh no|What a pity|Bother|Dear me|What a day]!" [cried|sighed|said|groaned] {N}.'
WATCHED = "{watcher} {watch} {perch}."
SECOND = "[Then|Next|After that,|A little later] {he} {try2}."
STUCK = (
    "[{He} did not know what to do.|Now {he} had no more ideas.|{He} sat down and thought.|It was no use.|"
    "{He} almost gave up.]"
)
MEETING = (
    "[Just then|At that moment|Soon after|By chance] a~ {nature} {other} named {F} {way}. "
    '"[What is the matter|What is wrong|What happened|Are you all right|Why do you look so {feeling}]?" asked {F}.'
)
ASKING = (
    '"[Please help me,|Will you help me?|Can you help me?|I need help,]" said {N}, '
    "and told {F} [everything|the whole story|about it]."
)
AGREED = (
    '"[Of course|Gladly|With pleasure|Certainly]," said {F} and {sound}. "[Two heads are better than one|'
    'I have an idea|We can do it together|Let us try something new|I was once in the same trouble]."'
)
SOLVED = "So {N} and {F} {solution}. [It worked|That did it|And this time it went well|What luck]! {end}"
EVENING = (
    "[In the evening|That night|Afterwards], because nothing made {N} happier than {treat}, they [shared|enjoyed] some "
    "[at {N}'s home|at {F}'s home|by the fire|outside] and told each other stories about {topic} {evening}."
)
KEEPSAKE = "{F} gave {N} a~ {gift} [to remember the day|as a present|to keep|for good luck]."
MORAL = "{N} had learned that {lesson}. [From then on|From that day on|After that], {after}"
CLOSING = (
    "And {N} and {F} [stayed|were] friends [for ever|ever after|for the rest of their lives|from that day to this]."
)

REQUESTS = [
    "Tell me a tale.",
    "Please tell me a story.",
    "Can you tell me a bedtime story?",
    "Tell me a tale about a~ {kind}.",
    "Tell me a story about a~ {kind} named {N}.",
    "I want to hear a tale about {N}.",
    "A story about a~ {adjective} {kind}, please.",
    "Please tell me about {N} and {F}.",
    "Write a short tale about a~ {kind} and a~ {other}.",
]

QUESTIONS = [
    ("[Who is the tale about?|Who is the hero?]", "The tale is about {N}, a~ {size} {kind}."),
    ("[Where did {N} live?|Where was {N}'s home?]", "{N} lived {home}."),
    ("[What was {N} like?|What can you say about {N}?]", "{N} was {adjective}."),
    ("[What did {N} wear?|What clothes did {N} have?]", "{N} wore a~ {shade} {garment}."),
    ("[What made {N} happy?|What did {N} like best?]", "Nothing made {N} happier than {treat}."),
    ("[What did {N} do every {when}?|How did {N} spend every {when}?]", "Every {when} {N} {hobby}."),
    ("[What did {N} want?|What was {N}'s wish?]", "{N} wanted to {wish}."),
    ("[Why was {N} {feeling}?|What was the problem?]", "The problem was that {because}."),
    ("[What did {N} try first?|What was the first attempt?]", "First {he} {short1}."),
    ("[What did {N} try next?|What was the second attempt?]", "Then {he} {short2}."),
    ("[Who helped {N}?|Who was the friend?]", "It was a~ {nature} {other} named {F}."),
    ("[What did {N} and {F} do?|How was the problem solved?]", "They {solved}."),
    ("[What did {F} give {N}?|What was the gift?]", "{F} gave {N} a~ {gift}."),
    ("[What were the stories about?|What did they tell each other?]", "They told each other stories about {topic}."),
    ("[What did {N} learn?|What is the moral?]", "{N} learned that {lesson}."),
]


class Teller:
    """Draws uniform choices, counts their bits and fills templates from the slots of one tale."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.bits = 0.0
        self.slots: dict[str, str | list[str]] = {}

    def pick(self, options: list[T] | tuple[T, ...]) -> T:
        self.bits += math.log2(len(options))
        return options[self.rng.randrange(len(options))]

    def pick_from(self, options: list[T], count: int) -> list[T]:
        """`count` different ones, in the order in which they are told."""
        rest, taken = list(options), []
        for _ in range(count):
            taken.append(self.pick(rest))
            rest.remove(taken[-1])
        return taken

    def slot(self, name: str) -> str:
        """A slot's text: fixed when first used; a capital in the name gives the text a capital."""
        value = self.slots[name] if name in self.slots else self.slots[name[0].lower() + name[1:]]
        if name not in self.slots:
            text = value if isinstance(value, str) else self.slot(name[0].lower() + name[1:])
            return text[0].upper() + text[1:]
        if isinstance(value, list):
            value = self.slots[name] = self.fill(self.pick(value))
        elif "{" in value or "[" in value:
            value = self.slots[name] = self.fill(value)
        return value

    def fill(self, template: str) -> str:
        """Left to right: choices drawn, slots put in, a~ made a or an."""
        while match := CHOICE.search(template):
            template = template[: match.start()] + self.pick(match[1].split("|")) + template[match.end() :]
        text = SLOT.sub(lambda m: self.slot(m[1]), template)
        return re.sub(r"\b([Aa])~ (?=([aeio]|hon(?=est))?)", lambda m: m[1] + ("n " if m[2] else " "), text)


@dataclass(frozen=True)
class Document:
    """A tale, told at once (`request` is None) or as the answer to a request, with questions and answers after it."""

    tale: str
    bits: float
    request: str | None = None
    talk: tuple[tuple[str, str], ...] = ()

    def messages(self) -> list[tuple[str, str]]:
        """(role, text) in order; only for a document with a request."""
        assert self.request is not None
        turns = [("user", self.request), ("assistant", self.tale)]
        for question, answer in self.talk:
            turns += [("user", question), ("assistant", answer)]
        return turns


def people(t: Teller) -> None:
    """The hero and the friend. They differ in gender, so that a pronoun always has one reader."""
    girl = t.pick((True, False))
    own, others = (words.GIRLS, words.BOYS) if girl else (words.BOYS, words.GIRLS)
    kinds = [*words.KINDS, "girl" if girl else "boy"]
    kind = t.pick(kinds)
    hand, hands = words.KINDS.get(kind, words.CHILD)
    t.slots |= SHE if girl else HE
    t.slots |= {"kind": kind, "hand": hand, "hands": hands, "N": list(own), "F": list(others)}
    t.slots["other"] = [k for k in words.KINDS if k != kind]


def things(t: Teller) -> None:
    """Everything that a tale may need, drawn on first use."""
    trait, plot = t.pick(TRAITS), t.pick(PLOTS)
    hobbies = [habit for habit, _ in words.HOBBIES]
    t.slots |= trait._asdict() | plot.slots
    t.slots |= {name: getattr(plot, name) for name in ("wish", "start", "problem", "because", "end")}
    first, second = t.pick_from(plot.attempts, 2)
    way = t.pick(plot.ways)
    t.slots |= {"try1": first[0], "short1": first[1], "try2": second[0], "short2": second[1]}
    t.slots |= {"solution": way[0], "solved": way[1], "colour": words.COLOURS, "shade": words.COLOURS}
    t.slots |= {"size": words.SIZES, "home": words.HOMES, "garment": words.CLOTHES, "treat": words.TREATS}
    t.slots |= {
        "hobby": hobbies,
        "when": ["morning", "evening", "Sunday", "week", "day", "Friday", "afternoon", "spring"],
        "day": words.DAYS,
    }
    t.slots |= {"feeling": words.FEELINGS, "way": words.WAYS, "watcher": words.WATCHERS, "watch": words.WATCHES}
    t.slots |= {"evening": words.EVENINGS, "nature": words.NATURES, "smell": words.SMELLS, "topic": words.TOPICS}
    t.slots |= {"gift": words.GIFTS, "perch": words.PERCHES, "sound": words.SOUNDS}


def tell(t: Teller) -> str:
    """The tale, four paragraphs."""
    failed = [FIRST, t.pick((CRY, WATCHED)), SECOND, STUCK]
    met = [MEETING, "{refuse} {change}", ASKING, AGREED]
    ended = [SOLVED, EVENING, KEEPSAKE, MORAL, CLOSING]
    parts = [[t.pick(OPENINGS), PORTRAIT], [BEGINNING, *failed], met, ended]
    return "\n".join(" ".join(t.fill(sentence) for sentence in part) for part in parts)


def document(number: int, seed: int = 1, split: str = "train", chat: bool | None = None) -> Document:
    """Document `number` of a split; `chat` None leaves it to a coin. The splits draw from different streams."""
    if split not in SPLITS:
        raise ValueError(f"split: {SPLITS} expected, got {split!r}")
    t = Teller(random.Random(f"tales/{seed}/{split}/{number}"))
    if chat is None:
        chat = t.pick((True, False))
    people(t)
    things(t)
    request = t.fill(t.pick(REQUESTS)) if chat else None
    tale = tell(t)
    talk: list[tuple[str, str]] = []
    if chat:
        asked = t.pick_from(QUESTIONS, t.pick((2, 3, 4)))
        talk = [(t.fill(question), t.fill(answer)) for question, answer in asked]
    return Document(tale, t.bits, request, tuple(talk))


def main() -> None:
    parser = argparse.ArgumentParser(description="tales from a grammar")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--chat", action="store_true", help="with a request before and questions after")
    parser.add_argument("--bits", action="store_true", help="with the bits of the choices")
    args = parser.parse_args()
    for number in range(args.count):
        doc = document(number, args.seed, args.split, args.chat)
        for role, text in doc.messages() if doc.request else [("", doc.tale)]:
            print(f"{role}: {text}" if role else text)
        print(f"({doc.bits:.2f} bits)\n" if args.bits else "")


if __name__ == "__main__":
    main()
