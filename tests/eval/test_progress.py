"""The prediction comes from fresh items alone, and a quiet output stays quiet."""

import time

from gnomon.eval.progress import Pace, clock, progress


def test_clock():
    assert [clock(s) for s in (0, 59.4, 60, 185, 3600, 7620)] == ["0s", "59s", "1m00s", "3m05s", "1h00m", "2h07m"]


def test_items_of_an_earlier_run_do_not_count_for_the_rate():
    pace = Pace(110)
    pace.start = time.monotonic() - 10
    pace.add(50, False)
    assert str(pace) == ""
    pace.add(20, True)
    # 20 in 10 seconds, 40 to go
    assert str(pace) == "2.0 items/s, 20s left"


def test_short_work_says_nothing_outside_a_terminal(capsys):
    with progress("work", 3) as advance:
        for _ in range(3):
            advance(1)
    assert capsys.readouterr() == ("", "")
