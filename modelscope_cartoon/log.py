"""The package's logger. With no handler of the application's, Python itself shows warnings on stderr."""
import logging

logger = logging.getLogger('modelscope_cartoon')
