"""Rows of the three kinds of files, the jobs that they are, and what is wrong with some."""
from __future__ import annotations

import json
import sys
import tracemalloc
from pathlib import Path

import pytest

from modelscope_cartoon.batch.jobs import id_of, job_of, seeded
from modelscope_cartoon.batch.sources import Unreadable, rows
from modelscope_cartoon.errors import CartoonError, InvalidRequest, UnknownOption

ROWS = [{'text': 'a cat', 'seed': 7, 'height': 512, 'guidance_scale': 7.5, 'trigger': False, 'client': 'Zoë'},
        {'text': '一只猫, "水彩"', 'num_inference_steps': 20, 'guidance_interval': [0.25, 0.5]},
        {'text': '', 'lora': 'anime.safetensors'}]


def written(folder: Path, name: str, text: str | bytes) -> Path:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


def jsonl(folder: Path) -> Path:
    return written(folder, 'jobs.jsonl', '\ufeff' + '\n\n'.join(json.dumps(row, ensure_ascii=False) for row in ROWS))


def table(folder: Path) -> Path:
    return written(folder, 'jobs.csv', '\ufefftext,seed,height,guidance_scale,trigger,client,num_inference_steps,'
                   'guidance_interval,lora\r\na cat,7,512,7.5,FALSE,Zoë,,,\r\n'
                   '"一只猫, ""水彩""",,,,,,20,"[0.25, 0.5]",\r\n"",,,,,,,,anime.safetensors\r\n')


def parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(
        [{**dict.fromkeys(set().union(*ROWS)), **row} for row in ROWS]), folder / 'jobs.parquet')
    return folder / 'jobs.parquet'


@pytest.mark.parametrize('write', [jsonl, table, parquet])
def test_the_same_rows_of_any_kind_of_file_are_the_same_jobs(write, tmp_path):
    jobs = [job_of(row, 'mini') for row in rows(write(tmp_path))]
    assert jobs == [job_of(row, 'mini') for row in ROWS]
    assert jobs[0].tags == {'client': 'Zoë'} and jobs[0].fault is None and jobs[1].request == ROWS[1]


def test_whole_numbers_that_a_table_keeps_as_floats_are_whole_again(tmp_path):
    import pyarrow
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.table({'text': ['a', 'b'], 'seed': [7.0, float('nan')], 'price': [2.0, 3.5],
                                               'odd': [[float('inf'), float('nan')], []]}),
                                tmp_path / 'jobs.parquet')
    assert list(rows(tmp_path / 'jobs.parquet')) == [{'text': 'a', 'seed': 7, 'price': 2.0, 'odd': ['inf', None]},
                                                     {'text': 'b', 'seed': None, 'price': 3.5, 'odd': []}]
    assert list(rows(written(tmp_path, 'jobs.csv', 'text,seed,price\n12,7.0,2.0\n'))) == [
        {'text': '12', 'seed': 7, 'price': '2.0'}]


@pytest.mark.parametrize('line, words', [
    ('{"text": "a cat", "width": 100}', 'nearest: 96'),
    ('{"text": "a cat", "prompt": "a dog"}', "unknown key 'prompt' (did you mean 'text'?)"),
    ('{"prompt": "a dog"}', "unknown key 'prompt' (did you mean 'text'?)"),
    ('{"client": 3}', "the input has no 'text'"),
    ('{"text": "a cat", "seed": "7"}', 'seed is'),
    ('{"text": "a cat", "output_type": "webp"}', "output_type can't be given in a row; --format says it"),
    ('{"text": "a cat", "latents": [1]}', "latents can't be given in a row"),
    ('{"text": "a cat <lora:x"}', 'not closed'),
    ('{"text": "a cat"', 'line 2 is no JSON'),
    ('{"text": "a cat", "client": NaN}', 'NaN is no number'),
    ('{"text": "a cat", "client": 1e999}', '1e999 is no number'),
    ('[' * 100_000, 'line 2 is no JSON'),
    ('[1]', 'line 2 holds a list'),
    (b'{"text": "\xff"}', 'line 2 is no JSON'),
    (b'"' + b'x' * 2**21 + b'"', 'longer than 1,048,576 bytes'),
])
def test_a_wrong_line_is_a_job_with_its_sentence_and_the_others_are_drawn(line, words, tmp_path):
    line = line if isinstance(line, bytes) else line.encode()
    first, wrong, last = (job_of(row, 'mini') for row in rows(
        written(tmp_path, 'jobs.jsonl', b'{"text": "a"}\n' + line + b'\n"b"\n')))
    assert first.fault is None and last.fault is None and last.request == {'text': 'b'}
    assert words in wrong.fault and len(json.dumps(wrong.request)) < 1000


