"""Imports point downwards only, the catalogue knows no torch, and nothing needs torchvision."""
from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'modelscope_cartoon'
CATALOGUE = {'errors', 'log', 'names', 'checks', 'request', 'prompt', 'styles', 'schedulers', 'formats', 'folder',
             'files', 'configuration', 'mini', 'lora_choice', 'cache', 'presets', 'a1111', 'labels', 'metadata',
             'picture_recipe'}
ENGINE = {'preprocessor', 'model', 'postprocessor', 'sampling', 'text_encoding', 'weights', 'precision', 'memory',
          'lora', 'lora_file', 'backends', 'guidance', 'deepcache', 'reading', 'prepared', 'resting', 'eight_bits',
          'sharing', 'provenance', 'corner_label', 'lettering'}
HOST = {'hub', 'pipeline', 'legacy', 'publish', 'training'}
FRONTS = {'cli', 'drawing', 'teaching', 'publishing', 'doctor', 'preparing', 'comparing', 'candidates',
          'sheeting', 'sheet_axes', 'sheet_cells', 'sheet_layout', 'sheet_page', 'sheet_pictures',
          'recorded', 'inspecting', 'replaying', 'differing', 'config_from_metadata', 'batching', 'batch'}
FLOORS = [CATALOGUE, ENGINE, HOST, FRONTS]
MODULES = sorted(path.relative_to(PACKAGE).as_posix().removesuffix('.py').removesuffix('/__init__')
                 for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py')


def floor_of(module: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if module.split('/')[0] in floor)


def imports(module: str) -> list[tuple[str, bool]]:
    """(dotted name, at the top of the file) of every import of a module of ours."""
    path = PACKAGE / f'{module}.py'
    tree = ast.parse((path if path.exists() else PACKAGE / module / '__init__.py').read_text(encoding='utf-8'))
    top = {id(node) for statement in tree.body for node in
           ([statement] if not isinstance(statement, ast.With) else statement.body)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{module}: relative import'
            found += [(f'{node.module}.{alias.name}', id(node) in top) for alias in node.names]
    return found


def ours(name: str) -> str | None:
    parts = name.split('.')
    if parts[0] != 'modelscope_cartoon' or len(parts) == 1:
        return None
    return parts[1] if parts[1] in set().union(*FLOORS) else None


def test_every_module_has_a_floor():
    assert {m.split('/')[0] for m in MODULES} == set().union(*FLOORS)


@pytest.mark.parametrize('module', MODULES)
def test_imports_never_point_upward(module):
    for name, _ in imports(module):
        if ours(name):
            assert floor_of(ours(name)) <= floor_of(module), f'{module} imports {name}, which is above it'


@pytest.mark.parametrize('module', [m for m in MODULES if floor_of(m) == 0])
def test_the_catalogue_needs_the_standard_library_and_numpy_alone(module):
    for name, at_top in imports(module):
        root = name.split('.')[0]
        if at_top and root != '__future__':
            assert root in sys.stdlib_module_names or root in ('modelscope_cartoon', 'numpy'), f'{module}: {name}'


@pytest.mark.parametrize('module', MODULES)
def test_no_module_imports_torchvision_or_opencv_at_the_top(module):
    for name, at_top in imports(module):
        assert name.split('.')[0] != 'torchvision', module
        assert not (at_top and name.split('.')[0] == 'cv2'), module


def test_a_file_is_a_room_of_at_most_250_lines():
    long = {p.name: n for p in PACKAGE.rglob('*.py') if (n := len(p.read_text('utf-8').splitlines())) > 250}
    assert not long
