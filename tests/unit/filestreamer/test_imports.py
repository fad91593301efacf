import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from filestreamer import imports


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make two libraries, and the modules that they import; none of them is imported before or afterwards."""
    (tmp_path / "a_library.py").write_text(
        "import heavy\n"
        "try:\n    import optional\nexcept ImportError:\n    optional = None\n"
        "def heavily():\n    return heavy.VALUE\n"
    )
    (tmp_path / "a_hasty_library.py").write_text("import heavy\nVALUE = heavy.VALUE\n")
    (tmp_path / "heavy.py").write_text("VALUE = 1\n")
    (tmp_path / "optional.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("a_library", "a_hasty_library", "heavy", "optional"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("modules")
def test_a_module_is_imported_when_it_is_used() -> None:
    with imports.without("heavy", absent=("optional",)):
        import a_library  # type: ignore[import-not-found]
    assert {"heavy", "optional"}.isdisjoint(sys.modules)
    assert a_library.optional is None
    assert a_library.heavily() == 1
    assert "heavy" in sys.modules
    import optional  # type: ignore[import-not-found]

    assert optional is not None


@pytest.mark.usefixtures("modules")
def test_a_module_that_is_used_at_once_is_imported_at_once() -> None:
    with imports.without("heavy"):
        import a_hasty_library  # type: ignore[import-not-found]
    assert a_hasty_library.VALUE == 1
    assert sys.modules["heavy"].VALUE == 1


@pytest.mark.usefixtures("modules")
def test_a_module_that_is_there_stays() -> None:
    import heavy  # type: ignore[import-not-found]

    with imports.without("heavy"):
        import a_library
    assert a_library.heavy is heavy
    assert sys.modules["heavy"] is heavy


def test_protobuf_of_the_protocol_needs_nothing_in_pure_python() -> None:
    """It has messages in C here: else the stand-in is replaced, and a command takes longer to start."""
    code = (
        "import sys; from filestreamer.wire.codec import decode, encode; from filestreamer.wire import messages as m;"
        "assert decode(encode(m.Withdrawn((1,)))) == m.Withdrawn((1,));"
        "sys.exit('google.protobuf.internal.python_message' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
