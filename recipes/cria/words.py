"""The words the corpus is made of: data only."""

# One word a line would be eight pages.
# fmt: off

GIRLS = [
    "Lily", "Mia", "Anna", "Ella", "Zoe", "Nora", "Ruby", "Clara", "Emma", "Ivy", "Lucy", "Rosa", "Maya", "Tess",
    "Sara", "Alice", "Hana", "Nina", "Olga", "Wendy", "Dora", "Paula", "Kate", "Molly", "Fern", "Greta", "Juno",
    "Vera",
]
BOYS = [
    "Ben", "Tom", "Sam", "Max", "Leo", "Finn", "Jack", "Hugo", "Oscar", "Noah", "Omar", "Felix", "Theo", "Paul",
    "Ivan", "Ravi", "Luke", "Adam", "Carlos", "David", "Emil", "Frank", "Gus", "Henry", "Jonas", "Kai", "Milo",
    "Walter",
]
PETS = [
    "Pip", "Rusty", "Bella", "Dusty", "Pepper", "Hazel", "Bruno", "Sunny", "Biscuit", "Clover", "Maple", "Otto",
    "Poppy", "Tilly", "Bramble", "Nutmeg",
]
NAMES = GIRLS + BOYS + PETS
FRIENDS = {*GIRLS[::3], *BOYS[::3], *PETS[::3]}  # who a hero's friend may be: a small model mixes up any two names

KIN = {"mother": "she", "father": "he", "grandmother": "she", "grandfather": "he", "aunt": "she", "uncle": "he"}
BEASTS = [
    "fox", "rabbit", "bear", "mouse", "squirrel", "hedgehog", "duck", "frog", "owl", "turtle", "cat", "dog",
    "llama", "pony", "goat", "lamb", "otter", "beaver", "badger", "penguin", "kitten", "puppy", "deer", "mole",
]
HEROES = [  # other heroes of stories that are asked for
    "dragon", "robot", "pirate", "knight", "wizard", "giant", "lion", "wolf", "horse", "monkey", "elephant", "bird",
    "fish", "bee", "sailor", "baker", "farmer", "painter", "teacher", "whale", "tiger", "ghost", "snail", "crow",
]
STRAYS = [
    "bird", "kitten", "puppy", "duckling", "butterfly", "rabbit", "turtle", "hedgehog", "lamb", "bee", "mouse",
    "squirrel",
]

PLACES = (
    "in the forest|to the forest", "in the garden|to the garden", "at the beach|to the beach",
    "by the river|to the river", "in the park|to the park", "on the hill|to the hill",
    "in the meadow|to the meadow", "at the market|to the market", "by the lake|to the lake",
    "in the old barn|to the old barn", "near the mill|to the mill", "by the pond|to the pond",
    "on the farm|to the farm", "in the village|to the village", "near the bridge|to the bridge",
    "in the orchard|to the orchard",
)
SPOTS = (
    "under the bed", "behind the door", "in the tall grass", "under a big tree", "behind the fence",
    "near the well", "in a basket", "under the bench", "beside the path", "behind a rock", "in the hay",
    "among the flowers", "on the roof", "under some leaves", "inside a boot", "behind the oven",
)
COLORS = ["red", "blue", "green", "yellow", "purple", "orange", "white", "black", "pink", "brown", "silver", "golden"]
TOYS = [
    "ball", "kite", "hat", "boat", "drum", "scarf", "doll", "wagon", "bell", "book", "coat", "key", "lamp",
    "ring", "bucket", "flute", "puzzle", "top", "whistle", "blanket", "button", "map",
]
FOODS = [
    "apple pie", "warm bread", "a bowl of soup", "a honey cake", "a ripe pear", "a plate of cookies",
    "some cheese", "a bag of nuts", "a basket of berries", "a slice of melon", "a jar of jam", "some pancakes",
]
CRAFTS = [
    "a tree house", "a little boat", "a paper kite", "a bird house", "a snow fort", "a sand castle",
    "a wooden cart", "a big cake", "a tall tower", "a puppet", "a soft nest", "a small bridge",
]
FEARS = [
    "the dark", "thunder", "deep water", "high places", "the old dog next door", "the wind at night", "big waves",
    "being alone", "singing in front of others", "the noisy train",
]
GOODS = ["happy", "glad", "proud", "cheerful", "joyful", "pleased"]
BADS = ["sad", "worried", "lonely", "upset", "unhappy"]
TRAITS = [
    "little", "kind", "brave", "shy", "clever", "curious", "quiet", "cheerful", "gentle", "small", "young",
    "careful", "playful", "hungry", "sleepy",
]
WEATHERS = ["sunny", "windy", "cold", "warm", "rainy", "bright", "quiet", "cloudy", "snowy", "misty"]
TIMES = ["morning", "afternoon", "evening", "day"]
TREASURES = [
    "shiny stone", "small shell", "old coin", "golden leaf", "tiny bottle", "silver feather", "glass bead",
    "strange seed",
]

THINGS = [
    "apple", "bird", "cloud", "door", "egg", "fish", "garden", "hat", "island", "jar", "kite", "lamp", "moon",
    "nest", "ocean", "pear", "queen", "river", "stone", "tree", "umbrella", "valley", "wind", "yard", "zebra",
    "boat", "chair", "drum", "engine", "flower", "goat", "house", "iron", "jacket", "king", "leaf", "map",
    "night", "onion", "paper", "rain", "sand", "table", "uncle", "voice", "water", "year", "bread", "corn",
    "desk", "farm", "glass", "hill", "idea", "milk", "nail", "oil", "pond", "road", "ship", "tower", "unit",
    "village", "window",
]
CITIES = [
    "Paris", "Rome", "London", "Berlin", "Madrid", "Oslo", "Cairo", "Lima", "Tokyo", "Delhi", "Vienna", "Athens",
    "Dublin", "Lisbon", "Prague", "Warsaw", "Boston", "Sydney", "Moscow", "Havana",
]
FRUITS = [
    "apples", "pears", "plums", "eggs", "books", "coins", "shells", "nuts", "cookies", "stamps", "buttons",
    "stones", "cards", "pens", "cups",
]
HOLDERS = ["pot", "bag", "basket", "jar", "bowl", "tray", "pack", "crate"]
JOBS = [
    "baker", "teacher", "farmer", "doctor", "painter", "pilot", "sailor", "singer", "writer", "driver",
    "gardener", "cook",
]
