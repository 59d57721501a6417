"""What happens: a wish, a problem, attempts that fail, ways that work, and what comes of it.

Templates as in tales_traits.py; {hands} the hero's limbs, {colour} and the names under `slots` are drawn once a tale.
An attempt or a way is (clause after the subject, short form for the answer to a question).
"""

# ruff: noqa: E501 (a template is easier to read on one line)

from __future__ import annotations

from typing import NamedTuple


class Plot(NamedTuple):
    slots: dict[str, list[str]]
    wish: str  # after "wanted to"
    start: str  # how it began
    problem: str  # what went wrong
    because: str  # the same, in short
    attempts: list[tuple[str, str]]
    ways: list[tuple[str, str]]
    end: str


PLOTS = [
    Plot(
        {"tree": ["oak", "elm", "pine", "willow", "maple", "poplar"], "toy": ["kite", "balloon", "ball", "glider"]},
        "play with a new {colour} {toy}",
        "The wind was [strong|wild|playful], and the {colour} {toy} flew up [like a bird|higher and higher].",
        "Suddenly it got stuck in the top of a~ {tree}.",
        "the {colour} {toy} was stuck in a~ {tree}",
        [
            ("shook the trunk with both {hands}, but only [leaves|twigs|a nest] fell down", "shook the trunk"),
            ("jumped as high as {he} could, but the branches were [too high|out of reach]", "jumped for it"),
            ("threw a [stick|shoe|pine cone] at it, but that got stuck as well", "threw something at it"),
            (
                "tried to climb the {tree}, but the bark was [slippery|wet] and {he} slid down",
                "tried to climb the {tree}",
            ),
            (
                "shouted at the wind to blow it down, but the wind [did not care|blew the other way]",
                "shouted at the wind",
            ),
        ],
        [
            (
                "tied [two|three] poles together and lifted the {toy} down",
                "tied poles together and lifted the {toy} down",
            ),
            ("leaned a ladder against the {tree} and [fetched|freed] the {toy}", "used a ladder to fetch the {toy}"),
            ("stood on each other's shoulders and pulled the {toy} by its string", "stood on each other's shoulders"),
        ],
        "All afternoon the {colour} {toy} [danced|sailed|bounced] over the grass, and they took turns with it.",
    ),
    Plot(
        {
            "lost": ["ring", "key", "medal", "compass", "whistle", "locket", "marble", "watch", "thimble", "coin"],
            "giver": ["grandmother", "grandfather", "mother", "father", "aunt", "uncle"],
        },
        "find the {lost} that {his} {giver} had given {him}",
        "{He} put {his} {hands} where the {lost} should have been, but it was [gone|not there].",
        "The {lost} had slipped out through a hole and was lost.",
        "the {lost} was lost",
        [
            ("looked under the [bed|rug|table], but found only [dust|crumbs|an old sock]", "looked at home"),
            ("dug [up the garden|a deep hole], but found only [worms|stones|roots]", "dug in the ground"),
            (
                "searched the [hay|straw], but it made {him} [sneeze|cough] so much that {he} had to stop",
                "searched the barn",
            ),
            (
                "crawled through the [nettles|thorns], but they [stung|scratched] {him} badly",
                "crawled through the bushes",
            ),
            ("asked the fish in the [stream|pond], but they only blew bubbles", "asked the fish"),
        ],
        [
            (
                "walked back the same way step by step, and there lay the {lost} between two [roots|stones]",
                "walked back the same way",
            ),
            (
                "followed a magpie to its nest, and there the {lost} [sparkled|shone] among the feathers",
                "followed a magpie to its nest",
            ),
            (
                "lit a candle and looked into a [rabbit hole|dark ditch], and there the {lost} glittered",
                "looked with a candle",
            ),
        ],
        "Then they [mended|sewed up] the hole, and {his} {giver} was [happy|glad] to see the {lost} again.",
    ),
    Plot(
        {
            "water": ["river", "creek", "brook", "canal"],
            "feast": ["wedding", "party", "dance", "picnic", "concert", "parade"],
        },
        "go to a [big|merry|grand] {feast} on the other side of the {water}",
        "{He} [brushed|washed] {himself}, put on {his} {shade} {garment} and set out.",
        "But the flood had carried the bridge away, and the {water} was [wide|deep|fast].",
        "the bridge over the {water} was gone",
        [
            ("put one foot into the {water}, but it was [too cold|as cold as ice]", "tried to wade"),
            ("rolled a [rock|boulder] in, but it sank with a [splash|gurgle]", "rolled a rock into the water"),
            (
                "sat in a [bucket|barrel|washtub], but it spun round and round and [leaked|tipped over]",
                "tried to sail in a tub",
            ),
            ("took a long run and jumped, but landed in the [mud|weeds] near the bank", "tried to jump across"),
            ("called for the ferry, but the ferryman was [asleep|deaf|on holiday]", "called for the ferry"),
        ],
        [
            (
                "pushed a fallen [pine|birch] over the {water} and balanced across",
                "pushed a fallen tree over the {water}",
            ),
            ("built a raft of [logs|planks] and paddled over with a [broom|spade]", "built a raft"),
            (
                "threw a rope to the other side, tied it fast and [climbed|swung] across",
                "threw a rope to the other side",
            ),
        ],
        "They came to the {feast} just in time, with wet feet, and [danced|sang] until midnight.",
    ),
    Plot(
        {
            "cake": ["carrot", "apple", "cherry", "lemon", "honey", "chestnut"],
            "giver": ["grandmother", "grandfather", "mother", "father", "sister", "brother"],
        },
        "bake a~ {cake} cake for {his} {giver}",
        "{He} [took out|fetched] a bowl and a [wooden spoon|whisk] and began.",
        "But the sack of flour was [empty|full of holes|wet], and all the shops were closed.",
        "there was no flour",
        [
            (
                "ground some [acorns|dry leaves] instead, but the dough tasted [bitter|awful]",
                "ground something else instead",
            ),
            ("mixed sand with [water|milk], but it was just mud in a bowl", "mixed sand with water"),
            ("scraped the shelves, but there was hardly [a spoonful|a pinch]", "scraped the shelves"),
            ("knocked at the miller's door, but the miller was [away|fast asleep|ill]", "knocked at the miller's door"),
            ("looked for an easier recipe, but [mice|moths] had eaten the page", "looked for another recipe"),
        ],
        [
            ("picked ripe wheat and ground it between two [flat|heavy] stones", "ground wheat between two stones"),
            (
                "went from door to door, and each neighbour gave one [cup|handful] of flour",
                "asked every neighbour for a little flour",
            ),
            ("crushed oats and nuts with a [hammer|rolling pin] and baked with those", "baked with oats and nuts"),
        ],
        "The {cake} cake came out of the oven [golden|brown] and [soft|crisp], and {his} {giver} asked for a second slice.",
    ),
    Plot(
        {"bird": ["robin", "finch", "wren", "swallow", "cuckoo", "lark"]},
        "help a baby {bird} that had fallen out of its nest",
        "The baby {bird} sat in the [grass|moss|clover] and [cheeped|cried] for its mother.",
        "It could not fly yet, and the nest was high up under the roof of a [barn|church|stable].",
        "the baby {bird} could not get back to its nest",
        [
            ("threw it gently into the air, but it [fluttered|tumbled] straight down", "threw it into the air"),
            ("stacked [boxes|bricks] on top of each other, but the pile [fell over|wobbled too much]", "stacked boxes"),
            ("called the mother {bird}, but {his} voice only [scared|chased] her away", "called the mother"),
            (
                "built a new nest on the ground, but a cat [came sneaking|licked its lips] nearby",
                "built a nest on the ground",
            ),
            ("climbed the drainpipe, but it [creaked|bent] and {he} had to come down", "climbed the drainpipe"),
        ],
        [
            ("put the {bird} in a basket and pulled it up with a [rope|long cord]", "pulled it up in a basket"),
            ("asked the [farmer|carpenter] for a ladder and carried the {bird} up", "carried it up a ladder"),
            (
                "climbed the stairs to a small window and reached the nest from [inside|above]",
                "reached the nest from a window",
            ),
        ],
        "The mother {bird} sang her [loveliest|longest] song, and every spring she sang it again at {N}'s window.",
    ),
    Plot(
        {"boat": ["boat", "canoe", "ship", "ferry", "raft"], "prize": ["cup", "crown", "flag", "ribbon", "trophy"]},
        "win the silver {prize} in the boat race",
        "{He} built a~ {colour} {boat} with a [tall mast|square sail|curved bow].",
        "But as soon as it touched the water, the {boat} began to sink.",
        "the {boat} began to sink",
        [
            ("stuffed the cracks with [grass|paper|bread], but it washed out at once", "stuffed the cracks"),
            ("scooped the water out with a [cup|spoon], but more came in", "scooped the water out"),
            ("hung up a bigger sail, but the {boat} only [leaned over|sank faster]", "hung up a bigger sail"),
            ("took out the [bench|anchor], but it was still too heavy", "made it lighter"),
            ("painted it again, but paint does not stop [water|leaks]", "painted it again"),
        ],
        [
            ("melted [wax|resin] and brushed it over every crack", "closed every crack with wax"),
            ("tied empty [bottles|barrels] to both sides so that it floated", "tied floats to both sides"),
            ("nailed a [strong|fresh] board over the leak and tested it twice", "nailed a board over the leak"),
        ],
        "They rowed side by side and came in [first|second], and the silver {prize} stands on a shelf to this day.",
    ),
    Plot(
        {"plant": ["sunflower", "pumpkin", "tomato", "bean", "rose", "cucumber"]},
        "grow the tallest {plant} in the county",
        "{He} put a seed into the [black|soft] earth and [waited|watched] for weeks.",
        "But the little {plant} turned [pale|yellow] and hung its head.",
        "the {plant} was not growing",
        [
            ("pulled at it to make it longer, but a leaf [tore|came] off", "pulled at it"),
            ("poured [nine|twelve] cans of water over it, but it nearly drowned", "gave it too much water"),
            ("told it to hurry, but plants have no ears", "told it to hurry"),
            ("wrapped it in a [blanket|towel], but then it had no light", "wrapped it in a blanket"),
            ("fed it [candy|sausages|buttons], but that only brought the [ants|rats]", "fed it the wrong food"),
        ],
        [
            ("moved it from the [shade|cellar wall] into the sun and gave it one cup a day", "moved it into the sun"),
            ("pulled out the weeds around it and dug in some [dung|compost]", "pulled out the weeds"),
            ("found a [fat|greedy] caterpillar under the leaves and carried it away", "carried a caterpillar away"),
        ],
        "By [July|September] the {plant} was taller than a [door|horse], and people came from far away to see it.",
    ),
    Plot(
        {
            "load": ["hay", "apples", "wood", "stones", "potatoes", "cabbages", "milk", "wool"],
            "car": ["cart", "wagon", "sledge", "carriage"],
        },
        "bring a {car} full of {load} to the market",
        "{He} loaded the {car} to the [brim|top] and rolled off, singing.",
        "Halfway there it sank into the mud and would not move.",
        "the {car} was stuck in the mud",
        [
            ("pushed with all {his} might, but {his} feet [slid|slipped] away", "pushed with all might"),
            (
                "pulled the rope until it [snapped|broke], and {he} sat down with a bump",
                "pulled the rope until it broke",
            ),
            ("dug around it with a [spoon|stick], but the mud flowed back", "dug around it"),
            ("waited for the sun to dry the road, but it began to [rain|hail|snow]", "waited for the sun"),
            ("scolded the {car}, but it did not [listen|budge]", "scolded the {car}"),
        ],
        [
            (
                "laid [branches|flat stones|straw] under the wheels and pushed together",
                "laid something firm under the wheels and pushed",
            ),
            ("unloaded the {load}, pulled the {car} out and loaded it again", "unloaded the {load} first"),
            ("used a long beam as a lever and heaved on the count of [three|four]", "used a long beam as a lever"),
        ],
        "At the market all the {load} sold before [noon|three o'clock], and they split the money fairly.",
    ),
    Plot(
        {"hut": ["hut", "cabin", "shed", "treehouse"], "cover": ["leaves", "straw", "bark", "reeds", "moss"]},
        "build a {hut} before the winter",
        "{He} [hammered|sawed|worked] for days and covered the roof with {cover}.",
        "But in the first storm the roof of the {hut} [blew off|fell in], and rain poured in.",
        "the roof of the {hut} was broken",
        [
            ("piled up more {cover}, but the next gust took it all", "piled up more {cover}"),
            ("held an umbrella over it, but it [folded|turned] inside out", "held an umbrella over it"),
            ("tied it down with [wool|ribbons], but they were too [weak|thin]", "tied it down with something weak"),
            ("glued it with [porridge|syrup], but the birds ate the glue", "glued it with food"),
            ("asked the storm to stop, but it only roared [louder|again]", "asked the storm to stop"),
        ],
        [
            ("cut [straight|thick] beams and nailed every one of them twice", "nailed strong beams"),
            ("wove the {cover} into mats and weighed them down with stones", "wove mats and weighed them down"),
            ("made the roof [steep|pointed] so that the wind slid over it", "made the roof steep"),
        ],
        "When the snow came, it was warm and dry inside the {hut}, and there was room for [two|guests].",
    ),
    Plot(
        {"skill": ["swim", "skate", "ski", "whistle", "juggle", "dive"]},
        "learn to {skill} like the big ones",
        "All the others could {skill}, and they made it look [easy|simple|like magic].",
        "But whenever {N} tried to {skill}, it went wrong.",
        "{N} could not {skill}",
        [
            ("watched from far away, but nobody learns by watching alone", "watched from far away"),
            ("read a thick book about it, but the book was [boring|upside down]", "read a book about it"),
            ("tried it with closed eyes, but got a bump on the [head|nose|elbow]", "tried it with closed eyes"),
            ("bought a [magic|lucky] feather, but it was only a feather", "bought a feather for luck"),
            ("practised on the [roof|kitchen table], but was sent down at once", "practised in the wrong place"),
        ],
        [
            ("practised one small step each [hour|evening], hand in hand", "practised one small step at a time"),
            ("started again from the beginning, [slowly|calmly], and laughed at every slip", "started again slowly"),
            ("made a game of it, and the [loser|winner] had to tell a joke", "made a game of it"),
        ],
        "After [six|seven|eight] days {N} could {skill}, not like the big ones, but very nearly.",
    ),
    Plot(
        {
            "box": ["chest", "trunk", "cupboard", "drawer", "casket"],
            "find": ["map", "diary", "puppet", "mirror", "drum", "crystal"],
        },
        "open the dusty {box} in the [attic|cellar]",
        "{He} was sure that there was a treasure in the {box}, for it [rattled|was very heavy].",
        "But the {box} was locked, and there was no key.",
        "the {box} was locked",
        [
            ("shook the {box}, but it only [rattled|clinked]", "shook the {box}"),
            ("picked the lock with a [hairpin|fish bone|fork], but it bent", "picked the lock"),
            ("hit the lid with a [pan|brick], but hurt {his} own {hand}", "hit the lid"),
            ("said every magic word that {he} knew, but the lid stayed shut", "said magic words"),
            ("oiled the lock with [butter|soap], but that only made it [greasy|shiny]", "oiled the lock"),
        ],
        [
            ("turned the {box} over and found the key under the bottom", "found the key under the bottom"),
            ("unscrewed the [rusty|old] hinges and opened it from behind", "unscrewed the hinges"),
            ("asked the [locksmith|clockmaker], who had a key for every lock", "asked someone who had many keys"),
        ],
        "In the {box} lay a~ {colour} {find}, and they never grew tired of it.",
    ),
    Plot(
        {"light": ["lantern", "lamp", "torch", "candle"], "passage": ["cave", "forest", "tunnel", "swamp"]},
        "get home through the {passage} before night",
        "{He} carried a {light} and told {himself} [a joke|a riddle|that all was well].",
        "In the middle of the {passage} a gust of wind blew out the {light}, and it was pitch dark.",
        "the {light} had gone out in the {passage}",
        [
            ("walked straight on, but bumped into a [stump|wall|pillar]", "walked straight on"),
            ("rubbed two sticks together, but they were [damp|too smooth]", "rubbed two sticks together"),
            ("shouted for help, but only the echo answered", "shouted for help"),
            (
                "felt along the ground with {his} {hands}, but touched something [cold|slimy|furry]",
                "felt along the ground",
            ),
            ("waited for the moon, but it hid behind [clouds|a mountain]", "waited for the moon"),
        ],
        [
            ("filled a [jar|glass] with glowworms and followed their light", "followed the light of glowworms"),
            ("listened for the [village bell|sound of the mill] and walked towards it", "followed a sound"),
            ("held on to a long string and took turns going ahead", "held on to a string"),
        ],
        "Soon they saw the [windows|chimneys] of home, and the {light} burned on the table again.",
    ),
    Plot(
        {"crop": ["pumpkin", "melon", "turnip", "cabbage", "marrow"], "event": ["fair", "fete", "contest", "festival"]},
        "show the giant {crop} at the {event}",
        "The {crop} was as big as a [cow|carriage], and {N} [measured|patted] it every day.",
        "But on the day of the {event} it was so heavy that it could not be moved.",
        "the {crop} was too heavy",
        [
            ("tugged at the stem, but it [broke|came] off", "tugged at the stem"),
            ("leaned against it, but it did not roll [an inch|at all]", "leaned against it"),
            ("tied it to [a goat|two snails|a kite], but that was no use", "tied it to something too weak"),
            ("tried to lift it, but {his} back [cracked|ached]", "tried to lift it"),
            ("tickled it with a feather, as if a {crop} could [walk|laugh]", "tickled it"),
        ],
        [
            ("rolled it over round logs, one after another", "rolled it over round logs"),
            ("brought the [judges|whole crowd] to the garden instead", "brought the people to the garden"),
            (
                "gathered [ten|twenty] friends, and everyone took one corner of a big sheet",
                "carried it in a big sheet with many friends",
            ),
        ],
        "The {crop} won a~ {colour} rosette, and there was soup for [the whole street|everybody] for a week.",
    ),
    Plot(
        {"song": ["song", "lullaby", "ballad", "carol"], "stage": ["school", "theatre", "palace", "square"]},
        "sing a {song} at the {stage}",
        "{He} had learned all the [verses|words] and sang them to the [chickens|trees|mirror].",
        "But on the day of the show {his} voice was gone, and only a [croak|whisper] came out.",
        "{N} had lost {his} voice",
        [
            ("drank [vinegar|cold water], but it made {him} cough", "drank something cold"),
            ("tried to sing very loud, but it [hurt|sounded like a saw]", "tried to sing very loud"),
            ("looked for the voice in {his} [pocket|basket], but a voice is not kept there", "looked for the voice"),
            ("swallowed a [spoonful|mouthful] of pepper, but only sneezed", "swallowed pepper"),
            ("stood on {his} head, but the voice did not [fall|come] out", "stood on {his} head"),
        ],
        [
            ("drank hot [elder|lime] tea and kept silent for an hour", "drank hot tea and kept silent"),
            ("changed the plan: {N} played the [fiddle|harp|flute] and {F} sang", "played and sang together"),
            ("taught the {song} to the whole [choir|crowd] with signs", "taught the {song} to others with signs"),
        ],
        "The {song} was so beautiful that the [king|teacher|cook] wept, and the clapping did not end.",
    ),
    Plot(
        {"baby": ["chick", "lamb", "duckling", "calf", "foal", "gosling"]},
        "bring home the {baby} that had run away",
        "The {baby} had slipped through the [gate|hedge], and it was getting [dark|late].",
        "Its tracks ended at the edge of a [wide|thick] bog, and the {baby} was nowhere to be seen.",
        "the {baby} had run away",
        [
            ("called its name, but no answer came", "called its name"),
            ("climbed a [hill|gatepost] to look around, but the fog was too thick", "climbed up to look around"),
            ("put out a [dish|bowl] of food, but a [crow|rat] ate it", "put out some food"),
            ("followed a rustle in the ferns, but it was just a [lizard|breeze]", "followed a rustle"),
            ("asked a scarecrow, but scarecrows [do not talk|only point]", "asked a scarecrow"),
        ],
        [
            ("stood still and listened, and heard a small cry from a [hollow|ditch]", "stood still and listened"),
            ("rang the [dinner|supper] bell, and the {baby} came running", "rang the bell"),
            ("followed the tufts of [wool|fluff] on the thorns, one by one", "followed the tufts on the thorns"),
        ],
        "The {baby} was [hungry|cold] but safe, and it did not leave {N}'s side on the way home.",
    ),
    Plot(
        {"pail": ["bucket", "kettle", "jug", "basket"], "shape": ["deep", "old", "round", "stone"]},
        "fetch water from the {shape} well",
        "All the [flowers|animals|neighbours] were thirsty, for it had not rained for [weeks|a month].",
        "But the rope broke, and the {pail} fell to the bottom of the well.",
        "the {pail} had fallen into the well",
        [
            ("fished for it with a bent [nail|pin], but it was too deep", "fished for it with a bent nail"),
            ("tied [grass|socks|ribbons] into a rope, but the knots came loose", "tied a rope of weak things"),
            ("let down a [magnet|spoon], but it stuck to the wall", "let something down on a thread"),
            ("begged the frog in the well to bring it, but the frog was [lazy|rude]", "begged the frog to bring it"),
            ("tried to drink from a puddle instead, but it was [brown|full of mud]", "tried a puddle instead"),
        ],
        [
            ("made a new rope of [three|four] strands with a hook at the end", "made a new rope with a hook"),
            ("turned the crank together, and {F} went down [holding|sitting on] the hook", "turned the crank together"),
            ("dug a [ditch|channel] from the spring, so that nobody needed the well", "dug a ditch from the spring"),
        ],
        "The water was [clear|sweet|fresh], and nobody in the whole place was thirsty any more.",
    ),
]
