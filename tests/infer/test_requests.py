"""vLLM and TensorRT-LLM, up to their own calls: stand-ins with their interfaces, which compute with torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from asked import CPU, Asked

from egobench.errors import InvalidInput
from egobench.infer.folder import facts_of, facts_of_folder
from egobench.infer.inputs import fixed_inputs
from egobench.infer.measure import run_once
from egobench.infer.reference import forced_logits, relative_error
from egobench.infer.requests import RequestSession
from egobench.infer.runtimes.torch_eager import TorchSession
from egobench.infer.session import Facts
from egobench.infer.trt_llm_session import TrtLlmSession
from egobench.infer.vllm_session import VllmSession, engine_options
from egobench.models.internvl import EGOTINY, LoadedModel


class StandinEngine:
    """`vllm.v1.engine.llm_engine.LLMEngine`: one more token for every running request a step."""

    def __init__(self, exact: TorchSession, tokenizer: Any) -> None:
        self.exact, self.running = exact, dict[str, Any]()
        self.num_added, self.aborted = 0, list[str]()
        start, end = tokenizer.convert_tokens_to_ids(["<img>", "</img>"])
        facts = exact.facts
        self.spread = [start, *[facts.image_token_id] * facts.num_image_tokens, end]

    def add_request(self, request_id: str, prompt: dict[str, Any], params: Any) -> None:
        assert params.ignore_eos and params.temperature == 0.0 and not params.detokenize
        tokens = self.tokens_of(prompt, params.max_tokens)
        self.running[request_id] = (tokens, itertools.count(1))
        self.num_added += 1

    def tokens_of(self, prompt: dict[str, Any], number: int) -> list[int]:
        made = self.exact.generate([self.ids_of(prompt)], self.pixels_of(prompt), max_new_tokens=number)
        return list(made[0].tolist())

    def ids_of(self, prompt: dict[str, Any]) -> list[int]:
        image = self.exact.facts.image_token_id
        assert prompt["prompt_token_ids"].count(image) == len(prompt["multi_modal_data"]["image"])
        return [one for token in prompt["prompt_token_ids"] for one in (self.spread if token == image else [token])]

    def pixels_of(self, prompt: dict[str, Any]) -> Any:
        return np.stack([np.asarray(image) for image in prompt["multi_modal_data"]["image"]])

    def step(self) -> list[Any]:
        made = []
        for request_id, (tokens, count) in list(self.running.items()):
            so_far = tokens[: next(count)]
            is_finished = len(so_far) == len(tokens)
            if is_finished:
                del self.running[request_id]
            made.append(
                SimpleNamespace(
                    request_id=request_id, finished=is_finished, outputs=[SimpleNamespace(token_ids=so_far)]
                )
            )
        return made[::-1]  # in no order that anybody may rely on

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for request_id in request_ids:
            del self.running[request_id]


class StandinVllm:
    """`vllm.LLM`."""

    def __init__(self, exact: TorchSession, tokenizer: Any) -> None:
        self.llm_engine = StandinEngine(exact, tokenizer)

    def generate(self, prompts: Sequence[dict[str, Any]], params: Any, *, use_tqdm: bool) -> list[Any]:
        assert params.logprobs == -1 and params.max_tokens == 1
        engine, made = self.llm_engine, []
        for prompt in prompts:
            ids, features = np.array([engine.ids_of(prompt)]), engine.exact.encode_images(engine.pixels_of(prompt))
            logits = torch.from_numpy(engine.exact.to_numpy(engine.exact.prefill(ids, features)))
            told = {token: SimpleNamespace(logprob=float(one)) for token, one in enumerate(logits[0].log_softmax(-1))}
            made.append(SimpleNamespace(outputs=[SimpleNamespace(logprobs=[told])]))
        return made


class StandinRunner:
    """`tensorrt_llm.runtime.ModelRunner`: output ids with the prompt in front, features from the prompt table."""

    def __init__(self, exact: TorchSession) -> None:
        self.exact = exact

    def generate(self, ids: list[torch.Tensor], **how: Any) -> Any:
        assert how["prompt_tasks"] == ",".join(map(str, range(len(ids)))) and how["return_dict"]
        return self.steps(ids, **how) if how["streaming"] else self.logits(ids, **how)

    def rows(self, ids: list[torch.Tensor], table: torch.Tensor) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        facts = self.exact.facts
        for row, own in enumerate(ids):
            is_image = own >= facts.vocab_size
            plain = torch.where(is_image, facts.image_token_id, own).long().numpy()[None]
            yield plain, table[row][(own[is_image] - facts.vocab_size).long()]

    def logits(self, ids: list[torch.Tensor], *, prompt_table: torch.Tensor, **how: Any) -> Any:
        made = [self.exact.prefill(*one) for one in self.rows(ids, prompt_table)]
        return {"generation_logits": torch.stack(made).unsqueeze(1)}

    def steps(
        self, ids: list[torch.Tensor], *, prompt_table: torch.Tensor, max_new_tokens: int, **_: Any
    ) -> Iterator[Any]:
        answers = []
        for plain, features in self.rows(ids, prompt_table):
            tokens = [self.exact.greedy(self.exact.prefill(plain, features, room=max_new_tokens))]
            for _step in range(max_new_tokens - 1):
                tokens.append(self.exact.greedy(self.exact.decode(tokens[-1])))
            answers.append([*plain[0].tolist(), *(int(one[0]) for one in tokens)])
        longest = max(map(len, answers))
        whole = torch.tensor([[answer + [0] * (longest - len(answer))] for answer in answers])
        for step in range(max_new_tokens):
            shown = whole.clone()
            for row, own in enumerate(ids):
                shown[row, 0, len(own) + step + 1 :] = -1  # not made yet
            yield {"output_ids": shown}


@pytest.fixture
def exact(egotiny: LoadedModel) -> TorchSession:
    return TorchSession(egotiny, CPU)


@pytest.fixture(params=["vllm", "tensorrt_llm"])
def session(request: pytest.FixtureRequest, exact: TorchSession, egotiny: LoadedModel) -> RequestSession:
    if request.param == "vllm":
        llm = StandinVllm(exact, egotiny.tokenizer)
        return VllmSession(exact.facts, egotiny.tokenizer, llm, SimpleNamespace)

    def tower(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = exact.encode_images(pixels.numpy())
        return features

    return TrtLlmSession(exact.facts, StandinRunner(exact), tower, CPU)


def test_answers_are_torchs(session: RequestSession, exact: TorchSession, asked: Asked) -> None:
    how = {"max_new_tokens": 8, "end_token_id": exact.facts.end_token_id}
    wanted = exact.generate(asked.prompts, asked.pixels, **how)
    assert session.generate(asked.prompts, asked.pixels, **how).tolist() == wanted.tolist()


def test_steps_follow_the_runtime_and_forced_tokens_begin_anew(
    session: RequestSession, exact: TorchSession, egotiny: LoadedModel
) -> None:
    inputs = fixed_inputs(egotiny.tokenizer, exact.facts, 64, 2)
    assert run_once(session, inputs, 6).tokens.tolist() == run_once(exact, inputs, 6).tokens.tolist()
    fed = np.random.default_rng(1).integers(10, 700, (2, 4))
    assert relative_error(forced_logits(session, inputs, fed), forced_logits(exact, inputs, fed)) < 1e-4


def test_a_timed_run_is_one_request_a_row(exact: TorchSession, egotiny: LoadedModel) -> None:
    llm = StandinVllm(exact, egotiny.tokenizer)
    session = VllmSession(exact.facts, egotiny.tokenizer, llm, SimpleNamespace)
    inputs = fixed_inputs(egotiny.tokenizer, exact.facts, 64, 3)
    run_once(session, inputs, 6)
    assert (llm.llm_engine.num_added, llm.llm_engine.running, llm.llm_engine.aborted) == (3, {}, [])
    session.prefill(inputs.ids, session.encode_images(inputs.pixels), room=6)
    session.prefill(inputs.ids, session.encode_images(inputs.pixels), room=6)  # forgets the batch before
    assert llm.llm_engine.aborted == ["1-0", "1-1", "1-2"] and len(llm.llm_engine.running) == 3


def test_half_a_picture_is_refused(exact: TorchSession, egotiny: LoadedModel) -> None:
    session = VllmSession(exact.facts, egotiny.tokenizer, StandinVllm(exact, egotiny.tokenizer), SimpleNamespace)
    with pytest.raises(InvalidInput, match="no whole picture"):
        session.requests(((5, exact.facts.image_token_id, 6),), np.zeros((0, 64, 64, 3), np.uint8))


def test_nothing_of_one_request_makes_the_next_one_faster() -> None:
    options = engine_options(EGOTINY, torch.bfloat16)
    assert options["dtype"] == "bfloat16" and options["trust_remote_code"] is False
    assert (options["enable_prefix_caching"], options["mm_processor_cache_gb"]) == (False, 0)


def test_a_folder_tells_the_same_facts_as_its_model(egotiny: LoadedModel) -> None:
    told: Facts = facts_of_folder(EGOTINY)
    assert told == facts_of(egotiny)
