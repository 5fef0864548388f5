"""Which steps are saved where disk is bounded."""

from dogbreed_ml.debugging.budget import SaveBudget


def save(budget: SaveBudget, *, num_steps: int, num_bytes: int = 100) -> list[int]:
    """The steps that a training of so many steps saves, each of `num_bytes`."""
    saved = []
    for step in range(num_steps):
        if budget.allows(step):
            saved.append(step)
            budget.spend(num_bytes, step=step)
    return saved


def test_enough_disk_changes_nothing() -> None:
    budget = SaveBudget(max_bytes=2001, interval=5)
    assert save(budget, num_steps=50) == [*range(0, 50, 5)]
    assert budget.note() is None


def test_each_half_of_what_is_left_covers_as_many_steps() -> None:
    budget = SaveBudget(max_bytes=1600, interval=5)
    saved = save(budget, num_steps=1000)
    assert saved == [*range(0, 36, 5), *range(40, 71, 10), 80, 100, 120, 160]
    assert budget.spent_bytes <= 1600
    assert budget.note() == (
        "Tensors were saved every 5 training steps, every 10 after step 35, every 20 after step 70, every 40 after "
        "step 100, every 80 after step 120, none after step 160: they take 1.49e-06 GiB of profile.max_gib=1.49e-06."
    )


def test_a_step_that_might_not_fit_is_not_saved() -> None:
    budget = SaveBudget(max_bytes=250, interval=1)
    assert save(budget, num_steps=100) == [0, 1]
    assert (budget.spent_bytes, budget.is_spent) == (200, True)


def test_a_first_step_above_the_limit_is_the_only_one() -> None:
    budget = SaveBudget(max_bytes=10, interval=1)
    assert save(budget, num_steps=100) == [0]
    assert (note := budget.note()) is not None
    assert "none after step 0" in note
