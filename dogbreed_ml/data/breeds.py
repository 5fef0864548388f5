"""Breed names for people, made from the names of folders."""

import re
import unicodedata

# "001.", "12-", "3_" before a name; Stanford's and ImageNet's synset ids "n02085620-"; Tsinghua's "200-n000008-".
_PREFIX = re.compile(r"^(?:\d{1,6}[.\-_ ]+)?(?:n\d{6,8}[\-_ ]+)?(?=.*[^\W\d_])")
_GAPS = re.compile(r"[_\s]+")


def clean_breed_name(folder_name: str) -> str:
    """`001.Affenpinscher`, `n02085620-Chihuahua`, `toy_terrier` -> `Affenpinscher`, `Chihuahua`, `Toy terrier`.

    Hyphens within a name stay; a name without a letter stays whole. Unicode is composed (NFC), as macOS decomposes it.
    """
    printable = folder_name.encode(errors="surrogateescape").decode(errors="replace")
    name = _PREFIX.sub("", unicodedata.normalize("NFC", printable))
    name = _GAPS.sub(" ", name).strip(" -.") or printable
    return name[0].upper() + name[1:]


def breed_of_stem(stem: str) -> str | None:
    """`american_bulldog_12` -> `american_bulldog`: as in Oxford-IIIT Pet; None where no number ends the stem."""
    match = re.fullmatch(r"(.+)_\d+", stem)
    return match[1] if match else None
