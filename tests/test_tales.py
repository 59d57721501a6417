"""The grammar of the tales: no two alike, reproducible, sound English as far as rules tell, bits counted."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
sys.path.insert(0, str(WEIGHTS))

import tales  # noqa: E402
import tales_words  # noqa: E402
from slips import TRIED, slips  # noqa: E402
from tales_plots import PLOTS  # noqa: E402
from tales_traits import TRAITS  # noqa: E402

HER = {"she", "her", "hers", "herself"}
HIS = {"he", "him", "his", "himself"}


@pytest.fixture(scope="module")
def docs() -> list[tales.Document]:
    return [tales.document(number) for number in range(2000)]


def texts(doc: tales.Document) -> list[str]:
    return [text for _, text in doc.messages()] if doc.request else [doc.tale]


def templates() -> list[str]:
    """Every template of the grammar, from its tables."""
    found = [value for value in vars(tales).values() if isinstance(value, str) and "{N}" in value]
    found += [*tales.OPENINGS, *tales.REQUESTS, *(part for pair in tales.QUESTIONS for part in pair)]
    found += [field for trait in TRAITS for field in trait]
    for plot in PLOTS:
        found += [plot.wish, plot.start, plot.problem, plot.because, plot.end]
        found += [part for pair in (*plot.attempts, *plot.ways) for part in pair]
    return found


def test_no_two_alike(docs: list[tales.Document]) -> None:
    assert len({doc.tale for doc in docs}) == 2000


def test_same_seed_same_tales_other_seed_other_tales() -> None:
    command = [sys.executable, str(WEIGHTS / "tales.py"), "--count", "3", "--bits"]
    runs = [
        subprocess.run([*command, "--seed", seed], capture_output=True, text=True, check=True).stdout for seed in "112"
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert all(tales.document(number, 1, chat=False).tale in runs[0] for number in range(3))


def test_the_heldout_tales_are_not_in_the_training_split(docs: list[tales.Document]) -> None:
    heldout = {tales.document(number, split="heldout").tale for number in range(500)}
    assert len(heldout) == 500
    assert heldout.isdisjoint(doc.tale for doc in docs)
    with pytest.raises(ValueError, match="split"):
        tales.document(0, split="test")


def test_small_vocabulary(docs: list[tales.Document]) -> None:
    seen = Counter(word.lower() for doc in docs for text in texts(doc) for word in re.findall(r"[A-Za-z]+", text))
    assert 1500 < len(seen) < 2200


def test_form(docs: list[tales.Document]) -> None:
    """Slots filled, a or an, capitals, quotation marks in pairs, four paragraphs."""
    for doc in docs:
        assert doc.tale.count("\n") == 3
        for text in texts(doc):
            assert not re.search(r"[][{}|~_]|  | [.,!?]", text), text
            assert not re.search(r"\b[Aa] (?:[aeio]|honest|hour)", text), text
            assert not re.search(r"\b[Aa]n (?!hour|honest|umbrella)[^aeio]", text), text
            assert not re.search(r"[.!?] [a-z]", text), text
            for line in text.split("\n"):
                assert re.match(r"[A-Z\"]", line), line
                assert line.endswith((".", "?", "!", '"')), line
                assert line.count('"') % 2 == 0, line


def test_pronouns_agree(docs: list[tales.Document]) -> None:
    """Outside of what the hero's relatives, birds and ferrymen do, every pronoun is the hero's, and of one gender."""
    for doc in docs:
        name = next(w for w in re.findall(r"[A-Z][a-z]+", doc.tale) if w in tales_words.GIRLS or w in tales_words.BOYS)
        own, other = (HER, HIS) if name in tales_words.GIRLS else (HIS, HER)
        tale = re.sub(
            r"the mother [^.]*\.|mother (?:robin|finch|wren|swallow|cuckoo|lark)[^.]*\.",
            "",
            doc.tale,
            flags=re.IGNORECASE,
        )
        found = {word.lower() for word in re.findall(r"[A-Za-z]+", tale)}
        assert found & own, doc.tale
        assert not found & other, doc.tale


def test_the_past_stays_the_past(docs: list[tales.Document]) -> None:
    """Outside speech and sayings, no sentence of the told story begins in the present tense."""
    for doc in docs:
        told = re.sub(r'"[^"]*"', "", doc.tale)
        assert not re.search(r"\b[Ss]?[Hh]e (?:is|has|wants|goes|says|does|sees|tries|feels)\b", told), told


def test_ends_follow_from_beginnings(docs: list[tales.Document]) -> None:
    """The treat, the hero and the friend of the beginning are those of the end."""
    for doc in docs:
        treat = re.search(r"happier than ([a-z ]+)\.", doc.tale)
        assert treat
        assert doc.tale.count(treat[1]) >= 2
        hero, friend = re.search(r"And (\w+) and (\w+) (?:were|stayed) friends", doc.tale).groups()  # type: ignore[union-attr]
        assert doc.tale.count(hero) > 5
        assert f"named {friend} " in doc.tale


def test_answers_are_right(docs: list[tales.Document]) -> None:
    asked: Counter[str] = Counter()
    for doc in docs:
        for question, answer in doc.talk:
            asked[question.split()[0]] += 1
            if match := re.fullmatch(r"(\w+) wore (an? .*)\.", answer):
                garment = match[2].split(" ", 1)[1]
                assert re.search(rf"(?:always wore an?|Everybody knew \w+) {garment}\.", doc.tale)
            elif match := re.fullmatch(r"It was (\w+), (an? .*)\.", answer):
                assert f"{match[2]} named {match[1]} " in doc.tale
            elif match := re.fullmatch(r"(\w+) lived (.*)\.", answer):
                assert match[2] in doc.tale
            elif match := re.fullmatch(r"(\w+) wanted to (.*)\.", answer):
                assert answer in doc.tale
            elif match := re.fullmatch(r"(\w+) gave (\w+) (an? .*)\.", answer):
                assert answer[:-1] in doc.tale
    assert asked.total() > 500


def test_alternatives_differ() -> None:
    """Two alternatives of a choice never give the same text: a bit that the text does not show would be counted."""
    for template in templates():
        for match in tales.CHOICE.finditer(template):
            options = match[1].split("|")
            assert len(options) == len(set(options)) > 1, template
    for name, table in vars(tales_words).items():
        if name.isupper():
            assert len(table) == len(set(table)), name


def test_slots_do_not_collide() -> None:
    """A plot's own slots and a trait's hide none of the others: as many names as the parts have together."""
    source = Path(tales.__file__).read_text()
    shared = set(re.findall(r'"(\w+)":', source)) | set(re.findall(r'slots\["(\w+)"\]', source))
    shared |= {"wish", "start", "problem", "because", "end"}
    for plot in PLOTS:
        assert not set(plot.slots) & (shared | set(TRAITS[0]._fields))
    assert not set(TRAITS[0]._fields) & shared


def test_bits_are_those_of_the_choices() -> None:
    """Recounted from the draws themselves, and as many as the draws need: log2 of their product."""
    for number in range(50):
        doc = tales.document(number)
        sizes: list[int] = []

        class Counting(random.Random):
            def randrange(self, start: int, *rest: int) -> int:  # type: ignore[override]
                sizes.append(start)  # noqa: B023
                return super().randrange(start, *rest)

        original = tales.random.Random
        try:
            tales.random.Random = Counting  # type: ignore[misc]
            again = tales.document(number)
        finally:
            tales.random.Random = original  # type: ignore[misc]
        assert again == doc
        assert doc.bits == pytest.approx(math.log2(math.prod(sizes)))


def test_a_slot_is_drawn_once_and_only_when_needed() -> None:
    teller = tales.Teller(random.Random(5))
    tales.people(teller)
    tales.things(teller)
    before = teller.bits
    first, second = teller.fill("{treat}/{treat}").split("/")
    assert first == second
    assert teller.bits - before == pytest.approx(math.log2(len(tales_words.TREATS)))


def test_the_rules_that_sampled_tales_are_held_to(docs: list[tales.Document]) -> None:
    """The grammar keeps them all; each is broken by one word that does not fit."""
    assert not [found for doc in docs if (found := slips(doc.tale))]
    tale = next(doc.tale for doc in docs if " fox " in doc.tale and " he " in doc.tale and "\nOne " in doc.tale)
    hero, friend = re.findall(r"And (\w+) and (\w+) (?:were|stayed) friends", tale)[0]
    treat = re.findall(r"happier than ([a-z ]+)\.", tale)[0]
    assert slips(tale.replace("friends", "foes")) == ["no ending"]
    assert "hero" in slips(tale.replace(f"{hero} wanted", f"{friend} wanted"))
    assert "friend" in slips(tale.replace(f"named {friend}", f"named {hero}"))
    first, second = TRIED.findall(tale)
    assert slips(tale.replace(second, first)) == ["attempts"]
    assert slips(tale.replace(f"said {hero}", "said Adam" if "Adam" not in tale else "said Ben")) == ["names"]
    assert slips(tale.replace(f"happier than {treat},", "happier than cold soup,")) == ["treat"]
    assert slips(tale.replace(" he ", " she ", 1)) == ["pronoun"]
