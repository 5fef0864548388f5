"""What verbs print."""

from dogbreed_ml.summaries import render_table


def test_table_is_as_wide_as_its_widest_cells_without_blanks_at_the_ends() -> None:
    rows = [("dogs-8080", "healthy", "yes"), ("cats", "-", "")]
    assert render_table(("name", "health", "by"), rows) == [
        "name       health   by",
        "dogs-8080  healthy  yes",
        "cats       -",
    ]
    assert render_table(("name", "by"), []) == ["name  by"]
