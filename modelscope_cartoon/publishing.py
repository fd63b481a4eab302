"""The publish command: what goes up, what stays and why, and where it is now."""
from __future__ import annotations

import argparse

_CARD = ('style', 'licence', 'revision', 'base_model', 'training', 'chinese_name', 'device')
_UNITS = ('bytes', 'kB', 'MB', 'GB')


def publish(arguments: argparse.Namespace) -> int:
    from modelscope_cartoon import publish as publisher

    publication = publisher.publish(
        arguments.source, arguments.to, output=arguments.output, dry_run=arguments.dry_run, token=arguments.token,
        private=arguments.private, **{name: value for name in _CARD if (value := getattr(arguments, name)) is not None})
    repository, sent = publication.repository, publication.sent
    for name, file in repository.files.items():
        print(f'{size(file.bytes):>10}  {name}{"" if sent is None or name in sent else "  (was there)"}')
    for name, reason in repository.left_out.items():
        print(f'{"stays":>10}  {name}  ({reason})')
    for note in repository.notes:
        print(f'note: {note}')
    total = f'{len(repository.files)} files, {size(sum(file.bytes for file in repository.files.values()))}'
    if sent is None:
        print(f'{total}, loaded and drawn with; nothing was sent. They would go to {publication.url} '
              f'as {_terms(arguments, repository.licence)}.')
    else:
        print(f'{total}, {len(sent)} of them sent now; a fresh download is the same. {publication.url}')
    return 0


def _terms(arguments: argparse.Namespace, licence: str) -> str:
    tag = f', tag {arguments.revision}' if arguments.revision else ''
    return f'a {"private" if arguments.private else "public"} model under {licence}{tag}'


def size(number: float) -> str:
    """1234567 -> '1.2 MB', as hubs count."""
    unit = min(len(str(int(number))) - 1, 9) // 3
    return f'{number / 1000**unit:.{1 if unit else 0}f} {_UNITS[unit]}'
