"""How often tensors are saved where disk is bounded: ever more rarely, so that a long training is seen to its end."""

from dataclasses import dataclass, field


@dataclass
class SaveBudget:
    """Which training steps are saved: one in `interval` at first; half as many whenever half of what was left is used.

    Steps that were saved stay: rules have looked at them, and looking again must come to the same.
    """

    max_bytes: float
    """What all steps may take together; the first one is saved whatever it takes."""
    interval: int
    """Training steps from one that is saved to the next."""
    spent_bytes: int = 0
    last_step: int | None = None
    """The last one that was saved, counted from 0."""
    is_spent: bool = False
    """Whether a step was left out because it might not have fitted."""
    _doubled_at: list[int] = field(default_factory=list)
    _largest_bytes: int = 0

    def allows(self, step: int) -> bool:
        """Whether a training step, counted from 0, is to be saved."""
        if step % self.interval:
            return False
        self.is_spent = self.is_spent or not self._fits()
        return not self.is_spent

    def spend(self, num_bytes: int, *, step: int) -> bool:
        """Counts what a saved step took; whether steps are saved more rarely from here on."""
        self.spent_bytes += num_bytes
        self.last_step = step
        self._largest_bytes = max(self._largest_bytes, num_bytes)
        left_share = 1 - self.spent_bytes / self.max_bytes
        if left_share > 0.5 ** (len(self._doubled_at) + 1) or not self._fits():
            return False
        self._doubled_at.append(step)
        self.interval *= 2
        return True

    def note(self) -> str | None:
        """One sentence where fewer steps were saved than asked for; else None."""
        if not self._doubled_at and not self.is_spent:
            return None
        interval = self.interval >> len(self._doubled_at)
        told = [f"every {interval} training steps"]
        told += [f"every {interval << n} after step {step}" for n, step in enumerate(self._doubled_at, start=1)]
        if self.is_spent:
            told.append(f"none after step {self.last_step}")
        used, limit = f"{self.spent_bytes / 2**30:.3g} GiB", f"profile.max_gib={self.max_bytes / 2**30:.4g}"
        return f"Tensors were saved {', '.join(told)}: they take {used} of {limit}."

    def _fits(self) -> bool:
        return self.spent_bytes + self._largest_bytes <= self.max_bytes
