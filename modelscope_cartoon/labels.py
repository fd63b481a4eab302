"""Machine-readable "made by AI" labels: the AIGC label of GB 45438-2025 and IPTC's digital source type, as XMP.

The forms are those that third parties describe (docs/metadata.md); nobody has certified them.
"""
from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from modelscope_cartoon.errors import InvalidRequest

NAMESPACES = {
    'TC260': 'http://www.tc260.org.cn/ns/AIGC/1.0/',
    'Iptc4xmpExt': 'http://iptc.org/std/Iptc4xmpExt/2008-02-29/',
    'cartoon': 'urn:modelscope-cartoon:recipe:1',
}
AIGC, SOURCE_TYPE, RECIPE = 'TC260:AIGC', 'Iptc4xmpExt:DigitalSourceType', 'cartoon:recipe'
BY_A_TRAINED_MODEL = 'http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia'
VISIBLE = 'AI生成 AI-generated'
PRODUCER = 'MODELSCOPE_CARTOON_PRODUCER'      # environment: who draws, for ContentProducer
_RDF = 'http://www.w3.org/1999/02/22-rdf-syntax-ns#'


def aigc(recipe: Mapping[str, Any] | None) -> str:
    """The AIGC label. Label 1: made by AI. ProduceID: the head of the pixels' sha256 where there is a recipe."""
    number = recipe['pixels_sha256'][:32] if recipe else uuid.uuid4().hex
    return json.dumps({'Label': '1', 'ContentProducer': os.environ.get(PRODUCER) or 'modelscope-cartoon',
                       'ProduceID': number, 'ReservedCode1': '', 'ContentPropagator': '', 'PropagateID': '',
                       'ReservedCode2': ''}, ensure_ascii=True, separators=(',', ':'))


def xmp(properties: Mapping[str, str]) -> str:
    """An XMP packet of `properties`: 'prefix:name' -> text, whose markup is escaped."""
    spaces = ' '.join(f'xmlns:{prefix}={quoteattr(NAMESPACES[prefix])}'
                      for prefix in dict.fromkeys(name.partition(':')[0] for name in properties))
    body = ''.join(f'<{name}>{escape(text)}</{name}>' for name, text in properties.items())
    return ('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
            f'<rdf:RDF xmlns:rdf="{_RDF}"><rdf:Description rdf:about="" {spaces}>{body}</rdf:Description></rdf:RDF>'
            '</x:xmpmeta><?xpacket end="w"?>')


def read_xmp(packet: str | bytes) -> dict[str, str]:
    """Those of our properties that an XMP packet has, written as elements or attributes.

    InvalidRequest where it is no XML, or has a DTD, whose entities could grow without end.
    """
    data = packet.encode() if isinstance(packet, str) else packet
    if b'<!' in data.replace(b'<!--', b'').replace(b'<![CDATA[', b''):
        raise InvalidRequest('the XMP packet has a DTD, which is not read.')
    try:
        root = ElementTree.fromstring(data.rstrip(b'\0'))
    except (ElementTree.ParseError, ValueError) as error:
        raise InvalidRequest(f'the XMP packet is no XML that can be read ({error}).') from error
    found: dict[str, str] = {}
    for description in root.iter(f'{{{_RDF}}}Description'):
        for name in (AIGC, SOURCE_TYPE, RECIPE):
            prefix, _, tag = name.partition(':')
            key = f'{{{NAMESPACES[prefix]}}}{tag}'
            text = description.get(key) or description.findtext(key)
            if text:
                found[name] = text
    return found
