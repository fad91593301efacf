"""What is repeated: the first few of a kind in a minute, then a count of the others, each minute while it goes on."""

from filestreamer.process.repeats import WINDOW_SECONDS, RepeatFilter, Summary

FIRST = 3


def admitted(repeats: RepeatFilter[str], lines: list[str], now: float, kind: str = "kind") -> list[str]:
    """Return those lines that are written."""
    return [line for line in lines if repeats.admit(kind, line, FIRST, now)]


def test_the_first_few_are_written_and_the_others_counted() -> None:
    repeats: RepeatFilter[str] = RepeatFilter()

    assert admitted(repeats, list("abcdef"), 10.0) == ["a", "b", "c"]
    assert repeats.next_due_seconds(15.0) == WINDOW_SECONDS - 5.0
    assert repeats.due(10.0 + WINDOW_SECONDS - 0.001) == []
    assert repeats.due(10.0 + WINDOW_SECONDS) == [Summary("f", 3, WINDOW_SECONDS)]
    assert repeats.next_due_seconds(10.0 + WINDOW_SECONDS) is None


def test_few_in_a_minute_are_never_counted() -> None:
    repeats: RepeatFilter[str] = RepeatFilter()
    for minute in range(5):
        assert repeats.due(minute * WINDOW_SECONDS) == []
        assert admitted(repeats, list("abc"), minute * WINDOW_SECONDS) == ["a", "b", "c"]


def test_as_long_as_it_goes_on_there_is_one_summary_a_minute() -> None:
    repeats: RepeatFilter[str] = RepeatFilter()
    written, summaries = [], []
    for second in range(10 * int(WINDOW_SECONDS)):
        summaries += repeats.due(second)
        written += admitted(repeats, [f"{second}.{number}" for number in range(10)], second)
    summaries += repeats.drain(10 * WINDOW_SECONDS)

    assert written == ["0.0", "0.1", "0.2"]
    assert len(summaries) == 10
    assert len(written) + sum(summary.number for summary in summaries) == 10 * 10 * WINDOW_SECONDS
    assert summaries[0].last == "59.9"


def test_after_a_minute_with_few_they_are_written_one_by_one_again() -> None:
    repeats: RepeatFilter[str] = RepeatFilter()
    admitted(repeats, ["x"] * 100, 0.0)
    assert [summary.number for summary in repeats.due(WINDOW_SECONDS)] == [97]
    assert admitted(repeats, ["y"] * 2, WINDOW_SECONDS + 1) == []
    assert [summary.number for summary in repeats.due(2 * WINDOW_SECONDS)] == [2]
    assert admitted(repeats, ["z"], 2 * WINDOW_SECONDS) == ["z"]


def test_kinds_have_nothing_to_do_with_each_other() -> None:
    repeats: RepeatFilter[str] = RepeatFilter()
    admitted(repeats, ["noise"] * 100, 0.0, "noisy")

    assert admitted(repeats, ["news"], 1.0, "rare") == ["news"]


def test_the_end_tells_what_was_counted_and_forgets_it() -> None:
    repeats: RepeatFilter[str] = RepeatFilter()
    admitted(repeats, list("abcde"), 0.0, "one")
    admitted(repeats, list("abcd"), 2.0, "other")
    admitted(repeats, list("a"), 2.0, "third")

    assert repeats.drain(12.5) == [Summary("e", 2, 12.5), Summary("d", 1, 10.5)]
    assert repeats.drain(13.0) == []


def test_a_kind_is_kept_for_its_minute_and_no_longer() -> None:
    repeats: RepeatFilter[str] = RepeatFilter()
    for number in range(1000):
        admitted(repeats, list("abcdef"), 0.0, f"kind {number}")
    assert len(repeats.due(WINDOW_SECONDS)) == 1000
    assert repeats.due(100 * WINDOW_SECONDS) == repeats.drain(100 * WINDOW_SECONDS) == []
