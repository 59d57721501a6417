"""Word tables of the tales: who there is, where they live, what they eat. Every line was written for this project."""

# ruff: noqa: E501 (a template is easier to read on one line)

from __future__ import annotations

GIRLS = [
    "Anna",
    "Bella",
    "Clara",
    "Daisy",
    "Ella",
    "Fern",
    "Grace",
    "Hazel",
    "Iris",
    "Julia",
    "Kitty",
    "Lily",
    "Molly",
    "Nora",
    "Olive",
    "Poppy",
    "Rosie",
    "Sally",
    "Tilly",
    "Una",
    "Violet",
    "Wendy",
    "Amber",
    "Betty",
    "Cora",
    "Dora",
    "Elsie",
    "Flora",
    "Greta",
    "Holly",
    "Ivy",
    "Jenny",
    "Lola",
    "Mabel",
    "Nelly",
    "Penny",
    "Ruby",
    "Susie",
    "Tess",
    "Willa",
    "Agnes",
    "Bridget",
    "Celia",
    "Dinah",
    "Edith",
    "Freya",
    "Gemma",
    "Helen",
    "Irma",
    "Jane",
    "Katie",
    "Laura",
    "Martha",
    "Nina",
    "Opal",
    "Paula",
    "Rachel",
    "Sarah",
    "Thea",
    "Ursula",
    "Vera",
    "Winnie",
    "Yvonne",
    "Zoe",
    "Alma",
    "Bonnie",
    "Carmen",
    "Dotty",
    "Emma",
    "Frida",
    "Gloria",
    "Hilda",
    "Ida",
    "Josie",
    "Kate",
    "Lucy",
    "Maggie",
    "Nancy",
    "Pearl",
    "Sophie",
]
BOYS = [
    "Adam",
    "Ben",
    "Charlie",
    "Dan",
    "Eddie",
    "Felix",
    "George",
    "Harry",
    "Ivan",
    "Jack",
    "Kit",
    "Leo",
    "Max",
    "Ned",
    "Oscar",
    "Pip",
    "Robin",
    "Sam",
    "Toby",
    "Victor",
    "Walter",
    "Alfie",
    "Bruno",
    "Casper",
    "Dexter",
    "Emil",
    "Finn",
    "Gus",
    "Hugo",
    "Jasper",
    "Lenny",
    "Milo",
    "Nico",
    "Otto",
    "Percy",
    "Rufus",
    "Simon",
    "Tom",
    "Wilbur",
    "Zack",
    "Arthur",
    "Basil",
    "Cedric",
    "David",
    "Ernest",
    "Frank",
    "Gilbert",
    "Henry",
    "Isaac",
    "Jim",
    "Karl",
    "Luke",
    "Martin",
    "Nathan",
    "Oliver",
    "Peter",
    "Quentin",
    "Ralph",
    "Stanley",
    "Tim",
    "Ulrich",
    "Vincent",
    "William",
    "Xaver",
    "Yuri",
    "Albert",
    "Boris",
    "Conrad",
    "Donald",
    "Edgar",
    "Fergus",
    "Gordon",
    "Herman",
    "Igor",
    "Jonas",
    "Kurt",
    "Lewis",
    "Marvin",
    "Norman",
    "Paul",
]

# kind -> (one limb, several)
KINDS = {
    "fox": ("paw", "paws"),
    "rabbit": ("paw", "paws"),
    "bear": ("paw", "paws"),
    "mouse": ("paw", "paws"),
    "hedgehog": ("paw", "paws"),
    "otter": ("paw", "paws"),
    "squirrel": ("paw", "paws"),
    "badger": ("paw", "paws"),
    "mole": ("paw", "paws"),
    "kitten": ("paw", "paws"),
    "puppy": ("paw", "paws"),
    "beaver": ("paw", "paws"),
    "hamster": ("paw", "paws"),
    "raccoon": ("paw", "paws"),
    "wolf": ("paw", "paws"),
    "tiger": ("paw", "paws"),
    "lion": ("paw", "paws"),
    "goat": ("hoof", "hooves"),
    "lamb": ("hoof", "hooves"),
    "pony": ("hoof", "hooves"),
    "donkey": ("hoof", "hooves"),
    "piglet": ("foot", "feet"),
    "elephant": ("foot", "feet"),
    "turtle": ("foot", "feet"),
    "frog": ("foot", "feet"),
    "duck": ("wing", "wings"),
    "goose": ("wing", "wings"),
    "owl": ("wing", "wings"),
    "hen": ("wing", "wings"),
    "monkey": ("hand", "hands"),
}
CHILD = ("hand", "hands")

