"""Captions as words, much as COCO's evaluation has them of Stanford's tokeniser, which is a Java program.

Written after what that program answers, no port of it: on Flickr8k's captions it gives the same words (a test holds
some of them), on odder text (unknown abbreviations, emoticons, units) it may not.
"""

import re
from collections.abc import Mapping, Sequence

# what COCO's evaluation drops; its brackets are in capitals there and the text is not, so they stay
DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
LIKE = str.maketrans({"\u2019": "'", "\u2018": "`", "“": '"', "”": '"', "–": " -- ", "—": " -- ", "…": " ... ",
                      "½": "1/2", "¼": "1/4", "¾": "3/4"})  # fmt: skip
SHORT = "mr|mrs|ms|dr|st|jr|sr|inc|ltd|co|corp|vs|prof|gen|rev|lt|col|sgt|capt|gov|sen|rep|etc"
SPLIT = {
    "cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me", "lemme": "lem me",
    "'tis": "'t is", "'twas": "'t was", "more'n": "more 'n",
}  # fmt: skip
WORD = r"[^\W_]+(?:'[^\W_]+)*(?:[-/&_.][^\W_]+(?:'[^\W_]+)*)*"
TOKEN = re.compile(
    rf"""https?://\S+ | [^\s@]+@[^\s@]+\.[^\s@]+      # addresses
    | (?:[^\W\d_]\.){{2,}}                            # u.s.
    | (?:{SHORT})\.                          # mr.
    | (?<!\w)'(?:tis|twas|em|n'|n|s|m|re|ve|d|ll)(?!\w)  # 'tis
    | [$£€]?(?=\d)\d+(?:[.,:/]\d+)+(?!\w) | \.\d+     # 1,000  5:30
    | {WORD} | @\w+
    | \.{{2,}} | -{{2,}} | [?!]+ | \S                 # marks
    """,
    re.VERBOSE,
)
CLITIC = re.compile(r"(.+?)(n't|'(?:s|m|re|ve|d|ll))$")


def words(caption: str) -> list[str]:
    """ "The man's dogs isn't (here)." -> the man 's dogs is n't -lrb- here -rrb-: in lower case, without marks."""
    found: list[str] = []
    for token in TOKEN.findall(" ".join(caption.split()).lower().translate(LIKE)):
        if token in BRACKETS:
            found.append(BRACKETS[token])
        elif token[0] in "$£€" and len(token) > 1:
            found += [token[0], token[1:]]
        elif token in SPLIT:
            found += SPLIT[token].split()
        elif token.startswith("..") or token == '"':
            continue
        elif clitic := CLITIC.match(token):
            found += clitic.groups()
        else:
            found.append(token)
    return [token for token in found if token not in DROPPED]


def tokenised(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The captions of each picture, their words with single spaces between."""
    return {key: [" ".join(words(caption)) for caption in said] for key, said in captions.items()}
