import unicodedata

import pytest

from dogbreed_ml.data.breeds import breed_of_stem, clean_breed_name


@pytest.mark.parametrize(
    ("folder_name", "breed"),
    [
        ("001.Affenpinscher", "Affenpinscher"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("n02087046-toy_terrier", "Toy terrier"),
        ("200-n000008-Airedale", "Airedale"),
        ("133.Yorkshire_terrier", "Yorkshire terrier"),
        ("n02093754-soft-coated_wheaten_terrier", "Soft-coated wheaten terrier"),
        ("12_boxer", "Boxer"),
        ("  Dandie   Dinmont ", "Dandie Dinmont"),
        ("Shih-Tzu", "Shih-Tzu"),
        ("Épagneul breton", "Épagneul breton"),
        ("柴犬", "柴犬"),
        ("007", "007"),
        ("n02085620", "N02085620"),
        ("___", "___"),
    ],
)
def test_clean_breed_name_is_for_people(folder_name: str, breed: str) -> None:
    assert clean_breed_name(folder_name) == breed


def test_clean_breed_name_composes_unicode() -> None:
    assert clean_breed_name(unicodedata.normalize("NFD", "épagneul")) == "Épagneul"


def test_clean_breed_name_of_undecodable_bytes_can_be_written() -> None:
    clean_breed_name(b"caf\xe9_dog".decode(errors="surrogateescape")).encode()


def test_breed_of_stem_drops_the_number() -> None:
    assert breed_of_stem("american_bulldog_12") == "american_bulldog"
    assert breed_of_stem("README") is None
