"""The command line as a user meets it: exit codes, what is on stdout and stderr, what lies on the disk."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from modelscope_cartoon import metadata
from modelscope_cartoon.cli import main

QUICK = ['--steps', '2', '--device', 'cpu']


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def draw(tiny_folder, capsys):
    """draw(...) -> (exit code, stdout, stderr)"""
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(['draw', '--model', str(tiny_folder), *QUICK, *map(str, arguments)])
        return code, *capsys.readouterr()
    return run


def test_a_picture_is_drawn_into_the_named_file(draw):
    code, out, _ = draw('a cat', '--seed', 7, '-o', 'deep/down/cat.png')
    assert code == 0 and out.startswith(str(Path('deep/down/cat.png'))) and 'seed 7' in out
    assert Image.open('deep/down/cat.png').size == (64, 64)


def test_the_same_seed_gives_the_same_file_and_another_another(draw, monkeypatch):
    monkeypatch.setenv('SOURCE_DATE_EPOCH', '1700000000')     # the recipe has the date in it
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        draw('a cat', '--seed', seed, '-o', f'{name}.png')
    assert Path('a.png').read_bytes() == Path('b.png').read_bytes() != Path('c.png').read_bytes()


def test_all_styles_and_several_seeds_make_a_file_each(draw):
    code, out, _ = draw('a Cat, sitting!', '--style', 'all', '--seed', 1, 2, '-o', 'out')
    names = sorted(p.name for p in Path('out').iterdir())
    assert code == 0 and len(out.splitlines()) == len(names) == 10
    assert names[0] == 'a-cat-sitting-clipart-1.png'


def test_several_pictures_for_one_file_name_get_numbers_and_none_is_lost(draw):
    draw('a cat', '--style', 'flat', '-n', 2, '--seed', 5, '-o', 'cat.jpg')
    assert sorted(p.name for p in Path().iterdir()) == ['cat-flat-5.jpg', 'cat-flat-6.jpg']
    assert Image.open('cat-flat-5.jpg').format == 'JPEG'


def test_equal_prompts_of_a_file_do_not_overwrite_each_other(draw):
    Path('prompts.txt').write_text('a cat\n\na cat\n一只猫\n', encoding='utf-8')
    code, out, err = draw('--prompt-file', 'prompts.txt', '--seed', 5)
    assert code == 0 and len(set(out.splitlines())) == 3 and len(list(Path().glob('*.png'))) == 3
    assert '一只猫' in err


def test_json_is_one_document_with_everything_to_find_the_pictures(draw):
    code, out, _ = draw('a cat', '--style', 'clipart', '--seed', 3, '--json')
    picture = json.loads(out)['pictures'][0]
    assert code == 0 and Path(picture['file']).is_file()
    assert picture['seed'] == 3 and picture['revised_prompt'] == 'archer style, a cat'


def test_no_trigger_leaves_the_prompt_alone(draw):
    assert json.loads(draw('a cat', '--style', 'flat', '--no-trigger', '--json')[1])['pictures'][0][
        'revised_prompt'] == 'a cat'


@pytest.mark.parametrize('arguments, words', [
    (['a cat', '--steps', '0'], 'num_inference_steps is 0'),
    (['a cat', '--height', '100'], 'nearest: 96'),
    (['a cat', '--style', 'flatt'], "did you mean 'flat'"),
    (['a cat', '--scheduler', 'eulr'], "did you mean 'Euler'"),
    (['a cat', '--seed', '-1'], 'seed is -1'),
    (['a cat', '-o', 'cat.gif'], 'accepted: .png'),
    (['a cat', '--dtype', 'int8'], 'accepted: auto, float32'),
    (['a cat', '--memory', 'tiny'], 'accepted: auto, full'),
    ([], 'give a prompt'),
    (['a cat', '--prompt-file', 'x'], 'not both'),
    (['--prompt-file', 'missing.txt'], "can't be read"),
])
def test_a_users_mistake_is_one_line_and_exit_code_2(draw, arguments, words):
    code, out, err = draw(*arguments)
    assert code == 2 and words in err and out == ''
    assert len(err.splitlines()) == 1 and not list(Path().iterdir())


def test_a_model_that_is_not_there_is_a_failure_with_exit_code_1(capsys):
    assert main(['draw', 'a cat', '--model', 'no such model']) == 1
    assert 'no model' in capsys.readouterr().err


def test_full_needs_a_style(capsys):
    assert main(['draw', 'a cat', '--model', 'full']) == 2
    assert '--style' in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_a_failure_and_nothing_is_left(draw):
    Path('file').write_text('x')
    code, _, err = draw('a cat', '-o', 'file/cat.png')
    assert code == 1 and 'could not be written' in err and [p.name for p in Path().iterdir()] == ['file']


def test_ctrl_c_is_exit_code_130_and_keeps_what_is_saved(draw, monkeypatch):
    from modelscope_cartoon import drawing
    real, written = drawing.write_file, []

    def interrupted_at_the_second(path, data):
        if written:
            raise KeyboardInterrupt
        written.append(real(path, data))
        return written[0]
    monkeypatch.setattr(drawing, 'write_file', interrupted_at_the_second)
    code, _, err = draw('a cat', '--seed', 1, 2, 3)
    assert code == 130 and 'interrupted' in err and len(list(Path().glob('*.png'))) == 1


def test_styles_are_listed_for_people_and_for_programs(capsys):
    assert main(['styles']) == 0 and '扁平' in capsys.readouterr().out
    assert main(['styles', '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r['name'] for r in rows] == ['design', 'watercolor', 'illustration', 'clipart', 'flat']


def test_doctor_names_versions_devices_and_models(capsys):
    assert main(['doctor', '--json']) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings['packages']['torch'] and findings['cpu']['threads'] >= 1
    assert Path(findings['models']['mini']).is_dir()
    assert 'damo/cv_cartoon_stable_diffusion_flat' in findings['models']


def test_doctor_says_what_to_install_where_opencv_cannot_be_imported(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    assert main(['doctor']) == 0
    assert 'apt-get install libgl1' in capsys.readouterr().out


def test_doctor_verifies_the_models_that_are_here(capsys, monkeypatch, tiny_folder, tmp_path):
    import shutil

    from modelscope_cartoon import mini
    folder = shutil.copytree(tiny_folder, tmp_path / 'model')
    monkeypatch.setattr(mini, 'path', lambda: folder)
    assert main(['doctor', '--verify']) == 0 and 'mini: as it should be' in capsys.readouterr().out
    weights = folder / 'vae' / 'diffusion_pytorch_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(['doctor', '--verify']) == 1 and str(weights) in capsys.readouterr().out


def test_the_hosts_command_line_offers_the_same_command():
    """The host's own console script finds the plug-in, runs it and passes the exit code on."""
    code = ("import sys; sys.argv = ['modelscope', *sys.argv[1:]]; "
            'from modelscope_hub.cli.main import run_cmd; sys.exit(run_cmd())')
    listed = subprocess.run([sys.executable, '-c', code, 'cartoon', 'styles', '--json'], capture_output=True, text=True)
    assert listed.returncode == 0 and '"flat"' in listed.stdout
    refused = subprocess.run([sys.executable, '-c', code, 'cartoon', 'draw'], capture_output=True, text=True)
    assert refused.returncode == 2 and 'give a prompt' in refused.stderr and 'Traceback' not in refused.stderr