SIZES = ["small", "little", "young", "tiny", "round", "thin", "plump", "tall"]

# what follows "lived"
HOMES = [
    "in a green valley", "at the edge of a dark forest", "on a windy hill", "beside a blue lake", "near a quiet village",
    "on a small island", "at the foot of a high mountain", "in an old mill", "by a winding river", "in a sunny meadow",
    "behind a stone wall", "under a great oak", "in a crooked cottage", "next to a busy market", "beside the sea",
    "on a lonely farm", "in a hollow log", "among the tall reeds", "close to a wooden bridge", "in a house with a red roof",
    "at the end of a long lane", "in a castle garden", "near an apple orchard", "on the bank of a pond",
    "in a wagon with yellow wheels", "below a waterfall", "in a lighthouse", "at the top of a tower",
    "in a wood full of birches", "beside a field of corn", "near a frozen creek", "in a tent on the heath",
]  # fmt: skip

TREATS = [
    "blueberry pie", "honey cake", "warm bread", "apple tart", "carrot soup", "cherry jam", "nut cookies", "plum pudding",
    "ginger biscuits", "pumpkin soup", "sweet corn", "toasted cheese", "raisin buns", "strawberry cream", "hot cocoa",
    "pear juice", "onion stew", "mushroom pie", "lemon cake", "oat porridge", "roasted chestnuts", "raspberry jelly",
    "butter rolls", "peach salad", "walnut bread", "mint tea", "potato pancakes", "cabbage rolls", "turnip stew",
    "melon slices", "barley broth", "cinnamon toast",
]  # fmt: skip

COLOURS = ["red", "blue", "green", "yellow", "purple", "orange", "white", "brown", "pink", "golden", "silver", "black"]

CLOTHES = ["scarf", "hat", "coat", "apron", "vest", "cap", "cloak", "bow", "sweater", "belt", "shawl", "collar"]

# what followed the days: a habit told in the past tense
HOBBIES = [
    ("collected smooth pebbles", "pebbles"),
    ("painted pictures of clouds", "pictures"),
    ("played a tin whistle", "whistle"),
    ("counted the passing ships", "ships"),
    ("watered a row of tulips", "tulips"),
    ("danced barefoot in the grass", "dances"),
    ("read stories about pirates", "stories"),
    ("carved spoons out of wood", "spoons"),
    ("knitted socks for winter", "socks"),
    ("fed the hungry sparrows", "sparrows"),
    ("rolled down the steepest slope", "slope"),
    ("wrote letters to the moon", "letters"),
    ("baked rolls for the neighbours", "rolls"),
    ("chased butterflies with a net", "butterflies"),
    ("swept leaves into neat heaps", "leaves"),
    ("listened to the wise old toad", "toad"),
    ("built towers out of acorns", "towers"),
    ("looked for four-leaf clovers", "clovers"),
    ("practised jumping over puddles", "puddles"),
    ("made necklaces of daisies", "necklaces"),
    ("drew maps of secret tunnels", "maps"),
    ("hummed songs about the rain", "songs"),
    ("polished an old brass bell", "bell"),
    ("caught snails and let them go", "snails"),
]

