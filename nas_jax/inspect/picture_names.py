"""Names of the pictures of a trained model: NAME.png, and the numbers behind it NAME.json."""

DICTIONARY, WORDS, FOILS = "dictionary", "words", "foils"
