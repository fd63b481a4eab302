"""A sheet as one HTML file: pictures and styles are in it, nothing is loaded from elsewhere, no script runs."""
from __future__ import annotations

import base64
import html
import io
import json
import re
import unicodedata
from collections.abc import Iterator

from modelscope_cartoon.sheet_axes import Cell, Label, Section, Sheet

_INLINED_AS_IT_IS = 400_000     # bytes; larger pictures are in the page as WebP, whole in the folder beside it

_STYLE = '''
:root { color-scheme: light dark; --paper: #faf6ef; --ink: #2d2722; --muted: #7d7165; --line: #e4dbce; --card: #f1eadf;
  --accent: #c6653d; --warning: #9e3e28 }
@media (prefers-color-scheme: dark) { :root { --paper: #1d1a17; --ink: #efe8dd; --muted: #a39686; --line: #3a342d;
  --card: #2a2621; --accent: #e08a61; --warning: #e9937a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif }
main { max-width: 1760px; margin: 0 auto; padding: clamp(20px, 5vw, 64px) }
header::before { content: ""; display: block; width: 44px; height: 5px; background: var(--accent); margin-bottom: 18px }
h1 { margin: 0; font-size: clamp(24px, 3vw, 38px); font-weight: 600; line-height: 1.25; overflow-wrap: anywhere }
h2 { margin: 44px 0 0; padding-top: 24px; border-top: 1px solid var(--line); font-size: 24px; font-weight: 600;
  overflow-wrap: anywhere }
header p, footer { color: var(--muted); overflow-wrap: anywhere }
header p { margin: 8px 0 0 }
.grid { display: grid; gap: 18px; margin-top: 28px; align-items: start;
  grid-template-columns: var(--rows) repeat(var(--columns), minmax(110px, 512px)); overflow-x: auto }
.column, .row { overflow-wrap: anywhere; font-size: 20px; font-weight: 550; line-height: 1.3 }
.column { align-self: end }
.row { align-self: center }
.column small, .row small { display: block; font-size: 14px; font-weight: 400; color: var(--muted) }
figure { margin: 0; min-width: 0 }
figure img { display: block; width: 100%; height: auto; border-radius: 12px; cursor: zoom-in;
  outline: 1px solid #8882; outline-offset: -1px }
figcaption { display: none; margin-top: 6px }
input { position: absolute; opacity: 0 }
input:focus-visible + img { outline: 3px solid var(--accent) }
input:checked + img { position: fixed; z-index: 1; inset: 0; width: 100vw; height: 100vh; height: 100dvh; padding: 16px;
  object-fit: contain; background: color-mix(in srgb, var(--paper) 94%, transparent); border-radius: 0; outline: 0;
  cursor: zoom-out }
.fault { padding: 20px; border-radius: 12px; background: var(--card); color: var(--muted); font-size: 14px;
  overflow-wrap: anywhere }
.fault b { color: var(--warning); font-weight: 550 }
details { margin-top: 6px; font-size: 13px; color: var(--muted) }
summary { cursor: pointer }
pre { overflow: auto; max-height: 60vh; margin: 6px 0 0; padding: 12px; border-radius: 10px; background: var(--card);
  color: var(--ink); white-space: pre-wrap; overflow-wrap: anywhere }
footer { display: flex; flex-wrap: wrap; gap: 4px 40px; justify-content: space-between; margin-top: 44px;
  padding-top: 18px; border-top: 1px solid var(--line); font-size: 14px }
@media (max-width: 720px) {
  .grid { grid-template-columns: 1fr 1fr; gap: 14px } .grid.single { grid-template-columns: 1fr }
  .column, .corner { display: none } .row { grid-column: 1 / -1; margin-top: 14px } figcaption { display: block } }
'''.strip()


def page_of(sheet: Sheet) -> str:
    """The whole document."""
    language = 'zh' if re.search('[\u4e00-\u9fff]', sheet.title) else 'en'
    body = '\n'.join(line for section in sheet.sections for line in _section(section))
    note = f'<p>{escape(sheet.note)}</p>' if sheet.note else ''
    return f'''<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="{escape(sheet.maker)}">
<title>{escape(sheet.title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<main>
<header><h1>{escape(sheet.title)}</h1>{note}</header>
{body}
<footer><span>{escape(sheet.settings)}</span><span>{escape(sheet.maker)}</span></footer>
</main>
</body>
</html>
'''


def _section(section: Section) -> Iterator[str]:
    columns, labelled = len(section.columns), any(map(any, section.rows))
    yield '<section>'
    if section.title:
        yield f'<h2>{escape(section.title)}</h2>'
    single, room = ' single' if columns == 1 else '', 'minmax(90px, 220px)' if labelled else ''
    yield f'<div class="grid{single}" style="--columns: {columns}; --rows: {room}">'
    if any(map(any, section.columns)):
        yield '<div class="corner"></div>' * labelled + ''.join(_label('column', label) for label in section.columns)
    for label, row in zip(section.rows, section.cells):
        if labelled:
            yield _label('row', label)
        yield from map(_figure, row)
    yield '</div>\n</section>'


def _label(place: str, label: Label) -> str:
    small = f'<small>{escape(label.sub)}</small>' if label.sub else ''
    return f'<div class="{place}">{escape(label.main)}{small}</div>'


def _figure(cell: Cell) -> str:
    caption = f'<figcaption>{escape(cell.name)}</figcaption>' if cell.name else ''
    if cell.fault:
        return (f'<figure><div class="fault"><b>没有画成 not drawn</b><br>{escape(cell.fault)}</div>{caption}'
                f'{_details(cell)}</figure>')
    (width, height), source = _inlined(cell)
    alternative = escape(', '.join(filter(None, (str(cell.request.get('text', '')), cell.name))))
    image = (f'<label><input type="checkbox" aria-label="enlarge"><img src="{source}" width="{width}" '
             f'height="{height}" alt="{alternative}" loading="lazy" decoding="async"></label>')
    return f'<figure>{image}{caption}{_details(cell)}</figure>'


def _details(cell: Cell) -> str:
    recipe = json.dumps(cell.recipe or {'request': cell.request}, ensure_ascii=False, indent=1)
    return f'<details><summary>配方 recipe</summary><pre>{escape(recipe)}</pre></details>'


def _inlined(cell: Cell) -> tuple[tuple[int, int], str]:
    """((width, height), data URI) of the cell's picture."""
    from PIL import Image

    data, kind = cell.picture.read_bytes(), 'png'
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
        if len(data) > _INLINED_AS_IT_IS:
            buffer, kind = io.BytesIO(), 'webp'
            image.save(buffer, 'WEBP', quality=90)
            data = buffer.getvalue()
    return size, f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def escape(text: str) -> str:
    """`text` as HTML that shows it; what HTML can't hold (control characters, lone surrogates) is U+FFFD."""
    return html.escape(''.join('\ufffd' if unicodedata.category(one) in ('Cc', 'Cs') and one != '\n' else one
                               for one in text))
