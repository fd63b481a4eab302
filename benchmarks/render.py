"""The tables and plots of docs/performance.md, from result files alone.

    python -m benchmarks.render benchmarks/results/cpu_<date>.json ... [--into docs/performance.md] [--pictures DIR]

Each result goes between its own markers, <!-- benchmark cpu --> and <!-- /benchmark cpu -->: cpu, cpu-int8 (with our
int8 backend) and gpu for Stable Diffusion 2.1, mini-cpu and mini-gpu for the embedded model; cpu-NAME for a run with
--section NAME. What no result is given for stays as it is.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.options import SCHEMA
from benchmarks.plots import bars
from benchmarks.stats import Result
from benchmarks.tables import section

DOCS = Path(__file__).parent.parent / 'docs'


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', type=Path, nargs='+')
    parser.add_argument('--into', type=Path, default=DOCS / 'performance.md')
    parser.add_argument('--pictures', type=Path, default=DOCS / 'pictures')
    arguments = parser.parse_args(argv)
    text = arguments.into.read_text(encoding='utf-8')
    for path in arguments.results:
        result = read(path)
        text = replaced(text, key(result), block(result, path, arguments.into, arguments.pictures))
    from modelscope_cartoon.files import write_file
    write_file(arguments.into, text.encode())


def read(path: Path) -> Result:
    result = json.loads(path.read_text(encoding='utf-8'))
    if result.get('schema') != SCHEMA:
        raise SystemExit(f'{path} has schema {result.get("schema")}; this script reads {SCHEMA}: '
                         'run the benchmark again.')
    return result


def key(result: Result) -> str:
    section = result.get('section') or ('int8' if 'int8' in result['sides'] else '')
    kind = result['kind'] + (f'-{section}' if section else '')
    return kind if result['model']['sd21'] else f'{result["model"]["name"]}-{kind}'


def block(result: Result, path: Path, document: Path, pictures: Path) -> str:
    try:
        picture = bars(result, pictures / f'performance_{key(result).replace("-", "_")}.png')
    except ImportError as error:
        print(f'no plot ({error}); pip install -r benchmarks/requirements.txt', file=sys.stderr)
        picture = None
    plot = f'![Seconds of a picture, side by side]({link(picture, document)})\n\n' if picture else ''
    return f'{plot}{section(result)}\n\nEvery sample: [{path.name}]({link(path, document)}).'


def link(target: Path, document: Path) -> str:
    return Path(os.path.relpath(target.resolve(), document.resolve().parent)).as_posix()


def replaced(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers of `name`; SystemExit where they aren't there."""
    begin, end = f'<!-- benchmark {name} -->', f'<!-- /benchmark {name} -->'
    if begin not in text or end not in text:
        raise SystemExit(f'the document has no place for {name!r}: write {begin} and {end} where it belongs.')
    before, _, rest = text.partition(begin)
    return f'{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}'


if __name__ == '__main__':
    main()
