"""Where a tale breaks the tales' own rules, as far as patterns can tell."""

from __future__ import annotations

import re

from tales_words import BOYS, GIRLS

NAMES = {*GIRLS, *BOYS}
TRIED = re.compile(r"(?:First|At first|To begin with,|Then|Next|After that,|A little later) s?he ([a-z' ]+?)[,.]")
OTHERS = ("every spring she sang it",)  # pronouns of somebody else


def slips(text: str) -> list[str]:
    """The rules that a tale breaks: hero, friend and treat of the beginning are those of the end, nobody else has a
    name, the second attempt is another than the first, one pronoun goes through."""
    end = re.search(r"And (\w+) and (\w+) (?:were|stayed) friends", text)
    if not end:
        return ["no ending"]
    found = []
    if text.count(end[1]) < 6 or f"{end[1]} wanted to" not in text:
        found.append("hero")
    if f"named {end[2]} " not in text:
        found.append("friend")
    if {name for name in re.findall(r"\b[A-Z][a-z]+\b", text) if name in NAMES} != {end[1], end[2]}:
        found.append("names")
    treats = re.findall(r"happier than ([a-z ]+)[.,]", text)
    if len(treats) != 2 or treats[0] != treats[1]:
        found.append("treat")
    tried = TRIED.findall(text)
    if len(tried) > len(set(tried)):
        found.append("attempts")
    for other in OTHERS:
        text = text.replace(other, "")
    if re.search(r"\b[Ss]he\b", text) and re.search(r"\b[Hh]e\b", text):
        found.append("pronoun")
    return found
