"""The chunk size that suits a file: what is refused before a table of chunks is made."""

import pytest

from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError
from sender.settings import parse
from sender.source.chunk_size import choose_chunk_size
from tests.support.manifests import item_of


def test_a_file_that_no_chunk_size_fits_is_refused() -> None:
    settings, _ = parse(["f", "--to", "127.0.0.1:1"], {})
    largest = limits.CHUNKS_PER_FILE * limits.CHUNK_SIZE_MAX
    assert choose_chunk_size(settings, item_of(largest)) == limits.CHUNK_SIZE_MAX
    with pytest.raises(UsageError, match="no chunk size is large enough"):
        choose_chunk_size(settings, item_of(largest + 1))
