"""The package's metadata: dependencies, extras, entry points. Versions that were tested together: constraints.txt."""
import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (here / 'modelscope_cartoon' / '__init__.py').read_text()).group(1)

setup(
    name='modelscope-cartoon',
    version=version,
    description='Cartoon text-to-image for ModelScope: five styles, fast, anywhere, offline too.',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10',
    packages=find_packages(include=['modelscope_cartoon', 'modelscope_cartoon.*']),
    package_data={'modelscope_cartoon': ['configuration.json', 'styles/*.json', 'publish/cards/*', 'mini/base/**/*',
                                         'mini/base/*']},
    install_requires=[
        'modelscope[framework]>=1.40',
        'torch>=2.10',
        'diffusers>=0.41',
        'transformers>=5.3',
        'accelerate>=1.10',        # loads big weights without building them twice; moves them on and off a GPU
        'safetensors>=0.5',
        'opencv-python',
        'Pillow>=11',
        'numpy',
        'peft>=0.17',              # LoRA: diffusers attaches and trains them through it
        'psutil',
        'filelock',                # two processes that want the same converted network: one builds it
    ],
    extras_require={
        'openvino': ['openvino>=2026.4'],
        'int8': ['openvino>=2026.4', 'nncf>=3.4'],
        'ray': ['ray>=2.60'],      # 2.50 lost actors of living machines, and started no others, when a machine died
        'test': ['pytest>=8', 'hypothesis>=6', 'build', 'setuptools>=77', 'ruff', 'tensorboard', 'openvino>=2026.4',
                 'nncf>=3.4', 'ray>=2.60', 'sd-parsers>=0.6'],     # another's reader of what we write into pictures
    },
    entry_points={
        'console_scripts': ['modelscope-cartoon = modelscope_cartoon.cli:main'],
        'modelscope_hub.cli_plugins': ['cartoon = modelscope_cartoon.cli:CartoonCommand'],
    },
)
