"""The benchmark of batches runs, and its report says what its JSON says."""
from __future__ import annotations

import json

from benchmarks import batch, batch_report

MACHINE = {'processor': 'a processor', 'cores': 2, 'threads': 2, 'load_before': [0.1, 0, 0]}


def test_every_row_goes_through_the_ledger_and_is_a_file(tmp_path, capsys):
    run = batch.ledger_rate(tmp_path, 30, 4, 0)
    assert run['files'] == run['rows'] == 30 and run['rows_per_second'] == 30 / run['seconds'] > 10


def test_the_report_comes_from_the_json_between_its_markers(tmp_path):
    runs = [{'batch_size': size, 'rows': 3000, 'rows_per_second': rate}
            for size in (1, 4) for rate in (100 * size, 90, 500)]
    samples = {'bare': [10, 20], 'batch': [10.2, 20.6]}
    measured = {'schema': 1, 'kind': 'batch', 'date': '2026-01-02T03:04', 'machine': MACHINE, 'command': 'python -m x',
                'versions': {'torch': '2.13.0'}, 'ledger': runs,
                'mini': {'rows': 16, 'steps': 20, 'batch_size': 4, 'samples': samples},
                'memory': [{'rows': 10, 'peak_mib': 250.2, 'before_mib': 250.1},
                           {'rows': 10_000, 'peak_mib': 254.3, 'before_mib': 250.1}]}
    killed = {'schema': 1, 'kind': 'batch-kills', 'date': '2026-01-02T03:04', 'command': 'python -m y', 'kills': 200,
              'folders': 40, 'rows': 24, 'files': 28, 'model': 'mini', 'done_at_a_kill': [0, 4, 24, 8],
              'drawn_again_in_flight': 7}
    document = tmp_path / 'batches.md'
    document.write_text(''.join(f'<!-- benchmark {kind} -->\nold\n<!-- /benchmark {kind} -->\n'
                                for kind in ('batch', 'batch-kills')))
    paths = []
    for result in (measured, killed):
        paths.append(tmp_path / f'{result["kind"]}.json')
        paths[-1].write_text(json.dumps(result))
    batch_report.main([*map(str, paths), '--into', str(document)])
    text = document.read_text()
    assert '| 4 | 400 | 90 to 500 | yes |' in text and '| 1 | 100 | 90 to 500 | no |' in text
    assert 'the command takes +2.5 % (median; +2.0 to +3.0 %)' in text and 'shared' not in text
    assert '10,000 rows 254 MiB (+4.2)' in text
    assert '200 kills over 40 folders' in text and '2 of them came when some rows' in text and '\nold\n' not in text
