"""A wheel, built and installed from scratch into an empty folder, has everything that drawing needs."""
from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import modelscope_cartoon

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the files that git tracks, so that nothing lying about can help."""
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    listed = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=ROOT,
                            check=True, capture_output=True, text=True).stdout.split('\0')
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, '-m', 'build', '--wheel', '--no-isolation', '--outdir', out, source], check=True,
                   capture_output=True)
    return next(out.glob('*.whl'))


def test_the_wheel_has_every_data_file_and_no_test(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / 'modelscope_cartoon').rglob('*'):
        relative = path.relative_to(ROOT).as_posix()
        if path.is_file() and '__pycache__' not in relative:
            assert relative in names
    assert not any(name.startswith(('tests/', 'mini_training/', 'benchmarks/')) for name in names)


def test_the_wheel_alone_knows_the_styles_and_its_mini_model(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = ('import sys; sys.path.insert(0, sys.argv[1]); from modelscope_cartoon import mini, styles, folder; '
            'print(len(styles.styles()), folder.ModelFolder(mini.path()).root)')
    run = subprocess.run([sys.executable, '-c', code, tmp_path], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ['5', str(tmp_path / 'modelscope_cartoon' / 'mini' / 'base')]


def test_the_wheel_names_both_command_lines(wheel):
    archive = zipfile.ZipFile(wheel)
    entry_points = archive.read(next(n for n in archive.namelist() if n.endswith('entry_points.txt'))).decode()
    assert 'modelscope-cartoon = modelscope_cartoon.cli:main' in entry_points
    assert '[modelscope_hub.cli_plugins]' in entry_points


def test_the_repositorys_configuration_is_the_packages():
    root = json.loads((ROOT / 'configuration.json').read_text('utf-8'))
    assert root == json.loads((ROOT / 'modelscope_cartoon' / 'configuration.json').read_text('utf-8'))
    assert not {'plugins', 'allow_remote'} & set(root)


def test_the_public_names_are_there():
    for name in modelscope_cartoon.__all__:
        assert getattr(modelscope_cartoon, name) is not None


def test_the_changelog_has_the_version():
    assert f'## {modelscope_cartoon.__version__}' in (ROOT / 'CHANGELOG.md').read_text('utf-8')