@pytest.mark.parametrize('cells, words', [('12x', "height is '12x'"), ('5.5', 'height is 5.5'),
                                          ('true', 'height is True')])
def test_a_csv_value_that_is_not_of_its_field_s_kind_fails_its_row_alone(cells, words, tmp_path):
    wrong, right = (job_of(row, 'mini') for row in rows(
        written(tmp_path, 'jobs.csv', f'text,height\na,{cells}\nb,512\n')))
    assert words in wrong.fault and right.fault is None


def test_a_csv_line_with_too_many_values_fails_alone(tmp_path):
    wrong, right = rows(written(tmp_path, 'jobs.csv', 'text,seed\na,1,2\nb,2\n'))
    assert isinstance(wrong, Unreadable) and 'line 2 has 3 values for 2 columns' in wrong.reason
    assert right == {'text': 'b', 'seed': 2}


@pytest.mark.parametrize('name, content, words', [
    ('none.jsonl', None, 'there is no such file'),
    ('empty.jsonl', '\n\n', 'has no row in it'),
    ('empty.csv', 'text,seed\n', 'has no row in it'),
    ('jobs.xlsx', 'x', "unknown file ending '.xlsx'; accepted: .jsonl"),
    ('prompt.csv', 'prompt,seed\na,1\n', "unknown column 'prompt' (did you mean 'text'?)"),
    ('no.csv', 'a,b\n1,2\n', "no column 'text'; its columns: 'a', 'b'"),
    ('twice.csv', 'text,text\n1,2\n', "two columns 'text'"),
    ('latin.csv', 'text\nZo\u00eb\n'.encode('latin-1'), "can't be read"),
    ('quote.csv', 'text\n"a"b\n', "can't be read"),
    ('no.parquet', 'nonsense', "can't be read"),
])
def test_a_file_that_can_not_be_read_as_a_whole_is_one_sentence(name, content, words, tmp_path):
    path = tmp_path / name if content is None else written(tmp_path, name, content)
    with pytest.raises(CartoonError) as caught:
        list(rows(path))
    assert isinstance(caught.value, (InvalidRequest, UnknownOption)) and words in str(caught.value)


def test_without_pyarrow_a_parquet_file_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(InvalidRequest, match='pip install pyarrow'):
        list(rows(written(tmp_path, 'jobs.parquet', 'x')))


def test_an_id_is_of_the_content_alone_and_tells_equal_rows_apart():
    one = job_of({'text': 'a cat', 'seed': 1, 'client': 2}, 'mini')
    assert one.content == job_of({'client': 2, 'seed': 1, 'text': 'a cat', 'style': None}, 'mini').content
    others = [job_of({'text': 'a cat', 'seed': 1, 'client': 3}, 'mini'), job_of({'text': 'a cat'}, 'mini')]
    ids = {id_of(job.content, i) for job in (one, *others) for i in (1, 2)}
    assert len(ids) == 6 and all(len(job_id) == 16 for job_id in ids)


def test_a_row_without_a_seed_gets_one_that_its_id_decides():
    assert seeded({'text': 'a'}, 'f' * 16)['seed'] == 2**32 - 1
    assert seeded({'text': 'a', 'seed': 3}, 'f' * 16)['seed'] == 3


def test_what_can_share_a_batch_is_one_group_and_nothing_else():
    def group(**row):
        return job_of({'text': 'a cat', **row}, 'mini').group
    assert group() == group(text='a dog', seed=3, negative_prompt='x', client=1, label='AI')
    assert len({group(), group(num_inference_steps=20), group(style='flat'), group(text='a <lora:x:1>'),
                group(width=64), group(lora='x')}) == 6


def test_of_the_full_size_models_a_row_needs_a_style_to_choose_one():
    assert 'needs a --style' in job_of({'text': 'a cat'}, 'full').fault
    assert job_of({'text': 'a cat', 'style': 'flat'}, 'full').fault is None


@pytest.mark.parametrize('suffix', ['.jsonl', '.csv', '.parquet'])
def test_many_rows_take_no_more_memory_than_few(suffix, tmp_path):
    def peak(count: int) -> int:
        path = tmp_path / f'{count}{suffix}'
        if suffix == '.parquet':
            import pyarrow
            import pyarrow.parquet
            pyarrow.parquet.write_table(pyarrow.table({'text': [f'a cat {i}' * 20 for i in range(count)]}), path,
                                        row_group_size=500)
        else:
            lines = ['text', *(f'a cat {i}' for i in range(count))] if suffix == '.csv' else [
                json.dumps({'text': f'a cat {i}'}) for i in range(count)]
            path.write_text('\n'.join(lines))
        tracemalloc.start()
        assert sum(1 for _ in rows(path)) == count
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most
    assert peak(20_000) < peak(1000) + 300_000
