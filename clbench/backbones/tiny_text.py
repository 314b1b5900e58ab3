"""Generated text that the embedded language model is pre-trained on.

Short documents in many forms: stories, lists, sums, programs, dialogues, German sentences, copies.
They share words with the tasks of the embedded suite and teach what a reader of any language knows
(spelling, copying, looking up, small numbers, kinds of things), but none of its tasks: no document has
a task's instruction, cue or wording, and no label A, B or C stands for an opinion anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clbench import words
from clbench.words import Draws, article

Maker = Callable[[Draws], str]


def documents(seed: int) -> Iterator[str]:
    """An endless stream of documents, each of at most 250 UTF-8 bytes; the same for the same seed."""
    draws = Draws("tiny text", seed)
    while True:
        yield draws.pick(_MAKERS)(draws)


def corpus(size: int, seed: int) -> list[str]:
    """The first documents of the stream that together hold `size` UTF-8 bytes or a few more."""
    held, found = 0, []
    for document in documents(seed):
        found.append(document)
        held += len(document.encode())
        if held >= size:
            break
    return found


def _story(draws: Draws) -> str:
    name, place, thing = draws.pick(words.NAMES), draws.pick(words.PLACES), draws.pick(words.THINGS)
    mood = draws.pick(tuple(words.ATTITUDES))
    verb, told = draws.pick(words.ATTITUDES[mood]), draws.pick(words.NAMES)
    end = {"good": "is glad", "bad": "is sad", "plain": "goes home"}[mood]
    opening = draws.pick(
        (
            f"{name} goes to the {draws.pick(words.PLACE_QUALITIES)} {place} with a {thing}.",
            f"There is a {place}. It is {draws.pick(words.PLACE_QUALITIES)}. {name} has a {thing}.",
            f"{draws.pick(words.TIMES)} {name} is at the {place} with {told}.",
        )
    )
    return f"{opening} {name} {verb} the {place}. Then {name} {end}. {told} has the {thing}."


def _news(draws: Draws) -> str:
    office, money = draws.pick(words.INSTITUTIONS), draws.pick(words.MONEY)
    mood = draws.pick(tuple(words.ATTITUDES))
    verb = draws.pick(words.ATTITUDES[mood])
    end = {"good": "So all is well", "bad": "So all is bad", "plain": "So all is as before"}[mood]
    quality, other = draws.some(words.MONEY_QUALITIES, 2)
    return f"The {money} were {other} and are {quality}. The {office} {verb} {money}. {end} for the {office}."


def _lookup(draws: Draws) -> str:
    owners, things = draws.some(words.NAMES, 3), draws.some(words.THINGS, 3)
    facts = " ".join(f"{owner} has a {thing}." for owner, thing in zip(owners, things, strict=True))
    asked = draws.some(range(3), 2)
    pairs = [
        draws.pick((f"Who has the {things[i]}? {owners[i]}.", f"What has {owners[i]}? A {things[i]}.")) for i in asked
    ]
    return f"{facts} {' '.join(pairs)}"


def _hands(draws: Draws) -> str:
    name, other = draws.some(words.NAMES, 2)
    one, two = draws.some(words.THINGS, 2)
    gain, loss = draws.pick(words.GAINS), draws.pick(words.LOSSES)
    has, lacks = f"{name} has the {one}", f"{name} has no {one}"
    return draws.pick(
        (
            f"{name} {gain} a {one}, so {has}. {other} {loss} a {two}, so {other} has no {two}.",
            f"{name} {loss} the {one}. Now {lacks}. Then {name} {gain} a {one}. Now {has}.",
            f"First {has}. Then {name} {loss} it. Does {name} have it? No. {other} {gain} one. Does {other}? Yes.",
        )
    )


def _sum(draws: Draws) -> str:
    first, second = draws.number(1, 9), draws.number(1, 9)
    total, noun = first + second, draws.pick(words.THINGS)
    return draws.pick(
        (
            f"{first} + {second} = {total}",
            f"{first} plus {second} is {total}",
            f"{total} - {second} = {first}",
            f"{total} minus {second} is {first}",
            f"{first} {noun}s + {second} {noun}s = {total} {noun}s",
            f"{total} {noun}s - {second} {noun}s = {first} {noun}s",
            f"{second} more than {first}: {total}",
            f"{second} less than {total}: {first}",
            f"Put {first} {noun}s with {second} {noun}s, that makes {total}",
            f"Take {second} {noun}s from {total} {noun}s, that leaves {first}",
        )
    )


def _sums(draws: Draws) -> str:
    return ". ".join(_sum(draws) for _ in range(4)) + "."


def _counting(draws: Draws) -> str:
    start, length = draws.number(0, 15), draws.number(4, 10)
    noun = draws.pick(words.THINGS)
    up = [str(number) for number in range(start, start + length)]
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[start : start + length]
    return draws.pick(
        (
            f"Count up: {' '.join(up)}",
            f"Count down: {' '.join(reversed(up))}",
            f"{', '.join(f'{number} {noun}s' for number in up[:6])}",
            f"Letters: {' '.join(letters)}",
            f"{noun} " * length + f"is {length} {noun}s",
        )
    ).strip()


def _any_words(draws: Draws, count: int) -> list[str]:
    pools = (words.NAMES, words.PLACES, words.THINGS, words.MONEY, words.ACTIONS, *words.FAMILIES.values())
    return [draws.pick(draws.pick(pools)) for _ in range(count)]


def _copy(draws: Draws) -> str:
    text = " ".join(_any_words(draws, draws.number(2, 7)))
    noise = "".join(draws.pick("abcdefghijklmnopqrstuvwxyzäöüß0123456789 ") for _ in range(draws.number(6, 24)))
    return draws.pick((f"Say it again: {text} | {text}", f"{text}\n{text}", f"{noise} = {noise}\n{noise}"))


def _change(draws: Draws) -> str:
    before = draws.some((*words.THINGS, *words.PLACES), draws.number(3, 6))
    place = draws.number(0, len(before) - 1)
    new = draws.pick(words.NAMES)
    after = [*before[:place], new, *before[place + 1 :]]
    return f"{before[place]} becomes {new}: {' '.join(before)} -> {' '.join(after)}"


def _family(draws: Draws) -> str:
    kind = draws.pick(tuple(words.FAMILIES))
    some = draws.some(words.FAMILIES[kind], 3)
    return draws.pick(
        (
            f"{article(some[0]).capitalize()} is {article(kind)}. {article(some[1]).capitalize()} is {article(kind)}.",
            f"Some {kind}s: {', '.join(some)}.",
            f"What is {article(some[0])}? It is {article(kind)}. And {article(some[1])}? Also {article(kind)}.",
            f"{some[0]}, {some[1]} and {some[2]} belong to the {kind}s.",
        )
    )


def _odd_list(draws: Draws) -> str:
    kinds = draws.some(tuple(words.FAMILIES), 3)
    members = [draws.pick(words.FAMILIES[kind]) for kind in kinds]
    numbered = draws.pick(("123", "789", "XYZ", "KLM", "ABC"))
    shown = draws.pick(("({}) {}", "{}: {}", "{} {}"))
    line = ", ".join(shown.format(mark, member) for mark, member in zip(numbered, members, strict=True))
    ends = [
        draws.pick((f"The {kind} is {mark}, the {member}.", f"{mark} is {member}, {article(kind)}."))
        for kind, mark, member in (
            (kinds[i], numbered[i], members[i]) for i in draws.some(range(3), draws.number(1, 3))
        )
    ]
    return f"{line}. {' '.join(ends)}"


def _talk(draws: Draws) -> str:
    first, second = draws.some(words.NAMES, 2)
    action, place = draws.pick(words.ACTIONS), draws.pick((*words.PLACES, *words.THINGS))
    return draws.pick(
        (
            f"{first}: {draws.pick(words.CHATTER)}\n{second}: {draws.pick(words.CHATTER)}\n{first}: Bye.",
            f"{first}: Who will {action} the {place}?\n{second}: Not I.\n{first}: Then I {action} it.",
            f"I {action} the {place}, you {action} the {place}, and {first} {action}s the {place}.",
            f"{first} {action}s a {place} and {second} {draws.pick(words.ACTIONS)}s a {draws.pick(words.THINGS)}.",
            f"{first} asks {second} to {action} the {place}. Now {second} {action}s the {place}.",
        )
    )


def _program(draws: Draws) -> str:
    one, two, three = draws.some((*words.THINGS, *words.PLACES), 3)
    small, great = draws.number(0, 9), draws.number(0, 9)
    sign, call = draws.pick("+-*"), draws.pick(words.ACTIONS)
    return draws.pick(
        (
            f"{one} = {small}\n{two} = {great}\n{three} = {one} {sign} {two}\nprint ( {three} )",
            f"def {call} ( {one} ) :\n{two} = {one} {sign} {small}\nreturn {two}",
            f"while {one} < {great} :\n{one} = {one} + 1\nprint ( {one} )",
            f"from {one} import {two} , {three}\n{two} ( {small} )\n{three} ( {great} )",
            f"{one} = [ ]\n{one} . append ( {two} )\n{one} . append ( {three} )",
            f"for {one} in {one}s :\n{call} ( {one} )\nif {two} == {small} :\n{call} ( {two} )",
            f"{call} ( {one} , {small} ) ; {call} ( {two} , {small} ) ; {call} ( {three} , {small} )",
        )
    )


def _german(draws: Draws) -> str:
    deeds, qualities = (*words.DEEDS, *words.DEEDS.values()), (*words.QUALITIES, *words.QUALITIES.values())
    moments = (*words.MOMENTS, *words.MOMENTS.values())
    subject, other = (f"{article_} {noun}" for article_, noun in map(str.split, draws.some(words.SUBJECTS, 2)))
    deed, goods, quality, moment = (draws.pick(pool) for pool in (deeds, words.GOODS, qualities, moments))
    low = subject[0].lower() + subject[1:]
    kind, noun = subject.split()
    return draws.pick(
        (
            f"Heute {deed} {low} {goods}. {other} {draws.pick(deeds)} {draws.pick(words.GOODS)}.",
            f"{kind} {quality} {noun} ist da. {other} ist {moment} hier und {deed} {goods}.",
            f"{moment.capitalize()} {deed} {low} {goods}, und {moment} ist es gut.",
            f"Wer {deed} {goods}? {subject}. Wo ist {low}? {draws.pick(('Hier', 'Dort', 'Im Haus'))}.",
            f"{kind} {quality} {noun} sagt: {other} {deed} {goods}. Also {deed} {other[0].lower()}{other[1:]} {goods}.",
        )
    )


_MAKERS: tuple[Maker, ...] = (
    *(_story, _news, _lookup, _hands, _sums, _sums, _sums, _counting, _copy, _copy, _change),
    *(_family, _odd_list, _odd_list, _odd_list, _talk, _talk, _program, _program, _german, _german),
)
"""Each is drawn equally often; some stand here more than once."""
