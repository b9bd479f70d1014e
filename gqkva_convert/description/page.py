"""One HTML page that opens anywhere: no network, no script, readable on a phone."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
body { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.table { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: 0.9rem; }
.table td, .table th { overflow-wrap: normal; }
th, td { text-align: left; padding: 0.3rem 0.7rem; border-bottom: 1px solid #8886; vertical-align: top; }
pre { overflow-x: auto; padding: 0.7rem; background: #8882; border-radius: 6px; } code { font-size: 0.9em; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figcaption { font-size: 0.9rem; opacity: 0.8; }
"""
# Nothing is fetched and nothing runs, whatever the text contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_page(title: str, markdown: str, plots: dict[str, list[tuple[Path, str]]]) -> str:
    """Render Markdown as one HTML page with its plots embedded.

    Args:
        title: Title of the page.
        markdown: CommonMark with tables; HTML in it is shown as text.
        plots: PNG files and captions, by the heading that they follow.

    Returns:
        The page.
    """
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    for heading, files in plots.items():
        figures = "".join(_figure(file, caption) for file, caption in files)
        mark = f"<h2>{html.escape(heading)}</h2>"
        where = body.find(mark)
        if where < 0:
            body += f"{mark}\n{figures}"
            continue
        following = body.find("<h2>", where + 1)
        place = len(body) if following < 0 else following
        body = body[:place] + figures + body[place:]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _figure(file: Path, caption: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    text = html.escape(re.sub(r"\s+", " ", caption))
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>\n"
