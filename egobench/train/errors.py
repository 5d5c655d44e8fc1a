"""How training itself fails, beside the exceptions that torch and Python raise."""

from __future__ import annotations


class Diverged(Exception):
    """The loss or the gradient norm of a step is not finite."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what} is not finite")
        self.step, self.what = step, what

    def __reduce__(self) -> tuple[type[Diverged], tuple[int, str]]:
        return type(self), (self.step, self.what)