def test_it_draws_where_opencv_cannot_be_imported(tiny_folder):
    """A server without libGL: opencv's wheel is there, and importing it fails."""
    code = ("import sys; sys.modules['cv2'] = None; from modelscope_cartoon.cli import main; "
            "sys.exit(main(['draw', 'a cat', '--model', sys.argv[1], '--steps', '2', '-o', 'cat.png']))")
    run = subprocess.run([sys.executable, '-c', code, str(tiny_folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Image.open('cat.png').size == (64, 64)


@pytest.mark.parametrize('arguments, words', [
    (['draw', 'a cat', '--stile', 'flat'], "did you mean '--style'?"),
    (['draw', 'a cat', '--steps', 'few'], 'invalid int'),
    (['paint'], 'invalid choice'), ([], 'COMMAND')])
def test_a_mistyped_option_is_one_line_and_exit_code_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and err.count('\n') == 1 and words in err


def test_metadata_can_be_left_out_and_a_label_written(draw):
    draw('a cat', '--seed', 1, '-o', 'all.png')
    draw('a cat', '--seed', 1, '--no-metadata', '-o', 'none.png')
    draw('a cat', '--seed', 1, '--metadata', 'aigc', 'iptc', '--label', '-o', 'labels.webp')
    whole, bare, labels = (metadata.read(name) for name in ('all.png', 'none.png', 'labels.webp'))
    assert whole.recipe and whole.parameters and whole.aigc and whole.source_type
    assert not (bare.recipe or bare.parameters or bare.aigc or bare.source_type)
    assert labels.aigc and labels.source_type and not (labels.recipe or labels.parameters)
