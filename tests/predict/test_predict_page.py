"""docs/predict.md says what the code predicts today."""

from __future__ import annotations

import re

from egobench.plan.cells import expand
from egobench.plan.output import tally_of
from egobench.predict.page import BEGIN, END, HEADLINE, PAGE, ROOT, generated
from egobench.spec.matrix import load_matrix


def test_the_page_is_fresh() -> None:
    """If this fails: `python -m egobench.predict.page --write`, and read whether the prose above still holds."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0].strip() == generated().strip()


def test_the_prose_counts_what_the_plan_counts() -> None:
    ledger = tally_of(expand(load_matrix(ROOT / HEADLINE)), None).ledger
    found = re.search(r"So (\d+) of (\d+) cells are dropped", PAGE.read_text(encoding="utf-8"))
    assert found is not None
    total = ledger["predicted_oom"] + ledger["pending"]
    assert (int(found[1]), int(found[2])) == (ledger["predicted_oom"], total)