DAYS = [
    "One spring morning", "One summer afternoon", "One autumn day", "One winter morning", "One quiet Monday",
    "One bright Tuesday", "One foggy Wednesday", "One cold Thursday", "One warm Friday", "One windy Saturday",
    "One lazy Sunday", "Early one morning", "Before breakfast one day", "One misty dawn", "Just before noon one day",
    "On the first day of May", "On the last day of June", "On a cloudy day in March", "One chilly October day",
    "On a hot day in August", "The day before the harvest", "The day after the holidays", "A week before the new year",
    "On {his} birthday",
]  # fmt: skip

FEELINGS = [
    "sad",
    "cross",
    "tired",
    "worried",
    "unhappy",
    "upset",
    "weary",
    "lonely",
    "gloomy",
    "puzzled",
    "sorry",
    "lost",
]

WAYS = [
    "came walking down the path", "hopped out of the bushes", "stopped on the way home", "looked over the fence",
    "came whistling round the corner", "peeped from behind a rock", "wandered across the grass", "passed with a heavy basket",
    "came along with a lantern", "woke from a nap nearby", "heard the noise and hurried over", "strolled by under a big umbrella",
    "came up the road with a wheelbarrow", "crept out of the shadows", "ran up with muddy boots", "trotted by with a bag of letters",
]  # fmt: skip

WATCHERS = [
    "An old crow", "A fat toad", "A grey heron", "A sleepy lizard", "Two magpies", "A bold jay", "A passing snail",
    "A striped wasp", "A wise raven", "Three sparrows", "A brown cow", "A speckled trout", "A lame pigeon", "A vain peacock",
    "A nosy rat", "A shiny beetle",
]  # fmt: skip

WATCHES = [
    "laughed out loud", "shook with giggles", "watched without a word", "said that it would never work", "only yawned",
    "gave a long whistle", "turned away", "clapped for fun", "told everyone about it", "stared in surprise",
    "blinked twice", "wished good luck",
]  # fmt: skip

EVENINGS = [
    "until the stars came out", "until the moon rose", "until the fire burned low", "until the bells rang for bed",
    "until the owls began to call", "until they could eat no more", "until the candles went out", "until the sun went down",
    "while the crickets sang", "while the rain drummed on the roof", "while the wind hummed outside",
    "while the fireflies danced",
]  # fmt: skip

SOUNDS = ["smiled", "nodded", "grinned", "laughed", "winked", "waved", "bowed", "hummed"]

NATURES = [
    "kind", "cheerful", "clever", "polite", "merry", "gentle", "friendly", "calm", "wise", "funny", "quick", "helpful",
    "strong", "modest", "curious", "sensible", "lively", "honest", "skilful", "good",
]  # fmt: skip

SMELLS = [
    "roses", "fresh hay", "wet earth", "lavender", "smoke", "pine needles", "salt", "baked apples", "thyme", "snow",
    "ripe plums", "lilac", "seaweed", "rosemary", "violets", "paint", "cut grass", "soap", "vanilla", "jasmine",
    "tar", "leather", "parsley", "cloves",
]  # fmt: skip

TOPICS = [
    "dragons", "giants", "sailors", "ghosts", "comets", "mermaids", "robbers", "knights", "whales", "deserts",
    "volcanoes", "wizards", "elves", "circus clowns", "sunken cities", "camels", "queens", "icebergs", "dwarfs", "tigers",
    "explorers", "parrots", "rainbows", "trains",
]  # fmt: skip

GIFTS = [
    "pocket mirror", "walnut shell", "glass bead", "tin soldier", "seashell", "peacock feather", "wooden horse", "ball of yarn",
    "paper star", "clay cup", "box of chalk", "chess piece", "jar of honey", "thick pencil", "bag of seeds", "pair of mittens",
    "straw hat", "new basket", "small flute", "rag doll", "picture book", "spinning top", "lump of amber", "velvet cushion",
    "tea pot", "sheet of stamps", "leather purse", "hand bell", "magnifying glass", "puzzle", "copper penny", "folding fan",
]  # fmt: skip

PERCHES = [
    "from a branch", "from the roof", "from the ditch", "from a fence post", "behind a leaf", "beside a puddle",
    "on a stump", "near the gate",
]  # fmt: skip
