"""The measuring process: `python -m egobench.infer REQUEST.json`.

It opens the session, measures it, asks the questions, and writes the result that the request names. Its exit code and
the last line of stderr say how it went: 0; 2 and 5 as the CLI has them; anything else is a crash.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from egobench.errors import EXIT_OK, EgobenchError, InvalidInput, Mistake
from egobench.infer.inputs import fixed_inputs
from egobench.infer.measure import measure_opened
from egobench.infer.opening import open_watched
from egobench.infer.questions import ask
from egobench.infer.reference import MAX_ROWS, Reference, reference_of
from egobench.infer.runtimes import versions
from egobench.models.internvl import tokenizer_of
from egobench.records.inference import InferenceRequest, InferenceResult
from egobench.records.measures import Answers, CategoryScore
from egobench.records.store import write_document


def main() -> int:
    """Measure what a request asks for."""
    parser = argparse.ArgumentParser(prog="python -m egobench.infer", description=main.__doc__)
    parser.add_argument("request", type=Path, help="a JSON file (egobench/records/inference.py)")
    try:
        request = read_request(parser.parse_args().request)
        write_document(Path(request.result), answer_request(request))
    except EgobenchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return EXIT_OK


def read_request(path: Path) -> InferenceRequest:
    """Read a request.

    Raises:
        InvalidInput: it cannot be read, or says what it may not say.
    """
    try:
        return InferenceRequest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInput([Mistake(str(path), f"cannot be read: {error.strerror}")]) from error
    except ValidationError as error:
        found = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors()]
        raise InvalidInput([Mistake(f"{path}: {where or 'document'}", what) for where, what in found]) from error


def answer_request(request: InferenceRequest) -> InferenceResult:
    """Open, measure, ask."""
    threads = (request.inference.threads if request.inference else None) or len(os.sched_getaffinity(0))
    opening = open_watched(request, threads)
    tokenizer = tokenizer_of(Path(request.folder))
    measures = None
    if request.inference is not None:
        how = request.inference
        rows = max(*how.batch_sizes, MAX_ROWS)
        inputs = fixed_inputs(tokenizer, opening.session.facts, how.num_prompt_tokens, rows)
        reference = Reference.read(Path(request.reference)) if request.reference is not None else None
        measures = measure_opened(opening, inputs, request, threads, reference)
        if request.write_reference is not None:
            reference_of(opening.session, inputs, how.num_new_tokens).write(Path(request.write_reference))
    answers: Answers | None = None
    categories: tuple[CategoryScore, ...] = ()
    if request.questions is not None:
        answers, categories = ask(opening.session, tokenizer, request.questions)
    return InferenceResult(
        request=request, measures=measures, answers=answers, categories=categories, versions=versions(request.runtime)
    )


if __name__ == "__main__":
    sys.exit(main())
