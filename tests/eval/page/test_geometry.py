"""The panel of one scene: what is known is shown, what is not is said, and every picture has words."""

import re

import numpy as np
import pytest

from gnomon.eval.page.geometry import panel
from gnomon.eval.sight import Cloud, Facts, Sight

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
DEPTH = RNG.uniform(1, 5, (3, 6, 8)).astype(np.float16)
CLOUD = Cloud(RNG.normal(size=(9, 3)), RNG.integers(0, 256, (9, 3), dtype=np.uint8), np.eye(3, 4)[None].repeat(3, 0))
NAN, INF = float("nan"), float("inf")
GATE = np.linspace(0.2, 0.8, 6).reshape(2, 3)


def told(**more) -> Facts:
    return Facts("TinyGeo", "Gated", 3, **{"shown": [0], **more})


def shown(seen: Sight) -> str:
    html = panel(seen, "nearer/0", {"question": "Which <b>?"})
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", html))
    assert "Which &lt;b&gt;?" in html and html.count("<article") == html.count("</article>") == 1
    return html


def test_all_that_is_known_is_there():
    facts = told(factor=13.62, abs_rel=0.25, by_view=[0.1, 0.2, float("nan")], point_factor=2.0, error=0.5)
    html = shown(Sight(facts, PIXELS, DEPTH, DEPTH, CLOUD, CLOUD, {0: GATE}))
    # three rows of three views, and the gate
    assert html.count("<img") == 10 and html.count("<image") == html.count("<figcaption>") - 1 == 4
    for text in (
        "TinyGeo, 3 views, fused by Gated",
        "view 0, an image",
        "<td>0.100</td><td>0.200</td><td>unknown</td>",
        "the prediction times 13.6, which makes the medians equal",
        "Predicted points times 2, which makes the median distances equal.",
        "view 0: mean 0.500, least 0.200, most 0.800",
        "AbsRel of depth",
    ):
        assert text in html
    assert "predicts no" not in html and "The first" not in html


def test_depth_and_truth_have_one_scale():
    """The same number has the same colour in both rows, and the truth decides about the range."""
    html = shown(Sight(told(), PIXELS, DEPTH, DEPTH))
    pictures = re.findall(r'src="([^"]+)" alt="(predicted|true) depth of view 0"', html)
    assert pictures[0][0] == pictures[1][0]
    low, high = np.percentile(DEPTH.astype(float), [1, 99])
    other = shown(Sight(told(), PIXELS, 100 * DEPTH, DEPTH))
    assert f"Colours from {low:.3g} to {high:.3g}" in html and f"Colours from {low:.3g} to {high:.3g}" in other


@pytest.mark.parametrize(
    ("seen", "texts", "pictures"),
    [
        (Sight(told(), PIXELS, None, DEPTH), ["TinyGeo predicts no depth and no points.", "Gated has no gate"], 6),
        (Sight(told(), PIXELS, DEPTH, None, CLOUD), ["up to scale; the true depth is not known"], 6),
        (Sight(told(metric=True), PIXELS, DEPTH, None), ["depth, in metres", "predicts no points."], 6),
        (Sight(told(metric=True), PIXELS, DEPTH, DEPTH), ["the prediction is metric and stays as it is"], 9),
        (Sight(told(), PIXELS), ["predicts no depth and no points."], 3),
        (
            Sight(told(factor=NAN, point_factor=NAN, by_view=[INF] * 3), PIXELS, np.full_like(DEPTH, NAN), DEPTH),
            ["in the unit of the truth; no factor brings the prediction to it", "<td>infinite</td>"],
            9,
        ),
        (Sight(told(adrift=True), PIXELS), ["predicts no depth.", "No camera is placed among the predicted points"], 3),
        (Sight(told(lent=True), PIXELS, cloud=CLOUD), ["came together by the true cameras"], 3),
        (Sight(Facts("VGGT", "Add", 12), PIXELS), ["The first 3 of 12 views are shown."], 3),
        (Sight(told(), PIXELS, cloud=Cloud(np.empty((0, 3)), np.empty((0, 3), np.uint8))), ["predicts no depth."], 3),
        (Sight(told(), PIXELS, np.full_like(DEPTH, np.nan), None), ["up to scale"], 6),
    ],
)
def test_what_is_not_known_is_said(seen, texts, pictures):
    html = shown(seen)
    assert html.count("<img") == pictures and all(text in html for text in texts)


@pytest.mark.parametrize("opened", [0.0, 0.3, 1.0])
def test_an_even_gate_looks_even(opened):
    """Numbers that differ by a thousandth do not take the whole range of colours; the figures tell them apart."""
    gate = np.clip(opened + 0.001 * GATE, 0, 1)
    html = shown(Sight(told(), PIXELS, gates={0: gate}))
    low, high = map(float, re.search(r"Colours from (\S+) to (\S+): share", html).groups())
    assert high - low == pytest.approx(0.1, abs=2e-3) and 0 <= low <= opened <= high <= 1
    assert f"least {gate.min():.3f}, most {gate.max():.3f}" in html
