"""summary.html: all identities on one page that needs no other file, the worst first, each with test frames above what it renders for them."""

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np

from fiag_dist.acting.synthesize import PREVIEW
from fiag_dist.adaptation.results import Result
from fiag_dist.errors import DataError
from fiag_dist.evaluation.examine import STRIP
from fiag_dist.storage import Storage, open_storage

PAGE = "summary.html"
PICTURES = 200
"""Identities with a picture, the worst: a page of thousands must still open."""
WIDTH_PX = 900
JPEG_QUALITY = 80
NUMBERS = (
    ("head_psnr_db", "head, dB"),
    ("nearest_warped_head_psnr_db", "nearest + warp, dB"),
    ("gain_db", "gain, dB"),
    ("full_psnr_db", "full frame, dB"),
    ("scratch_head_psnr_db", "from scratch, dB"),
    ("validation_psnr_db", "held-out, dB"),
    ("steps", "steps"),
    ("skipped_steps", "steps left out"),
    ("seconds", "seconds"),
)
STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 940px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.05rem; margin: 0 0 .3rem; }
article { border-top: 1px solid #8886; padding: 1rem 0; }
dl { display: flex; flex-wrap: wrap; gap: .2rem 1.6rem; margin: 0 0 .5rem; }
dl div { display: flex; flex-direction: column-reverse; } dt { font-size: .75rem; opacity: .7; } dd { margin: 0; font-variant-numeric: tabular-nums; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
.state { font-weight: normal; opacity: .7; } .failed { color: #c0392b; } .worse { color: #c0392b; }
"""


def write_page(storage: Storage, results: Sequence[Result], title: str) -> None:
    """Writes the page beside the identity folders."""
    ordered = sorted(results, key=lambda result: result.rank)
    parts = [_article(result, number < PICTURES) for number, result in enumerate(ordered)]
    states = [str(result.values["state"]) for result in results]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    intro = (
        f"<h1>{html.escape(title)}</h1><p>{counts}. The worst first, by gain: PSNR of the head on frames that were never trained on, over the nearest "
        "training frame warped onto the head. Pictures: such frames above, what the identity renders for them below.</p>"
    )
    page = f'<!doctype html><html lang="en"><head>{head}</head><body>{intro}{"".join(parts)}</body></html>\n'
    storage.write(PAGE, page.encode())


def _article(result: Result, with_picture: bool) -> str:
    values = result.values
    name, state = html.escape(str(values["name"])), str(values["state"])
    cells = []
    for key, title in NUMBERS:
        value = values[key]
        if value is None:
            continue
        said = f"{value:.2f}" if isinstance(value, float) else html.escape(str(value))
        worse = key == "gain_db" and isinstance(value, float) and value < 0
        cells.append(f"<div><dt>{title}</dt><dd{' class=worse' if worse else ''}>{said}</dd></div>")
    why = f'<p class="failed">{html.escape(str(values["why"]))}</p>' if values["why"] else ""
    picture = _picture(result) if with_picture and state == "done" else ""
    return f'<article><h2>{name} <span class="state {state}">{state}</span></h2>{why}<dl>{"".join(cells)}</dl>{picture}</article>'


def _picture(result: Result) -> str:
    """The strip of an evaluation as a link to the preview; nothing when it is gone."""
    try:
        data = open_storage(str(result.values["folder"])).read(STRIP)
    except DataError:
        return ""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return ""
    height, width = image.shape[:2]
    if width > WIDTH_PX:
        image = cv2.resize(image, (WIDTH_PX, height * WIDTH_PX // width), interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    name = html.escape(str(result.values["name"]))
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    return f'<a href="{name}/{PREVIEW}"><img src="{source}" alt="{name}: test frames above, renders below"></a>'
