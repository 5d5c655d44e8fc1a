"""The page: three tabs, built with Gradio from the desk and the sources. What is shown in them is made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import gradio as gr

from egobench.errors import EgobenchError
from egobench.report.rows import SweepRows
from egobench.serve.asking import MOST_CHARACTERS, MOST_MODELS, MOST_NEW_TOKENS, Desk
from egobench.serve.dashboard import performance, profile
from egobench.serve.html import failure, render
from egobench.serve.models import Model
from egobench.serve.pictures import MAX_MEGAPIXELS, MAX_UPLOAD_BYTES
from egobench.serve.sources import Source, Sources

THEME: Final = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    radius_size="sm",
    # A font of the system's: nothing is fetched, and nothing flickers.
    font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"),
    font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"),
)
HEAD: Final = """<script>
addEventListener("message", (event) => {
  if (event.origin !== location.origin || !event.data || !event.data.chartsHeight) return;
  for (const frame of document.querySelectorAll("iframe.eb-charts"))
    if (frame.contentWindow === event.source) frame.style.height = `${Math.ceil(event.data.chartsHeight) + 8}px`;
});
</script>"""
"""Charts stand in frames, which are made as high as what is in them."""
_NO_MODELS: Final = (
    "No sweep here has left a model that can be asked. A sweep with variants leaves one in each of them, and "
    "`save: {export: merged}` in a matrix one in each trained cell. Then open this page again."
)
_NO_SWEEPS: Final = "There is nothing to show yet. Run a sweep, or give the folder of committed results."
_COMMANDS: Final = ("egobench sweep benchmarks/edge.yaml      # a tiny model, distilled, quantized, in three runtimes",)
_Show = Callable[[Source, SweepRows], str]


def build(desk: Desk) -> gr.Blocks:
    """Lay the page out."""
    blocks: gr.Blocks = gr.Blocks(title="egobench", analytics_enabled=False, fill_width=True)
    with blocks:
        gr.HTML('<div class="eb-head"><h1>egobench</h1><p>Ask fine-tuned models; see what they cost.</p></div>')
        with gr.Tabs():
            with gr.Tab("Ask", id="ask"):
                _ask_tab(blocks, desk)
            with gr.Tab("Performance", id="performance"):
                _sweep_tab(blocks, desk.sources, performance, "performance")
            with gr.Tab("Profile", id="profile"):
                _sweep_tab(blocks, desk.sources, profile, "profile")
    blocks.queue(default_concurrency_limit=1, max_size=32)
    return blocks


def _ask_tab(blocks: gr.Blocks, desk: Desk) -> None:
    nothing = render("nothing", title="No model to ask", text=_NO_MODELS, commands=_COMMANDS)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            limits = f"Picture (at most {MAX_UPLOAD_BYTES >> 20} MiB, {MAX_MEGAPIXELS} megapixels)"
            picture = gr.Image(
                label=limits, type="filepath", sources=["upload", "clipboard"], height=300, buttons=[],
                elem_id="picture", image_mode=None,
            )  # fmt: skip
            text = gr.Textbox(
                label="Question", max_lines=3, max_length=MOST_CHARACTERS, elem_id="question",
                placeholder="what is the object that i have in my left hand now?",
            )  # fmt: skip
        with gr.Column(scale=3, min_width=300):
            sweep = gr.Dropdown(label="Sweep", elem_id="ask-sweep", interactive=True)
            models = gr.CheckboxGroup(
                label=f"Models, at most {MOST_MODELS}, side by side", elem_id="models", interactive=True
            )
            tokens = gr.Slider(1, MOST_NEW_TOKENS, 16, step=1, label="Longest answer (tokens)")
            button = gr.Button("Ask", variant="primary", elem_id="ask")
            cannot = gr.HTML(elem_classes="eb-page")
    answers = gr.HTML(elem_id="answers", elem_classes="eb-page")
    if desk.offer is not None:
        shown = [[one.picture, one.question] for one in desk.offer.examples]
        gr.Examples(shown, [picture, text], label="Examples, drawn by egoworld", elem_id="examples")

    def look(wanted: str | None) -> tuple[Any, Any, str, str]:
        keys = desk.sweeps()
        key = wanted if wanted in keys else next(iter(keys), None)
        found = desk.models(key) if key is not None else []
        return gr.update(choices=keys, value=key), _choices(found), _cannot(desk, found), "" if keys else nothing

    def ask(payload: Any, words: str, keys: list[str], most: float) -> Iterator[str]:
        yield from desk.ask(payload, words, keys or [], most)

    shown_parts: Any = [sweep, models, cannot, answers]
    blocks.load(look, sweep, shown_parts, api_visibility="private")
    sweep.input(look, sweep, shown_parts, api_visibility="private")
    for event in (button.click, text.submit):
        # Not preprocessed: Gradio would decode the picture itself, and name its own paths where that fails.
        event(
            ask, [picture, text, models, tokens], answers, preprocess=False, concurrency_id="ask",
            api_visibility="private", scroll_to_output=True,
        )  # fmt: skip


def _choices(found: list[Model]) -> Any:
    able = [one for one in found if not one.because]
    by_runtime = {one.request.runtime: one.key for one in reversed(able)}
    compared = [one.key for one in able if one.key in by_runtime.values()][:2]  # two runtimes tell more than one
    return gr.update(choices=[(f"{one.name} ({one.what})", one.key) for one in able], value=compared)


def _cannot(desk: Desk, found: list[Model]) -> str:
    """List the models and runtimes that cannot be asked, each with its reason."""
    absent = desk.offer.missing.items() if desk.offer is not None else ()
    return render(
        "cannot",
        models=[one for one in found if one.because],
        missing=[(name, because) for name, because in absent if because],
        any_runs=any(not one.because for one in found),
    )


def _sweep_tab(blocks: gr.Blocks, sources: Sources, show: _Show, name: str) -> None:
    sweep = gr.Dropdown(label="Sweep", elem_id=f"{name}-sweep", interactive=True)
    page = gr.HTML(elem_id=f"{name}-page", elem_classes="eb-page")

    def look(wanted: str | None) -> tuple[Any, str]:
        known = sources.all()
        key = wanted if wanted in known else next(iter(known), None)
        return gr.update(choices=list(known), value=key), _shown(sources, known, key, show)

    blocks.load(look, sweep, [sweep, page], api_visibility="private")
    sweep.input(look, sweep, [sweep, page], api_visibility="private")


def _shown(sources: Sources, known: dict[str, Source], key: str | None, show: _Show) -> str:
    if key is None:
        return render("nothing", title=sources.hint, text=_NO_SWEEPS, commands=_COMMANDS)
    try:
        return show(known[key], sources.rows(known[key]))
    except EgobenchError as error:
        return failure(str(error))
