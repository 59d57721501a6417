"""The weak spot of a hero: how it shows, how it stands in the way, how it is overcome, and what is learned.

Templates: {N} the hero's name, {he} {him} {his} {himself}, {F} the friend's name, [a|b] a free choice.
"""

from __future__ import annotations

from typing import NamedTuple


class Trait(NamedTuple):
    adjective: str
    show: str  # after the introduction
    refuse: str  # when the friend asks what is the matter
    change: str  # the turn
    lesson: str  # "learned that ..."
    after: str  # the last we hear of it


TRAITS = [
    Trait(
        "proud",
        "{He} never asked anyone for [help|advice|a favour], because {he} [wanted|liked] to do everything alone.",
        '"It is nothing," said {N}, and held {his} nose [high|in the air].',
        "But {he} could not do it alone, and {he} knew it. {N} swallowed {his} pride.",
        "asking for help is not a shame",
        "{N} still held {his} head high, but {he} was never too proud to ask.",
    ),
    Trait(
        "shy",
        "{He} hid [behind a tree|under a bush|in the corner] whenever a stranger [came near|said hello].",
        "{N} looked at the ground and said [nothing|not a word].",
        "{His} heart beat fast. Then {N} took a deep breath and [spoke up|lifted {his} eyes].",
        "a stranger can become a friend",
        "{N} was still quiet, but {he} did not hide any more.",
    ),
    Trait(
        "hasty",
        "{He} ran [everywhere|all day long] and never stopped to think [first|twice].",
        '"No time to talk!" [cried|shouted] {N}, and stumbled over {his} own feet.',
        "Then {N} sat down in the dust. For the first time that day, {he} stopped and thought.",
        "it is better to think before you run",
        "{N} still liked to run, but first {he} counted to [three|five|ten].",
    ),
    Trait(
        "stubborn",
        "Once {he} had made up {his} mind, [nobody|not even a storm] could change it.",
        '"My way is the right way," [said|muttered] {N}, and stamped on the ground.',
        'But {his} way had failed [again and again|every time]. "Perhaps there is another way," {N} said at last.',
        "there is more than one way to do a thing",
        "{N} still had strong ideas, but {he} listened to others too.",
    ),
    Trait(
        "grumpy",
        "{He} grumbled about the [sun|rain|wind|birds] and never said good morning.",
        '"Go away!" [growled|snapped] {N}.',
        "But {F} did not go away. {F} just sat down and waited, and {N} felt [ashamed|sorry for {his} words].",
        "a kind word costs nothing",
        "{N} grumbled now and then, but {he} always said good morning.",
    ),
    Trait(
        "boastful",
        "{He} told everyone that {he} was the [best|strongest|cleverest] in the whole [land|world].",
        '"I have nearly done it," [lied|boasted] {N}.',
        'It was not true, and {his} cheeks grew hot. "I have not done it at all," {N} said [softly|in a small voice].',
        "it is braver to tell the truth than to boast",
        "{N} still told fine stories, but now all of them were true.",
    ),
    Trait(
        "timid",
        "{He} was afraid of [thunder|spiders|the dark|loud noises] and never went far from home.",
        '{N} jumped with fright. "Who is there?" {he} [whispered|squeaked].',
        "When {he} saw how friendly {F} looked, {N} felt a little bit of courage [grow|wake up] inside {him}.",
        "you can be afraid and still be brave",
        "{N} was still afraid sometimes, but {he} went on all the same.",
    ),
    Trait(
        "lazy",
        "{He} slept until [noon|lunch|the afternoon] and left the work to others.",
        '"I am too tired," [yawned|moaned] {N}, and lay down on the grass.',
        "But lying on the grass changed nothing. {N} rubbed {his} eyes and got up [again|at last].",
        "work is light when it is shared",
        "{N} still enjoyed a good nap, but only when the work was done.",
    ),
    Trait(
        "selfish",
        "{He} kept all [the toys|the sweets|the best things] for {himself} and never shared.",
        '"This is my business, not yours," [said|hissed] {N}.',
        "Then {N} saw that {F} was ready to share [everything|all that {F} had], and it made {him} think.",
        "those who share are never poor",
        "{N} shared whatever {he} had, and it tasted twice as good.",
    ),
    Trait(
        "careless",
        "{He} dropped [cups|plates|eggs|keys], forgot doors and lost a [glove|button|sock] every week.",
        '"I did not pay attention," [sighed|admitted] {N}.',
        "This time {N} promised to take care, and tied a knot in {his} handkerchief to remember it.",
        "a little care saves a lot of trouble",
        "{N} still lost a button now and then, but {he} looked twice at everything that mattered.",
    ),
    Trait(
        "dreamy",
        "{He} looked at the clouds all day and forgot [the time|{his} chores|{his} supper].",
        "{N} was dreaming again and did not [hear|answer].",
        "{F} had to ask [twice|three times]. Then {N} shook the dream out of {his} head.",
        "a dream comes true when you wake up and begin",
        "{N} still dreamed a lot, but {he} kept {his} eyes open.",
    ),
    Trait(
        "bossy",
        "{He} told everyone what to do, from the [ants|bees|hens] to the [mayor|baker|king].",
        '"Do as I say and do it now!" [ordered|commanded] {N}.',
        '{F} raised an eyebrow and did not move. {N} tried again: "I am sorry. I mean please."',
        "a please opens more doors than an order",
        "{N} still had many plans, but {he} always said please.",
    ),
    Trait(
        "jealous",
        "{He} thought that the others had better [toys|coats|luck|friends] than {he} had.",
        '"Everything is easy for you," [said|complained] {N}.',
        '"Not at all," said {F}. "I have bad days too." {N} had never thought of that.',
        "everyone has good days and bad days",
        "{N} did not count what others had, because {he} had a friend.",
    ),
    Trait(
        "doubtful",
        "{He} was sure that [every plan|every trip|every game] would end badly.",
        '"It is hopeless," [groaned|mumbled] {N}. "I knew it."',
        "But {F} believed in it, and hope is easy to catch. {N} dried {his} eyes.",
        "nothing is hopeless as long as you try",
        "{N} still saw dark clouds, but now {he} looked for the sun behind them.",
    ),
    Trait(
        "impatient",
        "{He} could not wait for [anything|the kettle to boil|the seeds to grow|{his} turn].",
        '"It takes too long!" [wailed|complained] {N}, and kicked a stone.',
        'The stone hit a root and came right back. "All right," {N} said, "I will wait and do it well."',
        "good things need time",
        "{N} still tapped {his} foot now and then, but {he} had learned to wait.",
    ),
    Trait(
        "fussy",
        "Nothing was ever [clean|neat|fine|good] enough for {him}.",
        '"You will only make a mess," [sniffed|warned] {N}.',
        "Then {N} looked at {his} own {hands}, which were [muddy|dusty|sticky] all over, and had to laugh.",
        "a little mess does no harm",
        "{N} still liked things tidy, but {he} did not mind a little mud.",
    ),
]
