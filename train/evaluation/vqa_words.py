"""How answers to questions on pictures are compared: VQA's normalisation and its accuracy among ten people."""

import re
from collections.abc import Sequence

NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = ("a", "an", "the")
MARKS = r""";/[]"{}()=+\_-><@`,?!"""  # taken out, or made a space of; the apostrophe and the colon stay
PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")  # a full stop, which is no decimal point
COMMA = re.compile(r"(\d)(,)(\d)")  # 1,000
# words that people write without their apostrophe, or with it in another place, and how they are read
CONTRACTED = """aint ain't, arent aren't, cant can't, couldve could've, couldnt couldn't, couldn'tve couldn't've,
couldnt've couldn't've, didnt didn't, doesnt doesn't, dont don't, hadnt hadn't, hadnt've hadn't've,
hadn'tve hadn't've, hasnt hasn't, havent haven't, hed he'd, hed've he'd've, he'dve he'd've, hes he's,
howd how'd, howll how'll, hows how's, Id've I'd've, I'dve I'd've, Im I'm, Ive I've, isnt isn't, itd it'd,
itd've it'd've, it'dve it'd've, itll it'll, let's let's, maam ma'am, mightnt mightn't, mightnt've mightn't've,
mightn'tve mightn't've, mightve might've, mustnt mustn't, mustve must've, neednt needn't, notve not've,
oclock o'clock, oughtnt oughtn't, ow's'at 'ow's'at, 'ows'at 'ow's'at, 'ow'sat 'ow's'at, shant shan't,
shed've she'd've, she'dve she'd've, she's she's, shouldve should've, shouldnt shouldn't,
shouldnt've shouldn't've, shouldn'tve shouldn't've, somebody'd somebodyd, somebodyd've somebody'd've,
somebody'dve somebody'd've, somebodyll somebody'll, somebodys somebody's, someoned someone'd,
someoned've someone'd've, someone'dve someone'd've, someonell someone'll, someones someone's,
somethingd something'd, somethingd've something'd've, something'dve something'd've, somethingll something'll,
thats that's, thered there'd, thered've there'd've, there'dve there'd've, therere there're, theres there's,
theyd they'd, theyd've they'd've, they'dve they'd've, theyll they'll, theyre they're, theyve they've,
twas 'twas, wasnt wasn't, wed've we'd've, we'dve we'd've, weve we've, werent weren't, whatll what'll,
whatre what're, whats what's, whatve what've, whens when's, whered where'd, wheres where's, whereve where've,
whod who'd, whod've who'd've, who'dve who'd've, wholl who'll, whos who's, whove who've, whyll why'll,
whyre why're, whys why's, wont won't, wouldve would've, wouldnt wouldn't, wouldnt've wouldn't've,
wouldn'tve wouldn't've, yall y'all, yall'll y'all'll, y'allll y'all'll, yall'd've y'all'd've,
y'alld've y'all'd've, y'all'dve y'all'd've, youd you'd, youd've you'd've, you'dve you'd've, youll you'll,
youre you're, youve you've"""
CONTRACTIONS = dict(tuple(pair.split()) for pair in CONTRACTED.split(","))


def normalised(answer: str) -> str:
    """An answer as VQA compares it: no line breaks, marks taken out (or a space in their place, where they stand
    between letters), no full stops, lower case, number words as digits, no articles, apostrophes where they belong."""
    text = without_marks(answer.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def without_marks(text: str) -> str:
    comma = COMMA.search(text) is not None
    out = text
    for mark in MARKS:
        if mark in text:
            loose = f"{mark} " in text or f" {mark}" in text or comma
            out = out.replace(mark, "" if loose else " ")
    return PERIOD.sub("", out)


def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """The mean over people of min(1, others who say the same / 3); with ten people 3 of them do not quite make it 1 for
    everybody: 0.9. All normalised. Needs two people."""
    said = normalised(answer)
    same = [normalised(each) == said for each in people]
    agreed = sum(same)
    return sum(min(1.0, (agreed - own) / 3) for own in same) / len(same)


def exact_match(answer: str, people: Sequence[str]) -> bool:
    """Whether the answer, normalised, is one of those given."""
    return normalised(answer) in {normalised(each) for each in people}
